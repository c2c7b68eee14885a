//! The container's preamble, which frames it has, and how the parts of a frame are written and read.

use std::io::Read;

use super::{Codec, DeltaError, FrameFault};
pub(super) use crate::container::Counted;
use crate::container::{NoPart, PartReader, PartWriter};
use crate::layout::{Layout, TensorEntry};

pub(super) const MAGIC: [u8; 7] = *b"ftdelta";
pub(super) const VERSION: u8 = 1;
/// The most values in a frame. Their places must fit in three bytes of LEB128.
pub(super) const FRAME_VALUES: usize = 1 << 16;
/// The smallest exponent: 2^-24, the smallest f16, times it is still an f32 without loss.
pub(super) const EXPONENT_MIN: i8 = -125;
/// The largest exponent: 2^14, to which the largest magnitudes are brought, times it is the largest power of two in f32.
pub(super) const EXPONENT_MAX: i8 = 113;

/// Codes with a scale for each block of so many values.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub(super) size: usize,
    /// The largest code; the smallest is its negative.
    pub(super) most: u8,
}

pub(super) const INT8: Blocks = Blocks { size: 256, most: 127 };
pub(super) const INT4: Blocks = Blocks { size: 64, most: 7 };

impl Blocks {
    fn count(self, values: usize) -> usize {
        values.div_ceil(self.size)
    }
}

const PREAMBLE_BYTES: usize = 57;
const HEAD_BYTES: usize = 9;

impl Codec {
    fn tag(self) -> u8 {
        match self {
            Self::None => 0,
            Self::F16 => 1,
            Self::Int8 => 2,
            Self::Int4 => 3,
            Self::TopK { .. } => 4,
        }
    }

    fn share(self) -> f64 {
        if let Self::TopK { share } = self { share } else { 0.0 }
    }

    /// How many of `values` values are kept, or the most that may be.
    pub(super) fn kept(self, values: usize) -> usize {
        match self {
            Self::TopK { share } => ((share * values as f64).ceil() as usize).clamp(1, values.max(1)),
            _ => values,
        }
    }

    /// The size in bytes of each part of a frame of `values` values that keeps `kept`, and whether it is but the largest.
    fn parts(self, values: usize, kept: usize) -> impl Iterator<Item = (usize, bool)> {
        let (sizes, parts) = match self {
            Self::None => ([values; 4], 4),
            Self::F16 => ([values, values, 0, 0], 2),
            Self::Int8 => ([INT8.count(values), INT8.count(values), values, 0], 3),
            Self::Int4 => ([INT4.count(values), INT4.count(values), values.div_ceil(2), 0], 3),
            // A place is one byte; a second and a third stand for at least 128 and 16 384 places passed over.
            Self::TopK { .. } if kept == 0 => ([0; 4], 3),
            Self::TopK { .. } => ([kept, kept, kept + (values >> 7) + (values >> 14), 0], 3),
        };
        let open = matches!(self, Self::TopK { .. });
        sizes.into_iter().take(parts).enumerate().map(move |(part, size)| (size, open && part == 2))
    }

    fn frame_bytes_max(self, values: usize) -> u64 {
        let parts = self.parts(values, self.kept(values)).map(|(size, _)| 4 + size as u64);
        HEAD_BYTES as u64 + parts.sum::<u64>()
    }
}

/// How many values a tensor of F32 has.
pub(super) fn values(tensor: &TensorEntry) -> u64 {
    tensor.end.saturating_sub(tensor.start) / 4
}

/// Checks what both sides rely on: tensors of F32 alone, and a share that is one.
pub(super) fn check(layout: &Layout, codec: Codec) -> Result<(), DeltaError> {
    if !codec.is_sound() {
        return Err(DeltaError::Share(codec.share()));
    }
    match layout.tensors.iter().find(|tensor| tensor.dtype != "F32") {
        Some(tensor) => Err(DeltaError::Type { tensor: tensor.name.clone(), dtype: tensor.dtype.clone() }),
        None => Ok(()),
    }
}

pub(super) fn container_bytes_max(layout: &Layout, codec: Codec) -> u64 {
    layout.tensors.iter().map(values).fold(PREAMBLE_BYTES as u64, |sum, values| {
        let (whole, rest) = (values / FRAME_VALUES as u64, (values % FRAME_VALUES as u64) as usize);
        let rest = if rest > 0 { codec.frame_bytes_max(rest) } else { 0 };
        sum.saturating_add(whole.saturating_mul(codec.frame_bytes_max(FRAME_VALUES))).saturating_add(rest)
    })
}

/// The preamble of a container of this layout.
pub(super) fn preamble(layout: &Layout, codec: Codec) -> [u8; PREAMBLE_BYTES] {
    let mut hasher = blake3::Hasher::new();
    let number = |hasher: &mut blake3::Hasher, number: u64| {
        hasher.update(&number.to_le_bytes());
    };
    number(&mut hasher, layout.tensors.len() as u64);
    for tensor in &layout.tensors {
        number(&mut hasher, tensor.name.len() as u64);
        hasher.update(tensor.name.as_bytes());
        number(&mut hasher, tensor.shape.len() as u64);
        tensor.shape.iter().for_each(|dim| number(&mut hasher, *dim));
    }
    let total: u64 = layout.tensors.iter().map(values).sum();
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..7].copy_from_slice(&MAGIC);
    bytes[7] = VERSION;
    bytes[8] = codec.tag();
    bytes[9..17].copy_from_slice(&codec.share().to_le_bytes());
    bytes[17..25].copy_from_slice(&total.to_le_bytes());
    bytes[25..].copy_from_slice(hasher.finalize().as_bytes());
    bytes
}

/// Checks that a container begins as one of this layout and codec does.
pub(super) fn check_preamble<R: Read>(input: &mut Counted<R>, layout: &Layout, codec: Codec) -> Result<(), DeltaError> {
    let expected = preamble(layout, codec);
    let mut found = [0; PREAMBLE_BYTES];
    input.fill(&mut found)?;
    let eight = |bytes: &[u8; PREAMBLE_BYTES], from: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[from..from + 8]);
        eight
    };
    if found[..7] != MAGIC {
        let mut start = [0; 7];
        start.copy_from_slice(&found[..7]);
        return Err(DeltaError::Magic { found: start });
    }
    if found[7] != VERSION {
        return Err(DeltaError::Version { found: found[7] });
    }
    if found[8..17] != expected[8..17] {
        let share = f64::from_le_bytes(eight(&found, 9));
        return Err(DeltaError::OtherCodec { tag: found[8], share, expected: codec });
    }
    if found[17..] != expected[17..] {
        let total = |bytes| u64::from_le_bytes(eight(bytes, 17));
        return Err(DeltaError::OtherTensors { found: total(&found), expected: total(&expected) });
    }
    Ok(())
}

/// Where a frame belongs.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Which frame, counted from 0.
    pub(super) frame: u64,
    /// The tensor.
    pub(super) tensor: &'a TensorEntry,
    /// Its first value, counted from the tensor's first.
    pub(super) first: u64,
    /// Its number of values: at most [`FRAME_VALUES`], at least one.
    pub(super) values: usize,
}

/// Every frame of a layout, in order.
pub(super) fn places(layout: &Layout) -> impl Iterator<Item = Place<'_>> {
    let of_tensor = |tensor| {
        let total = values(tensor);
        (0..total)
            .step_by(FRAME_VALUES)
            .map(move |first| (tensor, first, (total - first).min(FRAME_VALUES as u64) as usize))
    };
    let all = layout.tensors.iter().flat_map(of_tensor);
    (0..).zip(all).map(|(frame, (tensor, first, values))| Place { frame, tensor, first, values })
}

/// What a frame says of its values.
#[derive(Default)]
pub(super) struct Frame {
    pub(super) exponent: i8,
    pub(super) kept: usize,
    pub(super) parts: [Vec<u8>; 4],
}

/// Writes frames.
pub(super) struct Packer {
    parts: PartWriter,
}

impl Packer {
    pub(super) fn new() -> Result<Self, DeltaError> {
        Ok(Self { parts: PartWriter::new(FRAME_VALUES).map_err(DeltaError::Zstd)? })
    }

    /// Puts the bytes of a frame in `bytes`.
    pub(super) fn pack(
        &mut self,
        frame: &Frame,
        at: Place<'_>,
        codec: Codec,
        bytes: &mut Vec<u8>,
    ) -> Result<(), DeltaError> {
        bytes.clear();
        bytes.extend((at.frame as u32).to_le_bytes());
        bytes.extend((frame.kept as u32).to_le_bytes());
        bytes.extend(frame.exponent.to_le_bytes());
        for (part, _) in frame.parts.iter().zip(codec.parts(at.values, frame.kept)) {
            self.parts.put(part, bytes).map_err(DeltaError::Zstd)?;
        }
        Ok(())
    }
}

/// Reads frames. Every length is checked before a byte is read or unpacked into memory of that length.
pub(super) struct Unpacker {
    pub(super) parts: PartReader,
}

impl Unpacker {
    pub(super) fn new() -> Result<Self, DeltaError> {
        Ok(Self { parts: PartReader::new().map_err(DeltaError::Zstd)? })
    }

    /// Reads the next frame, which must be the one that belongs `at` this place.
    pub(super) fn unpack<R: Read>(
        &mut self,
        input: &mut Counted<R>,
        at: Place<'_>,
        codec: Codec,
        frame: &mut Frame,
    ) -> Result<(), DeltaError> {
        let byte = input.at;
        let refuse = |fault| refused(at, byte, fault);
        let mut head = [0; HEAD_BYTES];
        input.fill(&mut head)?;
        let [n0, n1, n2, n3, k0, k1, k2, k3, exponent] = head;
        let (found, expected) = (u32::from_le_bytes([n0, n1, n2, n3]), at.frame as u32);
        if found != expected {
            return Err(refuse(FrameFault::Order { found, expected }));
        }
        let (found, expected) = (u32::from_le_bytes([k0, k1, k2, k3]), codec.kept(at.values) as u32);
        let fewer = matches!(codec, Codec::TopK { .. });
        if found > expected || (found < expected && !fewer) {
            return Err(refuse(FrameFault::Kept { found, expected }));
        }
        frame.kept = found as usize;
        frame.exponent = i8::from_le_bytes([exponent]);
        let exponents = if codec == Codec::None { 0..=0 } else { EXPONENT_MIN..=EXPONENT_MAX };
        if !exponents.contains(&frame.exponent) {
            return Err(refuse(FrameFault::Exponent(frame.exponent)));
        }
        let Frame { kept, parts, .. } = frame;
        for (number, (part, (size, open))) in parts.iter_mut().zip(codec.parts(at.values, *kept)).enumerate() {
            self.parts.take(input, size, open, part).map_err(|error| match error {
                NoPart::Unread(unread) => unread.into(),
                NoPart::Fault(fault) => refuse(FrameFault::Part { part: number, fault }),
            })?;
        }
        Ok(())
    }
}

pub(super) fn refused(at: Place<'_>, byte: u64, fault: FrameFault) -> DeltaError {
    DeltaError::Frame { frame: at.frame, byte, tensor: at.tensor.name.clone(), fault }
}
