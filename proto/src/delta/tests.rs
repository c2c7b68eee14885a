//! Round trips of whole files.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read, Write};

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use half::f16;
use proptest::prelude::*;

use super::frame::FRAME_VALUES;
use super::quantize::{Dequantizer, Quantizer, largest, power};
use super::*;

pub(super) const TOP_TENTH: Codec = Codec::TopK { share: 0.1 };
pub(super) const CODECS: [Codec; 5] = [Codec::None, Codec::F16, Codec::Int8, Codec::Int4, TOP_TENTH];

pub(super) fn layout(shapes: &[&[u64]]) -> Layout {
    let tensors = shapes.iter().enumerate().map(|(i, shape)| (format!("t{i:03}"), "F32".to_owned(), shape.to_vec()));
    Layout::of_tensors(tensors).unwrap()
}

pub(super) fn file(layout: &Layout, values: &[f32]) -> Vec<u8> {
    let mut bytes = layout.header();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    assert_eq!(bytes.len() as u64, layout.file_bytes);
    bytes
}

pub(super) fn values_of(layout: &Layout, file: &[u8]) -> Vec<f32> {
    let (header, data) = file.split_at(layout.data_start as usize);
    assert_eq!(header, layout.header());
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(super) fn normal(count: usize, deviation: f32, seed: u8) -> Vec<f32> {
    let mut draws = ChaCha8Rng::from_seed([seed; 32]);
    let mut uniform = || (draws.next_u32() as f32 + 0.5) / 4_294_967_296.0;
    // Box and Muller.
    let mut one = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos() * deviation;
    (0..count).map(|_| one()).collect()
}

fn at_random(seed: u8) -> Rounding {
    Rounding::Stochastic { seed: [seed; 32] }
}

pub(super) fn encoded(layout: &Layout, codec: Codec, rounding: Rounding, values: &[f32]) -> (Vec<u8>, Encoded) {
    let mut container = Vec::new();
    let report = Encoder::new(layout, codec, rounding).encode(&file(layout, values)[..], &mut container).unwrap();
    assert_eq!(report.bytes_out, container.len() as u64);
    assert!(report.bytes_out <= wire_bytes_max(layout, codec), "{codec}");
    (container, report)
}

pub(super) fn decoded(layout: &Layout, codec: Codec, container: &[u8]) -> Result<Vec<f32>, DeltaError> {
    let mut update = Vec::new();
    let report = decode(container, layout, codec, &mut update)?;
    assert_eq!(report.bytes_in, container.len() as u64);
    Ok(values_of(layout, &update))
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn codes(codec: Codec, values: &[f32]) -> Vec<u8> {
    let mut frame = frame::Frame::default();
    Quantizer::new(codec, Rounding::Nearest).quantize(values, largest(values), &mut frame);
    std::mem::take(&mut frame.parts[2])
}

#[test]
fn nearest_codes_are_those_of_the_formulas() {
    let values = [0.1, -0.25, 0.05, 1.0];
    assert_eq!(codes(Codec::Int8, &values), [13, -32_i8 as u8, 6, 127]);
    assert_eq!(codes(Codec::Int4, &values), [0xe1, 0x70], "1, -2, 0, 7");
    // Scales of 1, so that ties show: half to even.
    assert_eq!(codes(Codec::Int8, &[127.0, 0.5, 1.5, -2.5]), [127, 0, 2, -2_i8 as u8]);
}

#[test]
fn a_container_is_what_its_description_says() {
    let layout = Layout::of_tensors([("w".to_owned(), "F32".to_owned(), vec![2, 2])]).unwrap();
    let (container, _) = encoded(&layout, Codec::Int8, Rounding::Nearest, &[0.1, -0.25, 0.05, 1.0]);
    let mut tensors = Vec::new();
    for number in [1_u64, 1] {
        tensors.extend(number.to_le_bytes());
    }
    tensors.push(b'w');
    for number in [2_u64, 2, 2] {
        tensors.extend(number.to_le_bytes());
    }
    let mut expected = b"ftdelta\x01\x02".to_vec();
    expected.extend(0_f64.to_le_bytes());
    expected.extend(4_u64.to_le_bytes());
    expected.extend(blake3::hash(&tensors).as_bytes());
    // 1/127 is just above 2^-7, the bits 0x2008 of f16 after rounding up; brought up by 2^21 it is 0x7408.
    expected.extend([0, 0, 0, 0, 4, 0, 0, 0, -21_i8 as u8]);
    expected.extend([1, 0, 0, 0x80, 0x09]);
    expected.extend([1, 0, 0, 0x80, 0x74]);
    expected.extend([4, 0, 0, 0x80, 13, -32_i8 as u8, 6, 127]);
    assert_eq!(container, expected);
}

#[test]
fn random_codes_have_the_values_as_their_means() {
    const DRAWS: usize = 10_000;
    for (codec, count, most) in [(Codec::Int8, 300, 127.0), (Codec::Int4, 70, 7.0)] {
        let values = normal(count, 5e-4, 1);
        let largest = largest(&values);
        let (mut quantizer, mut dequantizer) = (Quantizer::new(codec, at_random(2)), Dequantizer::new(codec));
        let (mut frame, mut back) = (frame::Frame::default(), vec![0.0; count]);
        let mut sums = vec![0.0; count];
        for _ in 0..DRAWS {
            quantizer.quantize(&values, largest, &mut frame);
            dequantizer.dequantize(&frame, &mut back).unwrap();
            sums.iter_mut().zip(&back).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let block = if codec == Codec::Int8 { 256 } else { 64 };
        for (index, (value, sum)) in values.iter().zip(sums).enumerate() {
            let [low, high] = [&frame.parts[0], &frame.parts[1]].map(|plane| plane[index / block]);
            let scale =
                f16::from_bits(u16::from_le_bytes([low, high])).to_f64() * f64::from(power(frame.exponent.into()));
            let members = &values[index / block * block..count.min((index / block + 1) * block)];
            assert!(f64::from(self::largest(members)) / scale <= most, "rounded up");
            let fraction = (f64::from(*value) / scale).rem_euclid(1.0);
            let deviation = scale * (fraction * (1.0 - fraction)).sqrt();
            let off = (sum / DRAWS as f64 - f64::from(*value)).abs();
            assert!(off <= 4.0 * deviation / (DRAWS as f64).sqrt() + 1e-7 * scale, "{codec} value {index}: {off}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let layout = layout(&[&[70_000], &[33]]);
    let values = normal(70_033, 1.0, 3);
    for codec in [Codec::Int8, Codec::Int4] {
        let container = |seed| encoded(&layout, codec, at_random(seed), &values).0;
        assert!(container(1) == container(1));
        assert!(container(1) != container(2));
    }
}

#[test]
fn error_feedback_loses_nothing_and_stays_bounded() {
    let layout = layout(&[&[300], &[], &[7, 31]]);
    let count = 300 + 1 + 7 * 31;
    // The norm of what is lost is at most q times that of what was to be sent, so sums stay below q / (1 - q) of a delta's.
    // For top-k, q^2 is the share that is not sent; the others' are far above what they lose.
    let of_top_k = 0.9_f64.sqrt();
    for (codec, most) in [(Codec::None, 0.0), (Codec::F16, 1e-3), (Codec::Int8, 0.02), (Codec::Int4, 0.3)]
        .into_iter()
        .chain([(TOP_TENTH, of_top_k / (1.0 - of_top_k))])
    {
        let mut lost: Option<Vec<u8>> = None;
        let (mut wanted, mut sent) = (vec![0.0_f64; count], vec![0.0_f64; count]);
        let mut longest = 0.0_f64;
        for step in 0..1000_u32 {
            let mut seed = [0; 32];
            seed[..4].copy_from_slice(&step.to_le_bytes());
            // With a part that does not change, as deltas of training have.
            let mut delta = normal(count, 1e-3, step as u8);
            delta.iter_mut().enumerate().for_each(|(i, value)| *value += 1e-3 * (i % 7) as f32);
            let (mut residual, mut container) = (Vec::new(), Vec::new());
            let earlier = lost.take();
            let mut earlier = earlier.as_deref();
            let mut encoder = Encoder::new(&layout, codec, Rounding::Stochastic { seed }).residual_to(&mut residual);
            if let Some(earlier) = &mut earlier {
                encoder = encoder.earlier(earlier);
            }
            let report = encoder.encode(&file(&layout, &delta)[..], &mut container).unwrap();
            let back = decoded(&layout, codec, &container).unwrap();
            wanted.iter_mut().zip(&delta).for_each(|(sum, value)| *sum += f64::from(*value));
            sent.iter_mut().zip(&back).for_each(|(sum, value)| *sum += f64::from(*value));
            longest = longest.max(norm(&delta));
            let left = values_of(&layout, &residual);
            assert!((norm(&left).powi(2) - report.error_square).abs() <= 1e-9 * report.error_square);
            assert!(norm(&left) <= most * longest, "{codec} step {step}: {} of {longest}", norm(&left));
            lost = Some(residual);
        }
        let left = values_of(&layout, &lost.unwrap());
        for ((wanted, sent), left) in wanted.iter().zip(&sent).zip(&left) {
            // But for the rounding of a thousand sums in f32.
            assert!((wanted - f64::from(*left) - sent).abs() < 1e-5, "{codec}: {wanted} - {left} - {sent}");
        }
    }
}

#[test]
fn nothing_stays_nothing() {
    let layout = layout(&[&[70_000], &[0, 5], &[], &[3]]);
    for codec in CODECS {
        for rounding in [Rounding::Nearest, at_random(0)] {
            let (container, report) = encoded(&layout, codec, rounding, &vec![0.0; 70_004]);
            assert!(container.len() < 600, "{codec}: {}", container.len());
            assert_eq!((report.relative_error(), report.error_square), (0.0, 0.0));
            assert!(decoded(&layout, codec, &container).unwrap().iter().all(|value| *value == 0.0), "{codec}");
        }
    }
    let empty = self::layout(&[]);
    let (container, _) = encoded(&empty, Codec::F16, Rounding::Nearest, &[]);
    assert_eq!(container.len() as u64, wire_bytes_max(&empty, Codec::F16));
    assert!(decoded(&empty, Codec::F16, &container).unwrap().is_empty());
}

#[test]
fn values_that_are_no_numbers_are_refused_with_their_place() {
    let layout = layout(&[&[2], &[100_000]]);
    for codec in CODECS {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = normal(100_002, 1.0, 1);
            values[2 + 90_000] = odd;
            let error = Encoder::new(&layout, codec, Rounding::Nearest).encode(&file(&layout, &values)[..], io::sink());
            let error = error.unwrap_err();
            assert!(
                matches!(&error, DeltaError::NotFinite { tensor, index: 90_000, value } if tensor == "t001" && value.to_bits() == odd.to_bits()),
                "{error}"
            );
            assert!(error.to_string().contains("value 90000 of tensor \"t001\""), "{error}");
        }
        // Finite, and not with the residual.
        let half = file(&layout, &vec![2e38; 100_002]);
        let mut earlier = &half[..];
        let error = Encoder::new(&layout, codec, Rounding::Nearest).earlier(&mut earlier).encode(&half[..], io::sink());
        assert!(matches!(error, Err(DeltaError::NotFinite { index: 0, .. })), "{error:?}");
    }
}

#[test]
fn the_largest_numbers_are_carried_or_refused() {
    let layout = layout(&[&[3]]);
    let values = [f32::MAX, f32::MIN, f32::MIN_POSITIVE];
    for codec in CODECS {
        let result = Encoder::new(&layout, codec, Rounding::Nearest).encode(&file(&layout, &values)[..], io::sink());
        match codec {
            Codec::None => assert_eq!(result.unwrap().error_square, 0.0),
            _ => assert!(matches!(result, Err(DeltaError::TooLarge { tensor, .. }) if tensor == "t000")),
        }
    }
}

#[test]
fn sizes_and_errors_are_those_of_the_table() {
    // Two frames and a tail that is no multiple of a block. An error of codes is max / m / sqrt(6) at random, and to the
    // nearest sqrt(2) smaller, with the root mean square of max 3.07 in blocks of 256 and 2.63 in blocks of 64.
    let count = 2 * FRAME_VALUES + 77_777;
    let layout = layout(&[&[count as u64]]);
    let values = normal(count, 5e-4, 7);
    for (codec, rounding, share, error) in [
        (Codec::None, Rounding::Nearest, 0.70..0.87, 0.0..=0.0),
        (Codec::F16, Rounding::Nearest, 0.35..0.45, 1e-4..=3e-4),
        (Codec::Int8, at_random(1), 0.20..0.26, 0.0095..=0.0102),
        (Codec::Int8, Rounding::Nearest, 0.20..0.26, 0.0067..=0.0072),
        (Codec::Int4, at_random(1), 0.11..0.135, 0.145..=0.160),
        (Codec::Int4, Rounding::Nearest, 0.11..0.135, 0.103..=0.113),
        (TOP_TENTH, Rounding::Nearest, 0.04..0.07, 0.74..=0.80),
        (Codec::TopK { share: 0.01 }, Rounding::Nearest, 0.002..0.008, 0.94..=0.98),
    ] {
        let (container, report) = encoded(&layout, codec, rounding, &values);
        let size = container.len() as f64 / (4 * count) as f64;
        assert!(share.contains(&size), "{codec} {rounding:?}: {size} of the bytes");
        assert!(error.contains(&report.relative_error()), "{codec} {rounding:?}: {}", report.relative_error());
        let back = decoded(&layout, codec, &container).unwrap();
        let off: Vec<f32> = values.iter().zip(&back).map(|(value, back)| value - back).collect();
        assert!((norm(&off) / norm(&values) - report.relative_error()).abs() < 1e-9, "{codec}");
    }
}

#[test]
fn small_and_large_deltas_lose_no_more_than_others() {
    let layout = layout(&[&[1000], &[999]]);
    for deviation in [1e-33, 1e-9, 1e-4, 1.0, 1e6, 1e30] {
        // Each tensor has its own magnitude.
        let values = [normal(1000, deviation, 1), normal(999, deviation * 1e3, 2)].concat();
        for (codec, most) in [(Codec::F16, 1e-3), (Codec::Int8, 0.011), (Codec::Int4, 0.17)] {
            let (container, _) = encoded(&layout, codec, at_random(1), &values);
            let back = decoded(&layout, codec, &container).unwrap();
            for part in [0..1000, 1000..1999] {
                let off: Vec<f32> = part.clone().map(|i| values[i] - back[i]).collect();
                let relative = norm(&off) / norm(&values[part]);
                assert!(relative < most, "{codec} at {deviation}: {relative}");
            }
        }
    }
}

#[test]
fn files_of_other_tensors_are_refused() {
    let layout = layout(&[&[2], &[3]]);
    let sound = file(&layout, &[1.0; 5]);
    let refused = |update: &[u8]| {
        let error = Encoder::new(&layout, Codec::F16, Rounding::Nearest).encode(update, io::sink()).unwrap_err();
        assert!(matches!(error, DeltaError::File { what: Stream::Update, .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&file(&self::layout(&[&[3], &[2]]), &[1.0; 5])).contains("t000\" is F32 [3]; expected F32 [2]"));
    assert!(refused(&file(&self::layout(&[&[2]]), &[1.0; 2])).contains("end at byte"));
    for end in [0, 7, 8, 20, sound.len() - 1] {
        assert!(refused(&sound[..end]).contains("truncated"), "{end}");
    }
    assert!(refused(&[&sound[..], b"x"].concat()).contains("goes on"));
    assert!(refused(&[0xff; 64]).contains("claims"));

    let mut earlier = &sound[..sound.len() - 1];
    let encoder = Encoder::new(&layout, Codec::F16, Rounding::Nearest).earlier(&mut earlier);
    assert!(matches!(encoder.encode(&sound[..], io::sink()), Err(DeltaError::File { what: Stream::Earlier, .. })));

    let halves = Layout::of_tensors([("h".to_owned(), "F16".to_owned(), vec![2])]).unwrap();
    let encoder = Encoder::new(&halves, Codec::F16, Rounding::Nearest);
    assert!(matches!(encoder.encode(&sound[..], io::sink()), Err(DeltaError::Type { .. })));
    assert!(matches!(decode(&sound[..], &halves, Codec::F16, io::sink()), Err(DeltaError::Type { .. })));
    for share in [0.0, -1.0, 1.5, f64::NAN] {
        let encoder = Encoder::new(&layout, Codec::TopK { share }, Rounding::Nearest);
        assert!(matches!(encoder.encode(&sound[..], io::sink()), Err(DeltaError::Share(_))));
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
    let layout = layout(&[&[100_000]]);
    let values = normal(100_000, 1.0, 1);
    let update = file(&layout, &values);
    let (container, _) = encoded(&layout, Codec::F16, Rounding::Nearest, &values);
    let encoder = || Encoder::new(&layout, Codec::F16, Rounding::Nearest);
    for (error, text) in [
        (encoder().encode(Broken, io::sink()).unwrap_err(), "the update cannot be read: the disk is gone"),
        (encoder().encode(&update[..], Broken).unwrap_err(), "the encoded update cannot be written: the disk is full"),
        (
            encoder().residual_to(&mut Broken).encode(&update[..], io::sink()).unwrap_err(),
            "the residual cannot be written: the disk is full",
        ),
        (
            encoder().earlier(&mut Broken).encode(&update[..], io::sink()).unwrap_err(),
            "the residual of earlier rounds cannot be read: the disk is gone",
        ),
        (
            decode(container[..9000].chain(Broken), &layout, Codec::F16, io::sink()).unwrap_err(),
            "the encoded update cannot be read: the disk is gone",
        ),
        (
            decode(&container[..], &layout, Codec::F16, Broken).unwrap_err(),
            "the decoded update cannot be written: the disk is full",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn codecs_are_written_by_name() {
    for (codec, text) in CODECS.into_iter().zip(["none", "f16", "int8", "int4", "top-k"]) {
        assert_eq!((codec.to_string().as_str(), text.parse()), (text, Ok(codec)));
    }
    let hundredth = Codec::TopK { share: 0.01 };
    assert_eq!(serde_json::to_string(&hundredth).unwrap(), "\"top-k:0.01\"");
    assert_eq!(serde_json::from_str::<Codec>("\"top-k:0.01\"").unwrap(), hundredth);
    for wrong in ["", "F16", "int2", "top-k:", "top-k:0", "top-k:1.1", "top-k:nan", "top-k:-0.1"] {
        assert!(wrong.parse::<Codec>().is_err(), "{wrong}");
    }
}

pub(super) fn codec() -> impl Strategy<Value = Codec> {
    let share = (0.001..=1.0).prop_map(|share| Codec::TopK { share });
    prop_oneof![Just(Codec::None), Just(Codec::F16), Just(Codec::Int8), Just(Codec::Int4), share]
}

/// Tensors of zero to three dimensions, each of its own magnitude.
pub(super) fn update() -> impl Strategy<Value = (Layout, Vec<f32>)> {
    let shape = proptest::collection::vec(0_u64..9, 0..4);
    let tensor = (shape, -30_i32..30, any::<u8>());
    proptest::collection::vec(tensor, 0..12).prop_map(|tensors| {
        let shapes: Vec<&[u64]> = tensors.iter().map(|(shape, ..)| &shape[..]).collect();
        let values = tensors.iter().flat_map(|(shape, power, seed)| {
            normal(shape.iter().product::<u64>() as usize, 10_f32.powi(*power), *seed)
        });
        (layout(&shapes), values.collect())
    })
}

proptest! {
    #[test]
    fn every_update_comes_back((layout, values) in update(), codec in codec(), seed in any::<u8>(), random in any::<bool>()) {
        let rounding = if random { at_random(seed) } else { Rounding::Nearest };
        let (mut container, mut residual) = (Vec::new(), Vec::new());
        let report = Encoder::new(&layout, codec, rounding)
            .residual_to(&mut residual)
            .encode(&file(&layout, &values)[..], &mut container)
            .unwrap();
        prop_assert!(container.len() as u64 <= wire_bytes_max(&layout, codec));
        prop_assert_eq!((report.bytes_in, report.bytes_out), (4 * values.len() as u64, container.len() as u64));
        let back = decoded(&layout, codec, &container).unwrap();
        let lost = values_of(&layout, &residual);
        let mut first = 0;
        for tensor in &layout.tensors {
            let part = first..first + frame::values(tensor) as usize;
            first = part.end;
            let most = largest(&values[part.clone()]);
            let zeros = back[part.clone()].iter().filter(|value| **value == 0.0).count();
            for index in part.clone() {
                let (value, back) = (values[index], back[index]);
                let off = (value - back).abs();
                prop_assert_eq!(value - back, lost[index]);
                match codec {
                    Codec::None => prop_assert_eq!(value.to_bits(), back.to_bits()),
                    Codec::F16 => prop_assert!(off <= value.abs() / 2048.0 + most * 2_f32.powi(-38)),
                    Codec::Int8 => prop_assert!(off <= most / 126.8),
                    Codec::Int4 => prop_assert!(off <= most / 6.99),
                    Codec::TopK { .. } => {
                        prop_assert!(back == 0.0 || off <= value.abs() / 2048.0 + most * 2_f32.powi(-38));
                    }
                }
            }
            if matches!(codec, Codec::TopK { .. }) {
                prop_assert!(part.is_empty() || part.len() - zeros <= codec.kept(part.len()));
            }
        }
    }
}
