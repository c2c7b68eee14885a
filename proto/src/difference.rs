//! A state sent smaller to who has the one before: the difference between two files of the same size, bit for bit.
//!
//! The aggregator encodes it ([`encode`]), a site that has the file before makes the next one of both ([`decode`]). Both
//! stream: what they hold at once is a few frames. What comes out counts by its digest alone, so a container that was made
//! for another file does no harm.
//!
//! Weights move little in a round: the bits of an F32 read as a whole number move by a small number, whose high bytes are
//! zero. Of normal weights that moved by a hundredth of their deviation 65 % of the bytes are left, by a tenth 77 %, by a
//! ten-thousandth 44 %.
//!
//! # The container, version 1
//! All numbers are little-endian. First the preamble, of 16 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 7 | `ftstate` |
//! | 1 | version, 1 |
//! | 8 | size of each of the two files |
//!
//! Then the frames, and nothing after them. The files are taken whole, header and tensors of whatever type, as words of 32
//! bits; zeros fill the last word. A frame is of the next 65 536 words, the last of those that are left: four parts as in
//! [`crate::delta`], the planes of the lowest bytes of the words' differences, the next, the next, and the highest. The
//! difference of two words is that of the whole numbers they are, modulo 2^32, zigzag: 0, -1, 1, -2 … are written as
//! 0, 1, 2, 3 ….

use std::fmt;
use std::io::{self, Read, Write};

pub use crate::container::PartFault;
use crate::container::shuffle::{join32, split32};
use crate::container::{Counted, NoPart, PartReader, PartWriter, Unread, at_end};

const MAGIC: [u8; 7] = *b"ftstate";
const VERSION: u8 = 1;
const PREAMBLE_BYTES: usize = 16;
const FRAME_WORDS: usize = 1 << 16;
const FRAME_BYTES: u64 = 4 * FRAME_WORDS as u64;

/// What an encoder or a decoder reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The state before.
    Before,
    /// The next state.
    Next,
    /// The encoded difference.
    Container,
}

impl fmt::Display for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Before => "the state before",
            Self::Next => "the next state",
            Self::Container => "the encoded difference",
        })
    }
}

/// A difference cannot be encoded, or a container not decoded.
#[derive(Debug, thiserror::Error)]
pub enum DifferenceError {
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
    /// A state ends early, or goes on after its end.
    #[error("{what} has {} than {expected} bytes", if *longer { "more" } else { "fewer" })]
    Size {
        /// Which state.
        what: Stream,
        /// How many bytes it should have.
        expected: u64,
        /// Whether it has more.
        longer: bool,
    },
    /// The container does not begin as one.
    #[error("the encoded difference begins with {found:02x?}; expected {MAGIC:02x?}")]
    Magic {
        /// Its first bytes.
        found: [u8; 7],
    },
    /// The container has a version that this program does not read.
    #[error(
        "the encoded difference has version {found}; this program reads {VERSION}. Install programs of the same version on both sides"
    )]
    Version {
        /// Its version.
        found: u8,
    },
    /// The container is of states of another size.
    #[error("the encoded difference is of states of {found} bytes; expected {expected}")]
    OtherSize {
        /// The size it is of.
        found: u64,
        /// The size of the states.
        expected: u64,
    },
    /// The container ends early.
    #[error("the encoded difference ends within the {bytes} bytes that begin at byte {byte}; it is truncated")]
    Short {
        /// Where the bytes begin that are not all there.
        byte: u64,
        /// How many they are.
        bytes: u64,
    },
    /// The container goes on after its last frame.
    #[error("the encoded difference goes on at byte {byte}, where it must end")]
    Trailing {
        /// One past its last frame.
        byte: u64,
    },
    /// A frame is not sound.
    #[error("frame {frame} of the encoded difference, at byte {byte}: its part {part} {fault}")]
    Frame {
        /// Which frame, counted from 0.
        frame: u64,
        /// Its first byte.
        byte: u64,
        /// Which part, counted from 0.
        part: usize,
        /// What is wrong with it.
        fault: PartFault,
    },
    /// zstd failed.
    #[error("zstd: {0}")]
    Zstd(io::Error),
}

impl From<Unread> for DifferenceError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Short { byte, bytes } => Self::Short { byte, bytes },
            Unread::Failed(source) => Self::Read { what: Stream::Container, source },
        }
    }
}

/// Encodes the difference between two states of `size` bytes, each read once from its start to its end. Returns the bytes of
/// the container.
///
/// # Errors
/// A state has another size, or a file or stream fails. What has been written by then is of no use.
pub fn encode(
    before: impl Read,
    next: impl Read,
    size: u64,
    mut container: impl Write,
) -> Result<u64, DifferenceError> {
    let (mut before, mut next) = (State::new(Stream::Before, before, size), State::new(Stream::Next, next, size));
    let mut parts = PartWriter::new(FRAME_WORDS).map_err(DifferenceError::Zstd)?;
    let mut planes = [const { Vec::new() }; 4];
    let failed = |source| DifferenceError::Write { what: Stream::Container, source };
    let mut bytes = [&MAGIC[..], &[VERSION], &size.to_le_bytes()].concat();
    let mut written = 0;
    for length in frames(size) {
        let (before, next) = (before.words(length)?, next.words(length)?);
        let differences = before.iter().zip(next).map(|(before, next)| {
            zigzag(u32::from_le_bytes(*next).wrapping_sub(u32::from_le_bytes(*before)).cast_signed())
        });
        split32(differences, &mut planes);
        for plane in &planes {
            parts.put(plane, &mut bytes).map_err(DifferenceError::Zstd)?;
        }
        container.write_all(&bytes).map_err(failed)?;
        written += bytes.len() as u64;
        bytes.clear();
    }
    before.end()?;
    next.end()?;
    container.write_all(&bytes).and_then(|()| container.flush()).map_err(failed)?;
    Ok(written + bytes.len() as u64)
}

/// Makes the next state of `size` bytes of the one before and their difference, each read once from its start to its end;
/// both must end where the streams do. Whether it is the state that is wanted, its digest tells. Returns the bytes of the
/// container.
///
/// Nothing that the container says makes this allocate more than a few frames.
///
/// # Errors
/// The container is not sound, or of states of another size, or a file or stream fails. What has been written by then is of
/// no use.
pub fn decode(
    container: impl Read,
    before: impl Read,
    size: u64,
    mut next: impl Write,
) -> Result<u64, DifferenceError> {
    let mut input = Counted { input: container, at: 0 };
    check_preamble(&mut input, size)?;
    let mut before = State::new(Stream::Before, before, size);
    let mut parts = PartReader::new().map_err(DifferenceError::Zstd)?;
    let mut planes = [const { Vec::new() }; 4];
    let mut bytes = Vec::new();
    for (frame, length) in (0..).zip(frames(size)) {
        let byte = input.at;
        let words = length.div_ceil(4);
        for (part, plane) in planes.iter_mut().enumerate() {
            parts.take(&mut input, words, false, plane).map_err(|error| match error {
                NoPart::Unread(unread) => unread.into(),
                NoPart::Fault(fault) => DifferenceError::Frame { frame, byte, part, fault },
            })?;
        }
        let before = before.words(length)?;
        let words = before.iter().zip(join32(&planes)).map(|(before, difference)| {
            u32::from_le_bytes(*before).wrapping_add(unzigzag(difference).cast_unsigned()).to_le_bytes()
        });
        bytes.clear();
        bytes.extend(words.flatten());
        next.write_all(&bytes[..length]).map_err(|source| DifferenceError::Write { what: Stream::Next, source })?;
    }
    before.end()?;
    if !at_end(&mut input.input).map_err(|source| DifferenceError::Read { what: Stream::Container, source })? {
        return Err(DifferenceError::Trailing { byte: input.at });
    }
    next.flush().map_err(|source| DifferenceError::Write { what: Stream::Next, source })?;
    Ok(input.at)
}

fn check_preamble(input: &mut Counted<impl Read>, expected: u64) -> Result<(), DifferenceError> {
    let mut preamble = [0; PREAMBLE_BYTES];
    input.fill(&mut preamble)?;
    let [m0, m1, m2, m3, m4, m5, m6, version, size @ ..] = preamble;
    let magic = [m0, m1, m2, m3, m4, m5, m6];
    if magic != MAGIC {
        return Err(DifferenceError::Magic { found: magic });
    }
    if version != VERSION {
        return Err(DifferenceError::Version { found: version });
    }
    let found = u64::from_le_bytes(size);
    if found != expected {
        return Err(DifferenceError::OtherSize { found, expected });
    }
    Ok(())
}

/// How many bytes of a state each frame is of.
fn frames(size: u64) -> impl Iterator<Item = usize> {
    (0..size.div_ceil(FRAME_BYTES)).map(move |frame| (size - frame * FRAME_BYTES).min(FRAME_BYTES) as usize)
}

fn zigzag(number: i32) -> u32 {
    ((number << 1) ^ (number >> 31)).cast_unsigned()
}

fn unzigzag(code: u32) -> i32 {
    (code >> 1).cast_signed() ^ -((code & 1).cast_signed())
}

/// A state, read from its first byte to its last.
struct State<R> {
    what: Stream,
    input: R,
    size: u64,
    bytes: Vec<u8>,
}

impl<R: Read> State<R> {
    fn new(what: Stream, input: R, size: u64) -> Self {
        Self { what, input, size, bytes: Vec::new() }
    }

    /// The next bytes as words.
    fn words(&mut self, length: usize) -> Result<&[[u8; 4]], DifferenceError> {
        let Self { what, size, .. } = *self;
        self.bytes.resize(length, 0);
        self.input.read_exact(&mut self.bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => DifferenceError::Size { what, expected: size, longer: false },
            _ => DifferenceError::Read { what, source },
        })?;
        self.bytes.resize(length.next_multiple_of(4), 0);
        Ok(self.bytes.as_chunks().0)
    }

    /// Checks that nothing follows.
    fn end(&mut self) -> Result<(), DifferenceError> {
        let Self { what, size, .. } = *self;
        match at_end(&mut self.input) {
            Ok(true) => Ok(()),
            Ok(false) => Err(DifferenceError::Size { what, expected: size, longer: true }),
            Err(source) => Err(DifferenceError::Read { what, source }),
        }
    }
}

#[cfg(test)]
mod tests;
