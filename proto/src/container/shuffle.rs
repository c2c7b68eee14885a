//! Elements taken apart into planes, one for each of their bytes: signs and exponents, which repeat, come to lie apart
//! from the ends of mantissas, which are noise.

/// The two planes of 16-bit elements, the low bytes first.
pub(crate) fn split16(elements: &[u16], [low, high]: [&mut Vec<u8>; 2]) {
    low.clear();
    high.clear();
    low.extend(elements.iter().map(|element| *element as u8));
    high.extend(elements.iter().map(|element| (element >> 8) as u8));
}

/// The elements whose planes these are.
pub(crate) fn join16([low, high]: [&[u8]; 2], elements: &mut Vec<u16>) {
    elements.clear();
    elements.extend(low.iter().zip(high).map(|(low, high)| u16::from_le_bytes([*low, *high])));
}

/// The four planes of 32-bit elements, the lowest bytes first.
pub(crate) fn split32(elements: impl Iterator<Item = u32> + Clone, planes: &mut [Vec<u8>; 4]) {
    for (shift, plane) in [0, 8, 16, 24].into_iter().zip(planes) {
        plane.clear();
        plane.extend(elements.clone().map(|element| (element >> shift) as u8));
    }
}

/// The elements whose planes these are; all have one length.
pub(crate) fn join32([a, b, c, d]: &[Vec<u8>; 4]) -> impl Iterator<Item = u32> {
    a.iter().zip(b).zip(c).zip(d).map(|(((a, b), c), d)| u32::from_le_bytes([*a, *b, *c, *d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn planes_join_to_the_same_elements(bits in proptest::collection::vec(any::<u32>(), 0..100)) {
            let mut planes = [const { Vec::new() }; 4];
            split32(bits.iter().copied(), &mut planes);
            prop_assert_eq!(join32(&planes).collect::<Vec<_>>(), bits.clone());

            let halves: Vec<u16> = bits.iter().map(|bits| *bits as u16).collect();
            let [low, high, ..] = &mut planes;
            split16(&halves, [low, high]);
            let mut back = Vec::new();
            join16([low, high], &mut back);
            prop_assert_eq!(back, halves);
        }
    }
}
