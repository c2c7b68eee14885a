//! Values of one frame to codes, and back.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::frame::{Blocks, EXPONENT_MAX, EXPONENT_MIN, Frame, INT4, INT8};
use super::{Codec, FrameFault, Rounding, sparse};
use crate::container::shuffle;

/// 1.5 · 2^23. Added to a small number it rounds it to a whole one, half to even, and the lowest bits of the sum are that
/// number in two's complement. Where there is no instruction for rounding this is the fast way.
const ROUNDER: f32 = 12_582_912.0;

/// The largest magnitude; not finite if any value is not.
pub(super) fn largest(values: &[f32]) -> f32 {
    // Magnitudes compare as their bits do; signed numbers compare fast on every processor.
    let bits = values.iter().fold(0, |most: i32, value| most.max(value.abs().to_bits() as i32));
    f32::from_bits(bits as u32)
}

/// The power of two that brings magnitudes up to `largest` below 2^15, which leaves a factor of two up to the end of f16.
pub(super) fn exponent(largest: f32) -> i8 {
    if largest == 0.0 {
        return 0;
    }
    let power = (largest.to_bits() >> 23) as i32 - 127 - 14;
    power.clamp(EXPONENT_MIN.into(), EXPONENT_MAX.into()) as i8
}

/// 2^`exponent` for -126..=127.
pub(super) fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Numbers of one frame as f16.
#[derive(Default)]
pub(super) struct Halves {
    bits: Vec<u16>,
    scaled: Vec<f32>,
}

impl Halves {
    /// The low and the high bytes of `values · 2^-exponent`.
    pub(super) fn split(&mut self, values: &[f32], exponent: i8, planes: [&mut Vec<u8>; 2]) {
        let factor = power(-i32::from(exponent));
        self.scaled.clear();
        self.scaled.extend(values.iter().map(|value| value * factor));
        self.bits.resize(values.len(), 0);
        self.bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&self.scaled);
        shuffle::split16(&self.bits, planes);
    }

    /// The values whose low and high bytes these are, as many as there are in `values`. No f16 loses anything here.
    pub(super) fn join(&mut self, planes: [&[u8]; 2], exponent: i8, values: &mut [f32]) {
        shuffle::join16(planes, &mut self.bits);
        self.bits.reinterpret_cast::<f16>().convert_to_f32_slice(values);
        let factor = power(exponent.into());
        values.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Makes codes.
pub(super) struct Quantizer {
    codec: Codec,
    draws: Option<ChaCha8Rng>,
    drawn: Vec<u8>,
    halves: Halves,
    scales: Vec<u16>,
    codes: Vec<u8>,
    selection: sparse::Selection,
}

impl Quantizer {
    pub(super) fn new(codec: Codec, rounding: Rounding) -> Self {
        let draws = match rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic { seed } => Some(ChaCha8Rng::from_seed(seed)),
        };
        Self {
            codec,
            draws,
            drawn: Vec::new(),
            halves: Halves::default(),
            scales: Vec::new(),
            codes: Vec::new(),
            selection: sparse::Selection::default(),
        }
    }

    /// The frame of finite values, of which `largest` is the largest magnitude.
    pub(super) fn quantize(&mut self, values: &[f32], largest: f32, frame: &mut Frame) {
        frame.kept = values.len();
        match self.codec {
            Codec::None => {
                frame.exponent = 0;
                shuffle::split32(values.iter().map(|value| value.to_bits()), &mut frame.parts);
            }
            Codec::F16 => {
                frame.exponent = exponent(largest);
                let [low, high, ..] = &mut frame.parts;
                self.halves.split(values, frame.exponent, [low, high]);
            }
            Codec::Int8 => {
                self.codes(values, largest, INT8, frame);
                std::mem::swap(&mut frame.parts[2], &mut self.codes);
            }
            Codec::Int4 => {
                self.codes(values, largest, INT4, frame);
                pack4(&self.codes, &mut frame.parts[2]);
            }
            Codec::TopK { .. } => {
                frame.exponent = exponent(largest);
                self.selection.select(values, self.codec.kept(values.len()), &mut self.halves, frame);
            }
        }
    }

    /// A code for each value; the scales go into the frame.
    fn codes(&mut self, values: &[f32], largest: f32, Blocks { size, most }: Blocks, frame: &mut Frame) {
        frame.exponent = exponent(largest / f32::from(most));
        let factor = power(frame.exponent.into());
        if let Some(draws) = &mut self.draws {
            self.drawn.resize(4 * values.len(), 0);
            draws.fill_bytes(&mut self.drawn);
        }
        self.scales.clear();
        self.codes.resize(values.len(), 0);
        for (number, (values, codes)) in values.chunks(size).zip(self.codes.chunks_mut(size)).enumerate() {
            let half = scale(self::largest(values), most, frame.exponent);
            self.scales.push(half.to_bits());
            let scale = half.to_f32() * factor;
            // All its values are 0 then.
            let scale = if scale == 0.0 { 1.0 } else { scale };
            if self.draws.is_some() {
                stochastic(values, scale, &self.drawn[4 * number * size..], codes);
            } else {
                nearest(values, scale, codes);
            }
        }
        let [low, high, ..] = &mut frame.parts;
        shuffle::split16(&self.scales, [low, high]);
    }
}

/// `largest / most / 2^exponent`, rounded up to f16.
fn scale(largest: f32, most: u8, exponent: i8) -> f16 {
    let most = f64::from(most);
    let largest = f64::from(largest) * f64::from(power(-i32::from(exponent)));
    let mut scale = f16::from_f64(largest / most);
    // Both sides are exact in f64.
    while scale.to_f64() * most < largest {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    scale
}

fn nearest(values: &[f32], scale: f32, codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value / scale + ROUNDER).to_bits() as u8;
    }
}

/// `⌊x / scale + u⌋` with u uniform in [0, 1), in steps of 2^-24.
fn stochastic(values: &[f32], scale: f32, draws: &[u8], codes: &mut [u8]) {
    for ((code, value), draw) in codes.iter_mut().zip(values).zip(draws.chunks_exact(4)) {
        let draw = u32::from_le_bytes([draw[0], draw[1], draw[2], draw[3]]) >> 8;
        let draw = draw as i32 as f32 * (1.0 / 16_777_216.0);
        let exact = value / scale;
        let near = (exact + ROUNDER) - ROUNDER;
        let below = if near > exact { near - 1.0 } else { near };
        // Not x / scale + u, whose own rounding would favour one side.
        let whole = if draw < exact - below { below + 1.0 } else { below };
        *code = (whole + ROUNDER).to_bits() as u8;
    }
}

/// Codes of four bits, two a byte.
fn pack4(codes: &[u8], packed: &mut Vec<u8>) {
    let (pairs, rest) = codes.as_chunks();
    packed.clear();
    packed.extend(pairs.iter().map(|[low, high]| (low & 15) | (high << 4)));
    packed.extend(rest.iter().map(|code| code & 15));
}

/// The codes of [`pack4`], an even number of them.
fn unpack4(packed: &[u8], codes: &mut Vec<u8>) {
    let wide = |code: u8| (code ^ 8).wrapping_sub(8);
    codes.clear();
    codes.extend(packed.iter().flat_map(|pair| [wide(pair & 15), wide(pair >> 4)]));
}

/// Makes values of codes.
pub(super) struct Dequantizer {
    codec: Codec,
    halves: Halves,
    scales: Vec<u16>,
    codes: Vec<u8>,
    kept: Vec<f32>,
}

impl Dequantizer {
    pub(super) fn new(codec: Codec) -> Self {
        Self { codec, halves: Halves::default(), scales: Vec::new(), codes: Vec::new(), kept: Vec::new() }
    }

    /// The values of a frame whose parts have the sizes of the codec; they are finite.
    pub(super) fn dequantize(&mut self, frame: &Frame, values: &mut [f32]) -> Result<(), FrameFault> {
        let [first, second, third, _] = &frame.parts;
        match self.codec {
            Codec::None => {
                let bits = shuffle::join32(&frame.parts);
                values.iter_mut().zip(bits).for_each(|(value, bits)| *value = f32::from_bits(bits));
            }
            Codec::F16 => self.halves.join([first, second], frame.exponent, values),
            Codec::Int8 => {
                shuffle::join16([first, second], &mut self.scales);
                scaled(third, &self.scales, frame.exponent, INT8, values)?;
            }
            Codec::Int4 => {
                shuffle::join16([first, second], &mut self.scales);
                unpack4(third, &mut self.codes);
                if self.codes[values.len()..].iter().any(|code| *code != 0) {
                    return Err(FrameFault::Code { index: values.len() });
                }
                scaled(&self.codes, &self.scales, frame.exponent, INT4, values)?;
            }
            Codec::TopK { .. } => {
                self.kept.resize(frame.kept, 0.0);
                self.halves.join([first, second], frame.exponent, &mut self.kept);
                sparse::scatter(&self.kept, third, values)?;
            }
        }
        if largest(values).is_finite() {
            return Ok(());
        }
        let index = values.iter().position(|value| !value.is_finite()).unwrap_or_default();
        Err(FrameFault::NotFinite { index })
    }
}

/// Codes times the scales of their blocks.
fn scaled(
    codes: &[u8],
    scales: &[u16],
    exponent: i8,
    Blocks { size, most }: Blocks,
    values: &mut [f32],
) -> Result<(), FrameFault> {
    let forbidden = (most + 1).wrapping_neg();
    if codes.contains(&forbidden) {
        let index = codes.iter().position(|code| *code == forbidden).unwrap_or_default();
        return Err(FrameFault::Code { index });
    }
    let factor = power(exponent.into());
    for (block, ((values, codes), bits)) in values.chunks_mut(size).zip(codes.chunks(size)).zip(scales).enumerate() {
        // From infinity on come NaN and the negative ones.
        if *bits >= f16::INFINITY.to_bits() {
            return Err(FrameFault::Scale { block, bits: *bits });
        }
        let scale = f16::from_bits(*bits).to_f32() * factor;
        for (value, code) in values.iter_mut().zip(codes) {
            *value = f32::from(*code as i8) * scale;
        }
    }
    Ok(())
}
