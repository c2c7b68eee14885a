//! Files of values: safetensors files of F32 tensors, read and written in pieces.

use std::io::{self, Read, Write};

use super::{DeltaError, Stream};
use crate::container::at_end;
use crate::layout::{HEADER_BYTES_MAX, Layout};

/// A file of values, read from its first byte to its last.
pub(super) struct ValuesReader<R> {
    what: Stream,
    input: R,
    bytes: Vec<u8>,
}

impl<R: Read> ValuesReader<R> {
    /// Reads the header and checks that the tensors are those of the layout.
    pub(super) fn open(what: Stream, input: R, layout: &Layout) -> Result<Self, DeltaError> {
        let mut reader = Self { what, input, bytes: Vec::new() };
        let wrong = |reason| DeltaError::File { what, reason };
        let mut prefix = [0; 8];
        reader.fill(&mut prefix)?;
        let length = u64::from_le_bytes(prefix);
        if length > HEADER_BYTES_MAX {
            return Err(wrong(format!("its header claims {length} bytes; expected at most {HEADER_BYTES_MAX}")));
        }
        let mut header = Vec::new();
        let read = (&mut reader.input).take(length).read_to_end(&mut header);
        read.map_err(|source| DeltaError::Read { what, source })?;
        if (header.len() as u64) < length {
            return Err(wrong(format!("its header claims {length} bytes and has {}; it is truncated", header.len())));
        }
        let expected = 8 + length + (layout.file_bytes - layout.data_start);
        let found = Layout::parse(&header, expected).map_err(|reason| {
            wrong(format!("as a file of {expected} bytes, which they would make, it is wrong: {reason}"))
        })?;
        layout.same_tensors(&found).map_err(|reason| wrong(reason.to_string()))?;
        Ok(reader)
    }

    /// The next values.
    pub(super) fn read(&mut self, values: &mut [f32]) -> Result<(), DeltaError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(4 * values.len(), 0);
        self.fill(&mut bytes)?;
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Checks that nothing follows.
    pub(super) fn finish(mut self) -> Result<(), DeltaError> {
        if at_end(&mut self.input).map_err(|source| DeltaError::Read { what: self.what, source })? {
            return Ok(());
        }
        Err(DeltaError::File { what: self.what, reason: "it goes on after its last tensor".into() })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DeltaError> {
        let what = self.what;
        self.input.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                DeltaError::File { what, reason: "it ends before its last tensor does; it is truncated".into() }
            }
            _ => DeltaError::Read { what, source },
        })
    }
}

/// A file of values, written from its first byte to its last.
pub(super) struct ValuesWriter<W> {
    what: Stream,
    output: W,
    bytes: Vec<u8>,
}

impl<W: Write> ValuesWriter<W> {
    /// Writes the header.
    pub(super) fn create(what: Stream, output: W, layout: &Layout) -> Result<Self, DeltaError> {
        let mut writer = Self { what, output, bytes: layout.header() };
        writer.put()?;
        Ok(writer)
    }

    /// Writes the next values.
    pub(super) fn write(&mut self, values: &[f32]) -> Result<(), DeltaError> {
        self.bytes.clear();
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.put()
    }

    /// Hands over what has been kept back.
    pub(super) fn finish(mut self) -> Result<(), DeltaError> {
        self.output.flush().map_err(|source| DeltaError::Write { what: self.what, source })
    }

    fn put(&mut self) -> Result<(), DeltaError> {
        self.output.write_all(&self.bytes).map_err(|source| DeltaError::Write { what: self.what, source })
    }
}
