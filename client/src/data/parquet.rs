//! Rows of Parquet files, in bounded memory: a page of each needed column and one row.
//!
//! Text and labels stand in columns of their own; an image column is one of bytes, or a struct with the fields `bytes` and
//! `path`, as the `datasets` library writes it with the names of the classes in the file's metadata. Read in this order:
//! [`error`], `guard` (no page may be larger than is reasonable), `open` (a file and its columns), `cells` (one column's
//! values), `classes` (names for label numbers).

mod cells;
mod classes;
pub mod error;
mod guard;
mod open;

use std::path::Path;

use ::parquet::data_type::ByteArray;
use bytes::Bytes;

pub use error::ParquetError;

use super::csv::check_text;
use super::error::{DataError, Fault};
use super::image::{ImageFault, MAX_BYTES};
use super::images::{ImageColumns, RawImage};
use super::{MAX_TEXT, RawRow, Wanted};
use cells::NameCells;
use open::Table;

/// Calls `each` with the number (counted from 1) and the content of every row in file order, as [`scan`](super::scan) does.
///
/// # Errors
/// The file as a whole is unusable.
pub fn scan_text(
    path: &Path,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(u64, Result<RawRow, Fault>),
) -> Result<(), DataError> {
    let table = Table::open(path)?;
    let text = table.text(wanted.text, "text")?;
    let label = wanted.label.map(|column| table.name(column, "label")).transpose()?;
    let group = wanted.group.map(|column| table.name(column, "group")).transpose()?;
    let mut row = 0;
    for group_of_rows in table.row_groups() {
        let part = group_of_rows?;
        let mut texts = part.bytes(text)?;
        let mut labels = label.as_ref().map(|column| part.names(column)).transpose()?;
        let mut groups = group.as_ref().map(|column| part.names(column)).transpose()?;
        for _ in 0..part.rows() {
            row += 1;
            let text = texts.next()?;
            let label = next_name(&mut labels, Fault::EmptyLabel)?;
            let group = next_name(&mut groups, Fault::EmptyGroup)?;
            each(
                row,
                usable_text(wanted.text, text)
                    .and_then(|text| Ok(RawRow { text, label: label.transpose()?, group: group.transpose()? })),
            );
        }
    }
    Ok(())
}

/// Calls `each` with the number (counted from 1) and the encoded image of every row in file order. Images are not decoded,
/// only too large ones are faults.
///
/// # Errors
/// The file as a whole is unusable.
pub fn scan_images(
    path: &Path,
    columns: &ImageColumns,
    each: &mut dyn FnMut(u64, Result<RawImage, Fault>),
) -> Result<(), DataError> {
    let table = Table::open(path)?;
    let image = table.image(&columns.image)?;
    let label = table.name(&columns.label, "label")?;
    let group = columns.group.as_deref().map(|column| table.name(column, "group")).transpose()?;
    let mut row = 0;
    for group_of_rows in table.row_groups() {
        let part = group_of_rows?;
        let mut images = part.bytes(image)?;
        let mut labels = Some(part.names(&label)?);
        let mut groups = group.as_ref().map(|column| part.names(column)).transpose()?;
        for _ in 0..part.rows() {
            row += 1;
            let image = images.next()?;
            let label = next_name(&mut labels, Fault::EmptyLabel)?;
            let group = next_name(&mut groups, Fault::EmptyGroup)?;
            each(
                row,
                usable_image(image).and_then(|bytes| {
                    let label = label.transpose()?.unwrap_or_default();
                    Ok(RawImage { bytes, label, group: group.transpose()? })
                }),
            );
        }
    }
    Ok(())
}

/// The images of some rows, which are given by number (counted from 1) in ascending order; fewer where the file has become
/// shorter. `None` for one that is not usable any more. Pages that hold none of them are not decompressed.
///
/// # Errors
/// The file as a whole is unusable.
pub(super) fn images_at(path: &Path, column: &str, rows: &[u64]) -> Result<Vec<Option<Bytes>>, DataError> {
    let table = Table::open(path)?;
    let column = table.image(column)?;
    let mut found = Vec::with_capacity(rows.len());
    let mut first = 1;
    for part in table.row_groups() {
        let part = part?;
        let end = first + part.rows();
        if rows.get(found.len()).is_some_and(|row| *row < end) {
            let mut images = part.bytes(column)?;
            let mut next = first;
            while let Some(row) = rows.get(found.len()).filter(|row| **row < end) {
                images.skip(row.saturating_sub(next))?;
                found.push(usable_image(images.next()?).ok());
                next = row + 1;
            }
        }
        first = end;
    }
    Ok(found)
}

/// The names of the classes that the numbers of a column stand for, where the file has them.
///
/// # Errors
/// The file as a whole is unusable.
pub fn class_names(path: &Path, column: &str) -> Result<Option<Vec<String>>, DataError> {
    Ok(classes::of_column(&Table::open(path)?, column)?)
}

type Name = Option<Result<String, Fault>>;

fn next_name(cells: &mut Option<NameCells<'_>>, empty: Fault) -> Result<Name, ParquetError> {
    cells.as_mut().map(|cells| cells.next(empty)).transpose()
}

fn usable_text(column: &str, cell: Option<ByteArray>) -> Result<String, Fault> {
    let cell = cell.ok_or_else(|| null(column, "a string"))?;
    if cell.len() > MAX_TEXT {
        return Err(Fault::TooLong { bytes: cell.len() });
    }
    let text = std::str::from_utf8(cell.data()).map_err(|_| Fault::NotUtf8)?;
    check_text(text)?;
    Ok(text.to_owned())
}

fn usable_image(cell: Option<ByteArray>) -> Result<Bytes, Fault> {
    let fault = |fault| Err(Fault::Image { file: None, fault });
    match cell {
        None => fault(ImageFault::Absent),
        Some(cell) if cell.is_empty() => fault(ImageFault::Empty),
        Some(cell) if cell.len() > MAX_BYTES => fault(ImageFault::TooManyBytes { bytes: cell.len() as u64 }),
        // A cell is a part of its page, which need not stay in memory for it.
        Some(cell) => Ok(Bytes::copy_from_slice(cell.data())),
    }
}

fn null(column: &str, expected: &'static str) -> Fault {
    Fault::WrongType { key: column.into(), found: "null", expected }
}
