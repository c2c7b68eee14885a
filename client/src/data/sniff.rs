//! What kind of file it really is, by its ending and its first bytes.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use super::error::DataError;

/// A format of text by its file ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    Jsonl,
}

/// What is found under a path.
pub(super) enum Found {
    Text(Opened),
    Parquet,
    Folder,
}

/// How much of the beginning is looked at.
const HEAD: u64 = 64 << 10;

/// Compressed and binary formats by their first bytes.
const MAGIC: [(&[u8], &str, &str); 8] = [
    (b"\x1f\x8b", "gzip-compressed content", "Decompress it (gunzip)"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet (.xlsx)", "Unpack it, or save the sheet as CSV UTF-8"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed content", "Decompress it (zstd -d)"),
    (b"BZh", "bzip2-compressed content", "Decompress it (bunzip2)"),
    (b"\xfd7zXZ\0", "xz-compressed content", "Decompress it (xz -d)"),
    (b"PAR1", "a Parquet file", "Give it the ending .parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Save the sheet as CSV UTF-8"),
    (b"%PDF", "a PDF document", "Give a CSV, JSONL or Parquet file"),
];

/// An opened file.
pub(super) struct Opened {
    pub(super) format: Format,
    /// Stands at `start`.
    pub(super) file: BufReader<File>,
    /// The first content byte, after a byte-order mark.
    pub(super) start: u64,
}

/// Finds out what it is; opens a file of text and stands at its first content byte.
pub(super) fn open(path: &Path) -> Result<Found, DataError> {
    let read = |source| DataError::Read { path: path.into(), source };
    if path.is_dir() {
        return Ok(Found::Folder);
    }
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    let format = match ending.as_str() {
        "csv" => Format::Csv,
        "jsonl" | "ndjson" => Format::Jsonl,
        "parquet" => return Ok(Found::Parquet),
        _ => {
            // A path that is not there is the likelier mistake.
            std::fs::metadata(path).map_err(read)?;
            return Err(DataError::Ending { path: path.into(), found: ending });
        }
    };
    let mut file = File::open(path).map_err(read)?;
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head).map_err(read)?;
    let start = check(path, &head)?;
    file.seek(std::io::SeekFrom::Start(start)).map_err(read)?;
    Ok(Found::Text(Opened { format, file: BufReader::with_capacity(HEAD as usize, file), start }))
}

/// Refuses what is not text; gives the offset of the first content byte.
fn check(path: &Path, head: &[u8]) -> Result<u64, DataError> {
    let not_text = |found, remedy| Err(DataError::NotText { path: path.into(), found, remedy });
    if let Some((_, found, remedy)) = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return not_text(found, remedy);
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") || looks_utf16(head) {
        return not_text("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)");
    }
    let content = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let text = &head[content..];
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(DataError::Empty { path: path.into() });
    }
    let binary = text.iter().filter(|byte| **byte == 0 || matches!(**byte, 1..=8 | 14..=26)).count();
    // A few such bytes are faults of rows.
    if binary > 4 && binary * 50 > text.len() {
        return not_text("binary content", "Give a CSV, JSONL or Parquet file");
    }
    Ok(content as u64)
}

/// ASCII in UTF-16 without a mark: every other byte is NUL.
fn looks_utf16(head: &[u8]) -> bool {
    let pairs = head.as_chunks::<2>().0;
    let zeros = |place: usize| pairs.iter().filter(|pair| pair[place] == 0 && pair[1 - place] != 0).count();
    pairs.len() >= 2 && zeros(0).max(zeros(1)) * 10 > pairs.len() * 8
}
