#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Read;

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use proptest::prelude::*;

use super::*;
use crate::layout::Layout;

fn encoded(before: &[u8], next: &[u8]) -> Vec<u8> {
    let mut container = Vec::new();
    let bytes = encode(before, next, next.len() as u64, &mut container).unwrap();
    assert_eq!(bytes, container.len() as u64);
    container
}

fn decoded(container: &[u8], before: &[u8]) -> Result<Vec<u8>, DifferenceError> {
    let mut next = Vec::new();
    let bytes = decode(container, before, before.len() as u64, &mut next)?;
    assert_eq!(bytes, container.len() as u64);
    Ok(next)
}

/// A safetensors file of these values.
fn file(values: &[f32]) -> Vec<u8> {
    let layout = Layout::of_tensors([("w".to_owned(), "F32".to_owned(), vec![values.len() as u64])]).unwrap();
    let mut bytes = layout.header();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// Weights, and where they are after steps of about this share of their deviation.
fn moved(count: usize, share: f32) -> (Vec<u8>, Vec<u8>) {
    let mut draws = ChaCha8Rng::from_seed([5; 32]);
    let mut uniform = || (draws.next_u32() as f32 + 0.5) / 4_294_967_296.0;
    // Box and Muller.
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    let before: Vec<f32> = (0..count).map(|_| 0.05 * normal()).collect();
    let next: Vec<f32> = before.iter().map(|value| value + 0.05 * share * normal()).collect();
    (file(&before), file(&next))
}

#[test]
fn a_container_is_what_its_description_says() {
    let (before, next) = ([5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 7], [4, 0, 0, 0, 1, 0, 0, 0, 9]);
    let mut expected = b"ftstate\x01".to_vec();
    expected.extend(9_u64.to_le_bytes());
    // -1, 2 and 2, of which the last word has one byte.
    expected.extend([3, 0, 0, 0x80, 1, 4, 4]);
    for _ in 0..3 {
        expected.extend([3, 0, 0, 0x80, 0, 0, 0]);
    }
    let container = encoded(&before, &next);
    assert_eq!(container, expected);
    assert_eq!(decoded(&container, &before).unwrap(), next);
}

#[test]
fn the_extremes_come_back() {
    let odd = [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0];
    let odd: Vec<f32> = odd.into_iter().chain([f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1)]).collect();
    for shift in 0..odd.len() {
        let mut turned = odd.clone();
        turned.rotate_left(shift);
        let (before, next) = (file(&odd), file(&turned));
        assert_eq!(decoded(&encoded(&before, &next), &before).unwrap(), next);
    }
    assert!(decoded(&encoded(&[], &[]), &[]).unwrap().is_empty());
}

#[test]
fn a_state_that_moved_a_little_is_sent_smaller_and_one_that_did_not_move_is_nothing() {
    let count = 2 * FRAME_WORDS + 7777;
    for (share, range) in [(0.0, 0.0..0.001), (1e-4, 0.42..0.46), (0.01, 0.64..0.67), (0.1, 0.75..0.78)] {
        let (before, next) = moved(count, share);
        let container = encoded(&before, &next);
        let size = container.len() as f64 / next.len() as f64;
        assert!(range.contains(&size), "{share}: {size} of the bytes");
        assert_eq!(decoded(&container, &before).unwrap(), next);
    }
}

#[test]
fn what_cannot_be_compressed_grows_by_the_lengths_of_parts_alone() {
    let mut draws = ChaCha8Rng::from_seed([6; 32]);
    let mut noise = || {
        let mut bytes = vec![0; FRAME_BYTES as usize + 4001];
        draws.fill_bytes(&mut bytes);
        bytes
    };
    let (before, next) = (noise(), noise());
    let container = encoded(&before, &next);
    assert!(container.len() <= PREAMBLE_BYTES + 2 * 4 * 4 + next.len() + 3, "{}", container.len());
    assert_eq!(decoded(&container, &before).unwrap(), next);
}

#[test]
fn states_of_another_size_are_refused() {
    let refused = |before: &[u8], next: &[u8], size| match encode(before, next, size, io::sink()).unwrap_err() {
        DifferenceError::Size { what, longer, .. } => (what, longer),
        other => panic!("{other}"),
    };
    assert_eq!(refused(&[0; 7], &[0; 8], 8), (Stream::Before, false));
    assert_eq!(refused(&[0; 8], &[0; 7], 8), (Stream::Next, false));
    assert_eq!(refused(&[0; 9], &[0; 8], 8), (Stream::Before, true));
    assert_eq!(refused(&[0; 8], &[0; 9], 8), (Stream::Next, true));
    let container = encoded(&[0; 8], &[1; 8]);
    for (before, longer) in [(&[0; 7][..], false), (&[0; 9], true)] {
        let error = decode(&container[..], before, 8, io::sink()).unwrap_err();
        assert!(matches!(error, DifferenceError::Size { what: Stream::Before, .. }), "{error}");
        assert!(error.to_string().contains(if longer { "more than 8" } else { "fewer than 8" }), "{error}");
    }
    let error = decode(&container[..], &[0; 9][..], 9, io::sink()).unwrap_err();
    assert!(matches!(error, DifferenceError::OtherSize { found: 8, expected: 9 }), "{error}");
}

#[test]
fn what_is_no_sound_container_is_refused_by_name() {
    let before = vec![3; 40];
    let sound = encoded(&before, &[4; 40]);
    let with = |byte: usize, value: u8| {
        let mut changed = sound.clone();
        changed[byte] = value;
        decoded(&changed, &before).unwrap_err()
    };
    assert!(matches!(with(0, b'F'), DifferenceError::Magic { found } if &found == b"Ftstate"));
    assert!(matches!(with(7, 2), DifferenceError::Version { found: 2 }));
    assert!(matches!(with(15, 1), DifferenceError::OtherSize { expected: 40, .. }));
    // Ten words: a length of 10 as it is, or of less than 10 compressed.
    let with = |prefix: u32| {
        let container = [&sound[..16], &prefix.to_le_bytes(), &[0; 64]].concat();
        match decoded(&container, &before).unwrap_err() {
            DifferenceError::Frame { frame: 0, byte: 16, part: 0, fault } => fault,
            other => panic!("{other}"),
        }
    };
    for (claim, expected, packed) in [
        (u32::MAX, 10, false),
        (1 << 31 | 9, 10, false),
        (1 << 31 | 11, 10, false),
        (10, 9, true),
        (u32::MAX >> 1, 9, true),
    ] {
        assert_eq!(with(claim), PartFault::Length { found: claim & !(1 << 31), expected, packed });
    }
    assert!(matches!(with(9), PartFault::Packed { expected: 10, .. }));
    let error = decoded(&[&sound[..], &[0]].concat(), &before).unwrap_err();
    assert!(matches!(error, DifferenceError::Trailing { byte } if byte == sound.len() as u64), "{error}");
    assert!(error.to_string().contains("where it must end"), "{error}");
}

#[test]
fn a_decompression_bomb_is_refused_in_bounded_memory() {
    let before = vec![0; FRAME_BYTES as usize];
    for size in [100 << 20, FRAME_WORDS + 1, FRAME_WORDS - 1, 0] {
        let bomb = zstd::bulk::compress(&vec![0; size], 3).unwrap();
        // Once as it is, and once without the field that says how large it becomes.
        let mut streamed = Vec::new();
        zstd::stream::copy_encode(io::repeat(0).take(size as u64), &mut streamed, 3).unwrap();
        for bomb in [bomb, streamed] {
            let head = [&MAGIC[..], &[VERSION], &FRAME_BYTES.to_le_bytes()].concat();
            let container = [&head[..], &(bomb.len() as u32).to_le_bytes(), &bomb].concat();
            let error = decoded(&container, &before).unwrap_err();
            let DifferenceError::Frame { part: 0, fault: PartFault::Packed { expected: 65_536, .. }, .. } = error
            else {
                panic!("{size}: {error}")
            };
            let (mut reader, mut plane) = (PartReader::new().unwrap(), Vec::new());
            let mut input = Counted { input: &container[PREAMBLE_BYTES..], at: 0 };
            reader.take(&mut input, FRAME_WORDS, false, &mut plane).unwrap_err();
            assert!(reader.packed.capacity() + plane.capacity() < 2 * FRAME_WORDS);
        }
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is full"))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_that_fails_is_named() {
    let (before, next) = moved(100_000, 0.01);
    let (container, size) = (encoded(&before, &next), next.len() as u64);
    for (error, text) in [
        (encode(Broken, &next[..], size, io::sink()), "the state before cannot be read: the disk is gone"),
        (encode(&before[..], Broken, size, io::sink()), "the next state cannot be read: the disk is gone"),
        (encode(&before[..], &next[..], size, Broken), "the encoded difference cannot be written: the disk is full"),
        (
            decode(container[..9000].chain(Broken), &before[..], size, io::sink()),
            "the encoded difference cannot be read: the disk is gone",
        ),
        (
            decode(&container[..], before[..9000].chain(Broken), size, io::sink()),
            "the state before cannot be read: the disk is gone",
        ),
        (decode(&container[..], &before[..], size, Broken), "the next state cannot be written: the disk is full"),
    ] {
        assert_eq!(error.unwrap_err().to_string(), text);
    }
}

/// Two states of one size, alike or not, of any bits and any length.
fn states() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let near = (any::<u32>(), -3000_i32..3000).prop_map(|(bits, step)| (bits, bits.wrapping_add_signed(step)));
    let word = prop_oneof![any::<(u32, u32)>(), near, any::<u32>().prop_map(|bits| (bits, bits))];
    (proptest::collection::vec(word, 0..300), 0_usize..4).prop_map(|(words, short)| {
        let bytes = |of: fn(&(u32, u32)) -> u32| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| of(word).to_le_bytes()).collect();
            bytes.truncate(bytes.len().saturating_sub(short));
            bytes
        };
        (bytes(|word| word.0), bytes(|word| word.1))
    })
}

proptest! {
    #[test]
    fn zigzag_turns_back(number in any::<i32>()) {
        prop_assert_eq!(unzigzag(zigzag(number)), number);
    }

    #[test]
    fn every_state_comes_back((before, next) in states()) {
        prop_assert_eq!(decoded(&encoded(&before, &next), &before).unwrap(), next);
    }

    #[test]
    fn every_cut_is_refused((before, next) in states(), cut in any::<prop::sample::Index>()) {
        let container = encoded(&before, &next);
        let cut = cut.index(container.len());
        let error = decoded(&container[..cut], &before);
        prop_assert!(matches!(error, Err(DifferenceError::Short { byte, .. }) if byte <= cut as u64), "{:?}", error);
    }

    // What is then made counts by its digest: a bit that zstd passes over makes the same state.
    #[test]
    fn no_flip_makes_the_decoder_panic((before, next) in states(), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let mut container = encoded(&before, &next);
        let at = at.index(container.len());
        container[at] ^= 1 << bit;
        if let Ok(made) = decoded(&container, &before) {
            prop_assert_eq!(made.len(), next.len());
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 0_u64..200) {
        let container = [&MAGIC[..], &[VERSION], &size.to_le_bytes(), &bytes].concat();
        let _ = decoded(&container, &vec![7; size as usize]);
    }
}
