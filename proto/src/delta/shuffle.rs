//! Elements taken apart into planes, one for each of their bytes: signs and exponents, which repeat, come to lie apart
//! from the ends of mantissas, which are noise.

/// The two planes of 16-bit elements, the low bytes first.
pub(super) fn split16(elements: &[u16], [low, high]: [&mut Vec<u8>; 2]) {
    low.clear();
    high.clear();
    low.extend(elements.iter().map(|element| *element as u8));
    high.extend(elements.iter().map(|element| (element >> 8) as u8));
}

/// The elements whose planes these are.
pub(super) fn join16([low, high]: [&[u8]; 2], elements: &mut Vec<u16>) {
    elements.clear();
    elements.extend(low.iter().zip(high).map(|(low, high)| u16::from_le_bytes([*low, *high])));
}

/// The four planes of 32-bit numbers, the lowest bytes first.
pub(super) fn split32(numbers: &[f32], planes: &mut [Vec<u8>; 4]) {
    for (shift, plane) in [0, 8, 16, 24].into_iter().zip(planes) {
        plane.clear();
        plane.extend(numbers.iter().map(|number| (number.to_bits() >> shift) as u8));
    }
}

/// The numbers whose planes these are; all have one length.
pub(super) fn join32(planes: &[Vec<u8>; 4], numbers: &mut [f32]) {
    let [a, b, c, d] = planes;
    for ((((number, a), b), c), d) in numbers.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *number = f32::from_bits(u32::from_le_bytes([*a, *b, *c, *d]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn planes_join_to_the_same_elements(bits in proptest::collection::vec(any::<u32>(), 0..100)) {
            let numbers: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
            let mut planes = [const { Vec::new() }; 4];
            split32(&numbers, &mut planes);
            let mut back = vec![0.0; numbers.len()];
            join32(&planes, &mut back);
            prop_assert_eq!(back.iter().map(|number| number.to_bits()).collect::<Vec<_>>(), bits.clone());

            let halves: Vec<u16> = bits.iter().map(|bits| *bits as u16).collect();
            let [low, high, ..] = &mut planes;
            split16(&halves, [low, high]);
            let mut back = Vec::new();
            join16([low, high], &mut back);
            prop_assert_eq!(back, halves);
        }
    }
}
