//! A Parquet file whose pages are measured before memory is taken for them.
//!
//! The header of a page declares how large it is compressed and not; the reader takes memory for both. A damaged or hostile
//! header would make it take up to 2 GiB.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

/// The largest page, compressed or not, and the largest footer. Writers make pages of about 1 MiB, but some put as many as
/// a thousand values in one, whatever their size.
pub(super) const MAX_PAGE: usize = 256 << 20;
/// The largest page header; with statistics it has a few kilobytes.
const MAX_HEADER: u64 = 1 << 20;
/// How deep structs are nested in a page header; the format has two levels.
const MAX_DEPTH: usize = 6;
/// How deep structs and lists are nested in a footer; the format has nine levels.
const FOOTER_DEPTH: usize = 20;

pub(super) struct Guarded {
    pub(super) file: File,
    /// Where the pages end and the footer begins.
    pub(super) pages_end: u64,
}

impl Length for Guarded {
    fn len(&self) -> u64 {
        Length::len(&self.file)
    }
}

/// Reads from a place on, where a page header may begin.
pub(super) struct Measured {
    input: BufReader<File>,
    /// Where it begins, until the header there is measured.
    unmeasured: Option<u64>,
}

impl Read for Measured {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(start) = self.unmeasured.take() {
            self.input.seek(SeekFrom::Start(start))?;
            check_page(start, self.input.by_ref().take(MAX_HEADER)).map_err(std::io::Error::other)?;
            self.input.seek(SeekFrom::Start(start))?;
        }
        self.input.read(buffer)
    }
}

fn check_page(start: u64, header: impl Read) -> Result<()> {
    let [packed, unpacked] = page_sizes(header)?;
    let most = MAX_PAGE as i64;
    if (0..=most).contains(&packed) && (0..=most).contains(&unpacked) {
        return Ok(());
    }
    Err(ParquetError::General(format!(
        "the page at byte {start} declares {packed} bytes, {unpacked} when decompressed, expected at most {MAX_PAGE}"
    )))
}

impl ChunkReader for Guarded {
    type T = Measured;

    /// Called where a page header begins, and for the footer; also where a page begins whose header was read already,
    /// but then nothing is read of it.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let unmeasured = (start < self.pages_end).then_some(start);
        Ok(Measured { input: self.file.get_read(start)?, unmeasured })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let have = Length::len(self).saturating_sub(start);
        if length > MAX_PAGE || length as u64 > have {
            return Err(ParquetError::General(format!(
                "{length} bytes are declared from byte {start} on, where the file has {have}; at most {MAX_PAGE} are read"
            )));
        }
        self.file.get_bytes(start, length)
    }
}

/// The last `N` bytes of a file.
pub(super) fn tail<const N: usize>(file: &mut File) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::End(-(N as i64)))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The compressed and uncompressed size that a page header declares: fields 3 and 2 of a struct in Thrift's compact
/// protocol. The whole header is gone through, so that no second field of that number can follow.
fn page_sizes(header: impl Read) -> Result<[i64; 2]> {
    let mut header = Thrift(header);
    let (mut sizes, mut last) = ([None, None], 0);
    loop {
        let (kind, id) = header.field(last)?;
        match (kind, id) {
            (STOP, _) => break,
            (_, id) if id <= last => return Err(damaged()),
            (I32, 2) => sizes[1] = Some(header.signed()?),
            (I32, 3) => sizes[0] = Some(header.signed()?),
            _ => header.skip(kind, MAX_DEPTH)?,
        }
        last = id;
    }
    match sizes {
        [Some(packed), Some(unpacked)] => Ok([packed, unpacked]),
        _ => Err(damaged()),
    }
}

/// Checks that a footer has bytes for what it declares and no others, and that its fields are of the types that the reader
/// takes them for, which it does not look at: version, schema, rows, row groups, keys and values, creator, orders of columns,
/// encryption and its key.
pub(super) fn check_footer(footer: impl Read) -> Result<()> {
    const KINDS: [u8; 9] = [I32, LIST, I64, LIST, LIST, BINARY, LIST, STRUCT, BINARY];
    let (mut footer, mut last) = (Thrift(footer), 0);
    loop {
        let (kind, id) = footer.field(last)?;
        if kind == STOP {
            break;
        }
        let expected = usize::try_from(id.wrapping_sub(1)).ok().and_then(|place| KINDS.get(place));
        if expected.is_some_and(|expected| *expected != kind) {
            return Err(damaged());
        }
        footer.skip(kind, FOOTER_DEPTH)?;
        last = id;
    }
    if footer.byte().is_ok() { Err(damaged()) } else { Ok(()) }
}

fn damaged() -> ParquetError {
    ParquetError::General("a page header, or the footer, is damaged".into())
}

const STOP: u8 = 0;
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Thrift's compact protocol, as far as it takes to find the end of a struct.
struct Thrift<R>(R);

impl<R: Read> Thrift<R> {
    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn unsigned(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    /// Zigzag.
    fn signed(&mut self) -> Result<i64> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Type and number of the next field.
    fn field(&mut self, last: i64) -> Result<(u8, i64)> {
        let byte = self.byte()?;
        let id = match byte >> 4 {
            _ if byte == STOP => last,
            0 => self.signed()?,
            more => last.wrapping_add(i64::from(more)),
        };
        Ok((byte & 0x0f, id))
    }

    fn pass(&mut self, bytes: u64) -> Result<()> {
        let passed = std::io::copy(&mut self.0.by_ref().take(bytes), &mut std::io::sink())?;
        if passed == bytes { Ok(()) } else { Err(damaged()) }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(damaged)?;
        match kind {
            // Booleans are in the type.
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=I64 => self.unsigned_or_long(),
            7 => self.pass(8),
            BINARY => {
                let length = self.unsigned()?;
                self.pass(length)
            }
            LIST | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.unsigned()? } else { u64::from(head >> 4) };
                // Of booleans the reader reads no byte of theirs, and goes on as often as is declared; the format has no such
                // lists. Whatever else is in one has a byte at least.
                match head & 0x0f {
                    1 | 2 => Err(damaged()),
                    kind => (0..count).try_for_each(|_| self.skip(kind, depth)),
                }
            }
            STRUCT => {
                let mut last = 0;
                loop {
                    let (kind, id) = self.field(last)?;
                    if kind == STOP {
                        return Ok(());
                    }
                    self.skip(kind, depth)?;
                    last = id;
                }
            }
            _ => Err(damaged()),
        }
    }

    /// A number of any width; 64 bits take ten bytes.
    fn unsigned_or_long(&mut self) -> Result<()> {
        for _ in 0..10 {
            if self.byte()? < 0x80 {
                return Ok(());
            }
        }
        Err(damaged())
    }
}

/// Of a page header in memory, for tests.
#[cfg(test)]
fn sizes_in(header: &[u8]) -> Option<[i64; 2]> {
    page_sizes(header).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_found_and_cannot_be_given_twice() {
        // type 0, uncompressed 100, compressed 60, data page header { 3, 0, 3, 3 }.
        let header = [0x15, 0, 0x15, 200, 1, 0x15, 120, 0x2c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0];
        assert_eq!(sizes_in(&header), Some([60, 100]));
        for end in 0..header.len() {
            assert_eq!(sizes_in(&header[..end]), None);
        }
        // Field 2 again, in the long form.
        let twice = [&header[..17], &[0x05, 4, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0]].concat();
        assert_eq!(sizes_in(&twice), None);
        let huge = [0x15, 0, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0x15, 2, 0];
        assert_eq!(sizes_in(&huge), Some([1, i64::from(i32::MAX)]));
    }

    #[test]
    fn a_footer_has_bytes_for_what_it_declares() {
        // version 2, num_rows 6, a list of three structs that are empty.
        let footer = [0x15, 4, 0x26, 12, 0x19, 0x3c, 0, 0, 0, 0];
        check_footer(&footer[..]).expect("sound");
        for end in 0..footer.len() {
            assert!(check_footer(&footer[..end]).is_err());
        }
        assert!(check_footer(&[&footer[..], &[0]].concat()[..]).is_err(), "what the reader would go on with");
        assert!(check_footer(&[0x15, 4, 0x27, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]).is_err(), "num_rows as a double");
        // Lists of 2^31 - 1 structs and booleans, and of two booleans.
        for list in [&[0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0][..], &[0xf1, 0xff, 0xff, 0xff, 0xff, 0x07], &[0x21, 1, 1]]
        {
            assert!(check_footer(&[&[0x15, 4, 0x19], list, &[0]].concat()[..]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_header_is_measured_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = sizes_in(&bytes);
        }
    }
}
