//! The values of largest magnitude in a frame, and their places.

use super::FrameFault;
use super::frame::Frame;
use super::quantize::Halves;

/// What choosing needs again for each frame.
#[derive(Default)]
pub(super) struct Selection {
    magnitudes: Vec<u32>,
    kept: Vec<f32>,
}

impl Selection {
    /// Puts into the frame the `most` values of largest magnitude, of equal ones the first; fewer where the rest is 0. The
    /// frame has its exponent.
    pub(super) fn select(&mut self, values: &[f32], most: usize, halves: &mut Halves, frame: &mut Frame) {
        let magnitude = |value: &f32| value.abs().to_bits();
        let Self { magnitudes, kept } = self;
        magnitudes.clear();
        magnitudes.extend(values.iter().map(magnitude).filter(|magnitude| *magnitude > 0));
        let count = most.min(magnitudes.len());
        let [low, high, places, _] = &mut frame.parts;
        kept.clear();
        places.clear();
        if count > 0 {
            let at = magnitudes.len() - count;
            let (_, &mut least, above) = magnitudes.select_nth_unstable(at);
            let mut equal = count - above.iter().filter(|magnitude| **magnitude > least).count();
            let mut next = 0;
            for (place, value) in values.iter().enumerate() {
                let magnitude = magnitude(value);
                if magnitude < least || (magnitude == least && equal == 0) {
                    continue;
                }
                equal -= usize::from(magnitude == least);
                kept.push(*value);
                push_number(places, place - next);
                next = place + 1;
            }
        }
        frame.kept = kept.len();
        halves.split(kept, frame.exponent, [low, high]);
    }
}

/// Puts the values kept at their places, and 0 everywhere else.
pub(super) fn scatter(kept: &[f32], mut places: &[u8], values: &mut [f32]) -> Result<(), FrameFault> {
    values.fill(0.0);
    let mut rest = values;
    for (index, value) in kept.iter().enumerate() {
        let passed = take_number(&mut places);
        let split = passed.and_then(|passed| rest.split_at_mut_checked(passed)).map(|(_, rest)| rest);
        let Some((place, behind)) = split.and_then(<[f32]>::split_first_mut) else {
            return Err(FrameFault::Place { index });
        };
        *place = *value;
        rest = behind;
    }
    if places.is_empty() { Ok(()) } else { Err(FrameFault::Place { index: kept.len() }) }
}

/// LEB128: seven bits a byte, the lowest first, the highest bit set where another byte follows.
fn push_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The next number, of at most three bytes and in its shortest form.
fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for count in 0..3 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 127) << (7 * count);
        if byte & 128 == 0 {
            return (*byte > 0 || count == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places_of(values: &[f32], most: usize) -> Vec<usize> {
        let mut frame = Frame { exponent: super::super::quantize::exponent(8.0), ..Frame::default() };
        Selection::default().select(values, most, &mut Halves::default(), &mut frame);
        let mut back = vec![0.0; values.len()];
        scatter(&vec![1.0; frame.kept], &frame.parts[2], &mut back).expect("its own places");
        (0..back.len()).filter(|place| back[*place] != 0.0).collect()
    }

    #[test]
    fn the_largest_are_kept_and_of_equal_ones_the_first() {
        let values = [1.0, -3.0, 2.0, 3.0, -2.0, 0.0, 2.0];
        assert_eq!(places_of(&values, 1), [1]);
        assert_eq!(places_of(&values, 2), [1, 3]);
        assert_eq!(places_of(&values, 4), [1, 2, 3, 4]);
        assert_eq!(places_of(&values, 7), [0, 1, 2, 3, 4, 6], "zeros need no place");
        assert_eq!(places_of(&[0.0; 5], 3), [0_usize; 0]);
    }

    #[test]
    fn places_out_of_range_or_in_another_form_are_refused() {
        let scattered = |places: &[u8], kept: usize| scatter(&vec![1.0; kept], places, &mut [0.0; 4]);
        assert_eq!(scattered(&[3], 1), Ok(()));
        assert_eq!(scattered(&[0, 0, 0, 0], 4), Ok(()));
        for (places, kept, index) in [
            (&[4][..], 1, 0),            // past the end
            (&[3, 0], 2, 1),             // none is left
            (&[0], 2, 1),                // missing
            (&[0, 0], 1, 1),             // left over
            (&[0x83, 0x00], 1, 0),       // not its shortest form
            (&[0xff; 4], 1, 0),          // endless
            (&[0xff, 0xff, 0x7f], 1, 0), // far past the end
            (&[0x80], 1, 0),             // cut off
        ] {
            assert_eq!(scattered(places, kept), Err(FrameFault::Place { index }), "{places:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_read_back(number in 0_usize..1 << 21) {
            let mut bytes = Vec::new();
            push_number(&mut bytes, number);
            let mut rest = &bytes[..];
            prop_assert_eq!((take_number(&mut rest), rest.len()), (Some(number), 0));
        }
    }
}
