//! Containers that are not sound.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read};

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use proptest::prelude::*;

use super::super::frame::{Packer, container_bytes_max, preamble};
use super::super::tests::{CODECS, TOP_TENTH, codec, decoded, encoded, layout, normal, update};
use super::*;
use crate::delta::{FrameFault, PartFault, Rounding, wire_bytes_max};

/// The container of one tensor whose only frame is this one.
fn container(layout: &Layout, codec: Codec, frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    Packer::new().unwrap().pack(frame, places(layout).next().unwrap(), codec, &mut bytes).unwrap();
    [&preamble(layout, codec)[..], &bytes].concat()
}

fn fault(layout: &Layout, codec: Codec, container: &[u8]) -> FrameFault {
    match decoded(layout, codec, container) {
        Err(DeltaError::Frame { frame: 0, byte: 57, tensor, fault }) if tensor == "t000" => fault,
        other => panic!("{other:?}"),
    }
}

/// A sound frame of three values.
fn sound(codec: Codec) -> Frame {
    let parts = match codec {
        Codec::None => [vec![0; 3], vec![0; 3], vec![0; 3], vec![0; 3]],
        Codec::F16 => [vec![0; 3], vec![0x3c; 3], vec![], vec![]],
        Codec::Int8 => [vec![0], vec![0x3c], vec![1, 0x81, 127], vec![]],
        Codec::Int4 => [vec![0], vec![0x3c], vec![0x71, 0x09], vec![]],
        Codec::TopK { .. } => [vec![0], vec![0x3c], vec![2], vec![]],
    };
    Frame { exponent: 0, kept: if codec == TOP_TENTH { 1 } else { 3 }, parts }
}

#[test]
fn what_is_no_sound_frame_is_refused_by_name() {
    let three = layout(&[&[3]]);
    for (codec, values) in
        CODECS.into_iter().zip([[0.0; 3], [1.0; 3], [1.0, -127.0, 127.0], [1.0, 7.0, -7.0], [0.0, 0.0, 1.0]])
    {
        assert_eq!(decoded(&three, codec, &container(&three, codec, &sound(codec))).unwrap(), values);
    }
    let with = |codec: Codec, change: fn(&mut Frame)| {
        let mut frame = sound(codec);
        change(&mut frame);
        fault(&three, codec, &container(&three, codec, &frame))
    };
    use FrameFault::{Code, Exponent, Kept, NotFinite, Place, Scale};
    assert_eq!(with(Codec::F16, |f| f.kept = 2), Kept { found: 2, expected: 3 });
    assert_eq!(with(TOP_TENTH, |f| f.kept = 2), Kept { found: 2, expected: 1 });
    assert_eq!(with(Codec::None, |f| f.exponent = 1), Exponent(1));
    assert_eq!(with(Codec::F16, |f| f.exponent = -126), Exponent(-126));
    assert_eq!(with(Codec::Int8, |f| f.exponent = 114), Exponent(114));
    assert_eq!(
        with(Codec::None, |f| {
            f.parts[3][1] = 0x7f;
            f.parts[2][1] = 0x80
        }),
        NotFinite { index: 1 }
    );
    assert_eq!(with(Codec::F16, |f| f.parts[1][2] = 0x7c), NotFinite { index: 2 });
    assert_eq!(with(Codec::F16, |f| f.parts[1][2] = 0xfe), NotFinite { index: 2 });
    // 2^15 · 2^113: no infinity itself, but past the end of f32.
    assert_eq!(
        with(Codec::F16, |f| {
            f.parts[1][0] = 0x78;
            f.exponent = 113
        }),
        NotFinite { index: 0 }
    );
    assert_eq!(
        with(Codec::Int8, |f| {
            f.parts[1][0] = 0x78;
            f.exponent = 108
        }),
        NotFinite { index: 1 }
    );
    assert_eq!(with(TOP_TENTH, |f| f.parts[1][0] = 0x7e), NotFinite { index: 2 });
    for high in [0x7c, 0x7e, 0x80, 0xbc, 0xff] {
        let mut frame = sound(Codec::Int4);
        frame.parts[1][0] = high;
        let bits = u16::from(high) << 8;
        assert_eq!(fault(&three, Codec::Int4, &container(&three, Codec::Int4, &frame)), Scale { block: 0, bits });
    }
    assert_eq!(with(Codec::Int8, |f| f.parts[2][1] = 0x80), Code { index: 1 });
    assert_eq!(with(Codec::Int4, |f| f.parts[2][0] = 0x87), Code { index: 1 });
    assert_eq!(with(Codec::Int4, |f| f.parts[2][1] = 0x11), Code { index: 3 });
    assert_eq!(with(TOP_TENTH, |f| f.parts[2][0] = 3), Place { index: 0 });
}

#[test]
fn a_container_of_something_else_is_refused() {
    let ours = layout(&[&[300], &[5]]);
    let (sound, _) = encoded(&ours, TOP_TENTH, Rounding::Nearest, &normal(305, 1.0, 1));
    let with = |byte: usize, value: u8| {
        let mut changed = sound.clone();
        changed[byte] = value;
        decoded(&ours, TOP_TENTH, &changed).unwrap_err()
    };
    assert!(matches!(with(0, b'F'), DeltaError::Magic { found } if &found == b"Ftdelta"));
    assert!(matches!(with(7, 2), DeltaError::Version { found: 2 }));
    assert!(matches!(with(8, 1), DeltaError::OtherCodec { tag: 1, expected: TOP_TENTH, .. }));
    assert!(matches!(with(16, 0), DeltaError::OtherCodec { tag: 4, .. }));
    assert!(matches!(with(18, 2), DeltaError::OtherTensors { found: 561, expected: 305 }));
    assert!(matches!(with(56, sound[56] ^ 1), DeltaError::OtherTensors { found: 305, expected: 305 }));
    assert!(matches!(with(57, 1), DeltaError::Frame { fault: FrameFault::Order { found: 1, expected: 0 }, .. }));
    for others in [layout(&[&[5], &[300]]), layout(&[&[300], &[5], &[0]]), layout(&[&[300], &[5, 1]])] {
        let error = decoded(&others, TOP_TENTH, &sound);
        assert!(matches!(error, Err(DeltaError::OtherTensors { .. })), "{error:?}");
    }
    let error = decoded(&ours, Codec::TopK { share: 0.2 }, &sound).unwrap_err().to_string();
    assert!(error.contains("share 0.1") && error.contains("expected top-k:0.2"), "{error}");
    let error = decoded(&ours, TOP_TENTH, &[&sound[..], &[0]].concat()).unwrap_err();
    assert!(matches!(error, DeltaError::Trailing { byte } if byte == sound.len() as u64), "{error}");
}

#[test]
fn frames_keep_their_order() {
    let layout = layout(&[&[40], &[40]]);
    let (sound, _) = encoded(&layout, Codec::F16, Rounding::Nearest, &normal(80, 1.0, 1));
    let (start, frames) = sound.split_at(57);
    let (first, second) = frames.split_at(frames.len() / 2);
    let error = decoded(&layout, Codec::F16, &[start, second, first].concat()).unwrap_err();
    assert!(matches!(error, DeltaError::Frame { fault: FrameFault::Order { found: 1, expected: 0 }, .. }), "{error}");
    assert!(error.to_string().contains("frame 0 of the container, at byte 57, in tensor \"t000\""), "{error}");
}

/// Nobody may ask it for a byte.
struct Untouched;

impl Read for Untouched {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("read before the length was checked")
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
    let layout = layout(&[&[3]]);
    for (codec, sizes) in CODECS.into_iter().zip([[3, 2], [3, 2], [1, 0], [1, 0], [1, 0]]) {
        for (claim, packed) in
            [(u32::MAX, false), (u32::MAX >> 1, true), (1 << 31 | 4, false), (3, true), (1 << 31, false)]
        {
            let head = [&preamble(&layout, codec)[..], &[0; 4], &[sound(codec).kept as u8, 0, 0, 0, 0]].concat();
            let bytes = [&head[..], &claim.to_le_bytes()].concat();
            // Without the buffer of `decode`, which may read ahead.
            let mut input = Counted { input: bytes.chain(Untouched), at: 0 };
            check_preamble(&mut input, &layout, codec).unwrap();
            let (mut unpacker, mut frame) = (Unpacker::new().unwrap(), Frame::default());
            let error = unpacker.unpack(&mut input, places(&layout).next().unwrap(), codec, &mut frame).unwrap_err();
            let DeltaError::Frame { fault, .. } = error else { panic!("{error}") };
            let expected = sizes[usize::from(packed)];
            assert_eq!(
                fault,
                FrameFault::Part { part: 0, fault: PartFault::Length { found: claim & !(1 << 31), expected, packed } },
                "{codec}"
            );
        }
    }
}

#[test]
fn a_decompression_bomb_is_refused() {
    let layout = layout(&[&[FRAME_VALUES as u64]]);
    for size in [100 << 20, FRAME_VALUES + 1, FRAME_VALUES - 1, 0] {
        let bomb = zstd::bulk::compress(&vec![0; size], 3).unwrap();
        assert!(bomb.len() < FRAME_VALUES);
        // Once as it is, and once without the field that says how large it becomes.
        let mut streamed = Vec::new();
        zstd::stream::copy_encode(io::repeat(0).take(size as u64), &mut streamed, 3).unwrap();
        for bomb in [bomb, streamed] {
            let head = [&preamble(&layout, Codec::F16)[..], &[0; 4], &[0, 0, 1, 0, 0]].concat();
            let bytes = [&head[..], &(bomb.len() as u32).to_le_bytes(), &bomb].concat();
            let error = fault(&layout, Codec::F16, &bytes);
            let FrameFault::Part { part: 0, fault: PartFault::Packed { expected: 65_536, .. } } = error else {
                panic!("{size}: {error}")
            };

            let mut input = Counted { input: &bytes[57..], at: 57 };
            let (mut unpacker, mut frame) = (Unpacker::new().unwrap(), Frame::default());
            unpacker.unpack(&mut input, places(&layout).next().unwrap(), Codec::F16, &mut frame).unwrap_err();
            assert!(
                unpacker.parts.packed.capacity() + frame.parts.iter().map(Vec::capacity).sum::<usize>()
                    < 2 * FRAME_VALUES
            );
        }
    }
}

#[test]
fn a_container_that_does_not_compress_is_as_large_as_one_may_be() {
    let layout = layout(&[&[70_000], &[], &[0], &[129]]);
    let mut draws = ChaCha8Rng::from_seed([1; 32]);
    let finite = |value: f32| if value.is_finite() { value } else { 1.0 };
    let values: Vec<f32> = (0..70_130).map(|_| finite(f32::from_bits(draws.next_u32()))).collect();
    let (container, _) = encoded(&layout, Codec::None, Rounding::Nearest, &values);
    let most = wire_bytes_max(&layout, Codec::None);
    assert!(container.len() as u64 > most * 99 / 100, "{} of {most}", container.len());
    // 57 for the preamble, and for each of four frames 9 and four lengths.
    assert_eq!(most, 57 + 4 * 25 + 4 * 70_130);
    assert_eq!(container_bytes_max(&layout, Codec::F16), 57 + 4 * 17 + 2 * 70_130);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_cut_makes_the_decoder_panic((layout, values) in update(), codec in codec(), cut in any::<prop::sample::Index>()) {
        let (container, _) = encoded(&layout, codec, Rounding::Nearest, &values);
        let cut = cut.index(container.len());
        let error = decoded(&layout, codec, &container[..cut]);
        prop_assert!(matches!(error, Err(DeltaError::Short { byte, .. }) if byte <= cut as u64), "{:?}", error);
    }

    #[test]
    fn no_changed_byte_makes_the_decoder_panic(
        (layout, values) in update(),
        codec in codec(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        in_frames in any::<bool>(),
    ) {
        let (mut container, _) = encoded(&layout, codec, Rounding::Nearest, &values);
        let start = if in_frames && container.len() > 57 { 57 } else { 0 };
        for (at, change) in changes {
            let at = start + at.index(container.len() - start);
            container[at] ^= change;
        }
        if let Ok(values) = decoded(&layout, codec, &container) {
            prop_assert!(values.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        shape in 0_u64..3000,
        codec in codec(),
        head in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let layout = layout(&[&[shape]]);
        let mut container = preamble(&layout, codec).to_vec();
        if head {
            container.extend([0; 4]);
            container.extend((codec.kept(shape as usize) as u32).to_le_bytes());
            container.push(0);
        }
        container.extend(bytes);
        if let Ok(values) = decoded(&layout, codec, &container) {
            prop_assert!(values.iter().all(|value| value.is_finite()));
        }
    }
}
