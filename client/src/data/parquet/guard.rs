//! A Parquet file whose pages are measured before memory is taken for them.
//!
//! The header of a page declares how large it is compressed and not; the reader takes memory for both. A damaged or hostile
//! header would make it take up to 2 GiB.

mod format;
mod thrift;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

use thrift::{Thrift, damaged, shape};

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

/// The compressed and uncompressed size that a page header declares: fields 3 and 2. The whole header is gone through, so
/// that no second field of that number can follow.
fn page_sizes(header: impl Read) -> Result<[i64; 2]> {
    let mut header = Thrift(header);
    let (mut sizes, mut last) = ([None, None], 0);
    while let Some((kind, id)) = header.field(last, format::PAGE)? {
        match id {
            id if id <= last => return Err(damaged()),
            2 => sizes[1] = Some(header.signed()?),
            3 => sizes[0] = Some(header.signed()?),
            _ => header.pass(kind, shape(format::PAGE, id), MAX_DEPTH)?,
        }
        last = id;
    }
    match sizes {
        [Some(packed), Some(unpacked)] => Ok([packed, unpacked]),
        _ => Err(damaged()),
    }
}

/// Checks that a footer has bytes for what it declares and no others, and that its fields are of the types that the reader
/// takes them for.
pub(super) fn check_footer(footer: impl Read) -> Result<()> {
    let mut footer = Thrift(footer);
    footer.fields(format::FOOTER, FOOTER_DEPTH)?;
    if footer.byte().is_ok() { Err(damaged()) } else { Ok(()) }
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
        // A row group whose rows are a list.
        assert!(check_footer(&[0x49, 0x1c, 0x39, 0x1c, 0, 0, 0][..]).is_err());
        check_footer(&[0x49, 0x1c, 0x36, 12, 0, 0][..]).expect("its rows are a number");
        // Key and value as numbers; schema elements as texts.
        assert!(check_footer(&[0x59, 0x1c, 0x16, 2, 0, 0][..]).is_err());
        assert!(check_footer(&[0x29, 0x18, 1, b'a', 0][..]).is_err());
        // A number that has the low bits of 1: 65537, zigzag.
        assert!(check_footer(&[0x09, 0x82, 0x80, 0x08, 0x1c, 0, 0][..]).is_err());
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
