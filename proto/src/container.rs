//! What the containers of [`crate::delta`] and [`crate::difference`] are made of: parts of frames, planes of bytes, and a
//! reader that counts.

pub(crate) mod shuffle;

use std::io::{self, Read};

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

const STORED: u32 = 1 << 31;
const ZSTD_LEVEL: i32 = 3;

/// What is wrong with a part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartFault {
    /// It claims too many bytes, or too few.
    #[error("claims {found} bytes; expected {expected}{}", if *packed { " at most, compressed" } else { "" })]
    Length {
        /// Bytes claimed.
        found: u32,
        /// Bytes of the part, or the most it can have.
        expected: u32,
        /// Whether they are compressed.
        packed: bool,
    },
    /// It does not decompress to its size.
    #[error("does not decompress to {expected} bytes: {reason}")]
    Packed {
        /// Bytes of the part, or the most it can have.
        expected: u32,
        /// What zstd said, or how many bytes came.
        reason: String,
    },
}

/// Bytes of a container that did not come.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It ends within the bytes that begin there.
    Short {
        /// Where they begin.
        byte: u64,
        /// How many they are.
        bytes: u64,
    },
    /// It cannot be read.
    Failed(io::Error),
}

/// A part that did not come.
#[derive(Debug)]
pub(crate) enum NoPart {
    Unread(Unread),
    Fault(PartFault),
}

impl From<Unread> for NoPart {
    fn from(unread: Unread) -> Self {
        Self::Unread(unread)
    }
}

/// A container as it is read, and how far.
pub(crate) struct Counted<R> {
    pub(crate) input: R,
    pub(crate) at: u64,
}

impl<R: Read> Counted<R> {
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Unread> {
        self.input.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Unread::Short { byte: self.at, bytes: bytes.len() as u64 },
            _ => Unread::Failed(source),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Whether nothing more comes.
pub(crate) fn at_end(input: &mut impl Read) -> io::Result<bool> {
    loop {
        match input.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read.map(|read| read == 0),
        }
    }
}

/// Writes parts of so many bytes at most.
pub(crate) struct PartWriter {
    zstd: Compressor<'static>,
    packed: Vec<u8>,
}

impl PartWriter {
    pub(crate) fn new(most: usize) -> io::Result<Self> {
        Ok(Self { zstd: Compressor::new(ZSTD_LEVEL)?, packed: vec![0; compress_bound(most)] })
    }

    /// Adds a part to `bytes`, compressed where that is shorter.
    pub(crate) fn put(&mut self, part: &[u8], bytes: &mut Vec<u8>) -> io::Result<()> {
        let length = self.zstd.compress_to_buffer(part, &mut self.packed[..])?;
        if length < part.len() {
            bytes.extend((length as u32).to_le_bytes());
            bytes.extend(&self.packed[..length]);
        } else {
            bytes.extend((part.len() as u32 | STORED).to_le_bytes());
            bytes.extend(part);
        }
        Ok(())
    }
}

/// Reads parts. Every length is checked before a byte is read or unpacked into memory of that length.
pub(crate) struct PartReader {
    zstd: Decompressor<'static>,
    pub(crate) packed: Vec<u8>,
}

impl PartReader {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { zstd: Decompressor::new()?, packed: Vec::new() })
    }

    /// The next part, of `size` bytes, or of at most so many if it is `open`.
    pub(crate) fn take<R: Read>(
        &mut self,
        input: &mut Counted<R>,
        size: usize,
        open: bool,
        part: &mut Vec<u8>,
    ) -> Result<(), NoPart> {
        let mut prefix = [0; 4];
        input.fill(&mut prefix)?;
        let prefix = u32::from_le_bytes(prefix);
        let (length, packed) = ((prefix & !STORED) as usize, prefix & STORED == 0);
        let sound = if packed { length < size } else { length == size || (open && length < size) };
        if !sound {
            let expected = if packed { size.saturating_sub(1) } else { size } as u32;
            return Err(NoPart::Fault(PartFault::Length { found: length as u32, expected, packed }));
        }
        if !packed {
            part.resize(length, 0);
            return Ok(input.fill(part)?);
        }
        self.packed.resize(length, 0);
        input.fill(&mut self.packed)?;
        part.resize(size, 0);
        let broken = |reason| NoPart::Fault(PartFault::Packed { expected: size as u32, reason });
        let unpacked =
            self.zstd.decompress_to_buffer(&self.packed, &mut part[..]).map_err(|error| broken(error.to_string()))?;
        if unpacked != size && !open {
            return Err(broken(format!("it has {unpacked}")));
        }
        part.truncate(unpacked);
        Ok(())
    }
}
