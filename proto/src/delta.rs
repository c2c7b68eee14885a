//! Updates sent smaller: `after - before` of a state, as codes that follow its tensors in a container.
//!
//! A site encodes its update ([`Encoder`]), the aggregator decodes it to a plain F32 safetensors file ([`decode`]). Both
//! stream: what they hold at once is a few frames, whatever the size of the model. What is encoded are differences, never
//! weights, whose rounding would swallow them.
//!
//! | codec | what is kept | bytes a value | relative L2 error, normal noise |
//! |---|---|---|---|
//! | `none` | everything | 3.4 | 0 |
//! | `f16` | each value as f16, times a power of two of its frame | 1.7 | 2e-4 |
//! | `int8` | codes -127..=127 times a scale for 256 values | 0.94 | 0.010 |
//! | `int4` | codes -7..=7 times a scale for 64 values | 0.46 | 0.15 |
//! | `top-k` | the largest tenth of a frame as f16, the rest is 0 | 0.21 | 0.75 |
//!
//! # The container, version 1
//! All numbers are little-endian. First the preamble, of 57 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 7 | `ftdelta` |
//! | 1 | version, 1 |
//! | 1 | codec: 0 `none`, 1 `f16`, 2 `int8`, 3 `int4`, 4 `top-k` |
//! | 8 | share that `top-k` keeps, f64; 0 for others |
//! | 8 | number of values |
//! | 32 | BLAKE3 of the tensors: their number, then of each the length of its name, its name, the number of its dimensions, its dimensions (numbers as u64) |
//!
//! Then the frames, and nothing after them. A frame holds up to 65 536 values of one tensor; those of a tensor follow each
//! other, and the tensors lie as in the layout. How many frames there are, and of how many values, follows from the layout:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | number of the frame, counted from 0, modulo 2^32 |
//! | 4 | values kept, `k`: all of the frame, or at most `ceil(share · values)` for `top-k` |
//! | 1 | exponent `e`, i8, -125..=113: what is stored as f16 counts 2^e; 0 for `none` |
//! | | the parts of the codec |
//!
//! A part is a `u32` and bytes: where the highest bit is set the other 31 say how many bytes follow as they are, else how
//! many bytes of a zstd frame, which must be fewer than the part has. Parts, with `n` values in the frame:
//!
//! | codec | parts |
//! |---|---|
//! | `none` | four planes of `n` bytes: the lowest bytes of the values as f32, the next, the next, the highest |
//! | `f16` | low bytes and high bytes of the values as f16, `n` bytes each |
//! | `int8` | low bytes and high bytes of the scales of blocks of 256, as f16; codes, one byte each |
//! | `int4` | low bytes and high bytes of the scales of blocks of 64, as f16; codes, two's complement, two a byte, the first in the low half |
//! | `top-k` | low bytes and high bytes of the kept values as f16, `k` bytes each; their places in rising order, each as the number of places passed over since the one before, LEB128 |
//!
//! A scale is `max|x| / m`, rounded up to f16 so that no `|x / scale|` exceeds `m` = 127 or 7. Codes round at random, up with
//! the probability of the fraction ([`Rounding::Stochastic`]): the expected value is the value, so errors of several sites
//! cancel. Powers of two belong to frames and not to whole tensors, so that a file is read once.

mod decode;
mod encode;
mod frame;
mod quantize;
mod sparse;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::container::Unread;
use crate::layout::Layout;

pub use crate::container::PartFault;
pub use decode::{Decoded, decode};
pub use encode::{Encoded, Encoder, Rounding};

/// How an update is encoded. Written as `none`, `f16`, `int8`, `int4`, `top-k` (a tenth) or `top-k:0.01`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Codec {
    /// F32, bit for bit.
    None,
    /// F16 with a power of two a frame.
    F16,
    /// Eight bits a value, with a scale for 256.
    Int8,
    /// Four bits a value, with a scale for 64.
    Int4,
    /// The values of largest magnitude in each frame of at most 65 536 values; the others count as 0.
    TopK {
        /// The share of values kept, above 0 and at most 1.
        share: f64,
    },
}

/// A text that is not a codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {0:?}; expected none, f16, int8, int4, top-k, or top-k:SHARE with a share above 0 and at most 1")]
pub struct NotACodec(String);

impl Codec {
    /// The share of values that `top-k` keeps unless told.
    pub const SHARE: f64 = 0.1;

    fn is_sound(self) -> bool {
        match self {
            Self::TopK { share } => share > 0.0 && share <= 1.0,
            _ => true,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("none"),
            Self::F16 => out.write_str("f16"),
            Self::Int8 => out.write_str("int8"),
            Self::Int4 => out.write_str("int4"),
            Self::TopK { share } if *share == Self::SHARE => out.write_str("top-k"),
            Self::TopK { share } => write!(out, "top-k:{share}"),
        }
    }
}

impl FromStr for Codec {
    type Err = NotACodec;
    fn from_str(text: &str) -> Result<Self, NotACodec> {
        let codec = match text {
            "none" => Some(Self::None),
            "f16" => Some(Self::F16),
            "int8" => Some(Self::Int8),
            "int4" => Some(Self::Int4),
            "top-k" => Some(Self::TopK { share: Self::SHARE }),
            _ => text
                .strip_prefix("top-k:")
                .and_then(|share| share.parse().ok())
                .map(|share| Self::TopK { share })
                .filter(|codec| codec.is_sound()),
        };
        codec.ok_or_else(|| NotACodec(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Codec {
    type Error = NotACodec;
    fn try_from(text: String) -> Result<Self, NotACodec> {
        text.parse()
    }
}

impl From<Codec> for String {
    fn from(codec: Codec) -> Self {
        codec.to_string()
    }
}

/// The largest size in bytes that a sound container of this layout can have.
pub fn wire_bytes_max(layout: &Layout, codec: Codec) -> u64 {
    frame::container_bytes_max(layout, codec)
}

/// An update cannot be encoded, or a container not decoded.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// A file or a stream cannot be read.
    #[error("{what} cannot be read: {source}")]
    Read {
        /// What was read.
        what: Stream,
        /// What the system said.
        source: io::Error,
    },
    /// A file or a stream cannot be written.
    #[error("{what} cannot be written: {source}")]
    Write {
        /// What was written.
        what: Stream,
        /// What the system said.
        source: io::Error,
    },
    /// A file of values is not the safetensors file that is expected.
    #[error("{what} is not a safetensors file of the state's tensors: {reason}")]
    File {
        /// Which file.
        what: Stream,
        /// What was found and what was expected.
        reason: String,
    },
    /// The state has a tensor that is no F32.
    #[error("tensor {tensor:?} is {dtype}; only F32 can be encoded")]
    Type {
        /// Its name.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// The share of `top-k` is none.
    #[error("top-k keeps the share {0}; expected one above 0 and at most 1")]
    Share(f64),
    /// A value to be encoded is NaN or infinite.
    #[error(
        "value {index} of tensor {tensor:?} is {value}, in the update or with the earlier residual added; expected a finite number. The training that made it diverged, or the residual belongs to another job"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Which of its values, counted from 0.
        index: u64,
        /// What it is.
        value: f32,
    },
    /// A value to be encoded rounds up to infinity.
    #[error(
        "tensor {tensor:?} has values too large for {codec}; only none carries magnitudes near the end of F32's range"
    )]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// The codec.
        codec: Codec,
    },
    /// The container does not begin as one.
    #[error("the container begins with {found:02x?}; expected {expected:02x?}", expected = frame::MAGIC)]
    Magic {
        /// Its first bytes.
        found: [u8; 7],
    },
    /// The container has a version that this program does not read.
    #[error("the container has version {found}; this program reads {expected}. Install programs of the same version on both sides", expected = frame::VERSION)]
    Version {
        /// Its version.
        found: u8,
    },
    /// The container is of another codec than the job's.
    #[error("the container is of codec number {tag} with the share {share}; expected {expected}")]
    OtherCodec {
        /// The number of its codec.
        tag: u8,
        /// Its share.
        share: f64,
        /// The codec of the job.
        expected: Codec,
    },
    /// The container is of other tensors than the job's.
    #[error(
        "the container is of other tensors: it has {found} values where the state has {expected}, or other names or shapes. Was it made for another job?"
    )]
    OtherTensors {
        /// Its number of values.
        found: u64,
        /// That of the state.
        expected: u64,
    },
    /// The container ends early.
    #[error("the container ends within the {bytes} bytes that begin at byte {byte}; it is truncated")]
    Short {
        /// Where the bytes begin that are not all there.
        byte: u64,
        /// How many they are.
        bytes: u64,
    },
    /// The container goes on after its last frame.
    #[error("the container goes on at byte {byte}, where it must end")]
    Trailing {
        /// One past its last frame.
        byte: u64,
    },
    /// A frame is not sound.
    #[error("frame {frame} of the container, at byte {byte}, in tensor {tensor:?}: {fault}")]
    Frame {
        /// Which frame, counted from 0.
        frame: u64,
        /// Its first byte.
        byte: u64,
        /// The tensor that its values are of.
        tensor: String,
        /// What is wrong with it.
        fault: FrameFault,
    },
    /// zstd failed.
    #[error("zstd: {0}")]
    Zstd(io::Error),
}

impl From<Unread> for DeltaError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Short { byte, bytes } => Self::Short { byte, bytes },
            Unread::Failed(source) => Self::Read { what: Stream::Container, source },
        }
    }
}

/// What an encoder or a decoder reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The values to encode.
    Update,
    /// What an earlier encoding lost.
    Earlier,
    /// What this encoding loses.
    Residual,
    /// The encoded update.
    Container,
    /// The values decoded.
    Decoded,
}

impl fmt::Display for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Update => "the update",
            Self::Earlier => "the residual of earlier rounds",
            Self::Residual => "the residual",
            Self::Container => "the encoded update",
            Self::Decoded => "the decoded update",
        })
    }
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FrameFault {
    /// It is not its turn.
    #[error("it has the number {found}; expected {expected}")]
    Order {
        /// Its number.
        found: u32,
        /// The number that comes next.
        expected: u32,
    },
    /// It keeps another number of values than the codec can.
    #[error("it keeps {found} values; expected {expected}")]
    Kept {
        /// How many.
        found: u32,
        /// What the codec keeps, or for `top-k` the most.
        expected: u32,
    },
    /// Its exponent is out of range.
    #[error("its exponent is {0}; expected -125 to 113, and 0 for none")]
    Exponent(i8),
    /// A part is not sound.
    #[error("its part {part} {fault}")]
    Part {
        /// Which part, counted from 0.
        part: usize,
        /// What is wrong with it.
        fault: PartFault,
    },
    /// A scale is negative, infinite or NaN.
    #[error("the scale of its block {block} has the bits {bits:#06x}; expected a finite f16 that is not negative")]
    Scale {
        /// Which block, counted from 0.
        block: usize,
        /// The bits of the scale.
        bits: u16,
    },
    /// A code is out of range.
    #[error("its code {index} is out of range")]
    Code {
        /// Which code, counted from 0.
        index: usize,
    },
    /// A place is out of range, or not written as it must be.
    #[error("its place {index} is out of range, unreadable or missing, or bytes follow the last")]
    Place {
        /// Which place, counted from 0.
        index: usize,
    },
    /// A value is infinite or NaN.
    #[error("its value {index} is not finite")]
    NotFinite {
        /// Which value of the frame, counted from 0.
        index: usize,
    },
}
