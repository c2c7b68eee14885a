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
use serde_json::Value;

pub use error::ParquetError;

use super::columns::{Columns, ContentColumns};
use super::content::{Content, Picture};
use super::error::{DataError, Fault};
use super::image::{ImageFault, MAX_BYTES};
use super::raw::{self, RawRow};
use super::{MAX_TEXT, Place};
use cells::{BytesCells, NameCells};
use open::{Leaf, NameColumn, Part, Table};

/// Calls `each` with the number (counted from 1) and the content of every row in file order, as [`scan`](super::scan) does.
/// Images are not decoded, only too large ones are faults.
///
/// # Errors
/// The file as a whole is unusable.
pub(super) fn scan(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<(), DataError> {
    if columns.needs_lists() {
        return Err(DataError::NeedsLists { path: path.into() });
    }
    let table = Table::open(path)?;
    let leaves = Leaves::of(&table, &columns.content)?;
    let label = columns.label.as_ref().map(|label| table.name(&label.name, "label")).transpose()?;
    let group = columns.group.as_ref().map(|column| table.name(column, "group")).transpose()?;
    let mut row = 0;
    for part in table.row_groups() {
        let part = part?;
        let mut contents = Contents::of(&part, &leaves)?;
        let mut labels = label.as_ref().map(|column| part.names(column)).transpose()?;
        let mut groups = group.as_ref().map(|column| part.names(column)).transpose()?;
        for _ in 0..part.rows() {
            row += 1;
            let content = contents.next(&columns.content)?;
            let label = labels.as_mut().map(|cells| cells.next()).transpose()?;
            let group = groups.as_mut().map(|cells| cells.next()).transpose()?;
            let found =
                content.and_then(|content| raw::labelled(columns, content, label.transpose()?, group.transpose()?));
            each(Place { line: row, start: 0 }, found);
        }
    }
    Ok(())
}

/// The contents of some rows, which are given by number (counted from 1) in ascending order; fewer where the file has
/// become shorter. `None` for one that is not usable any more. Pages that hold none of them are not decompressed.
///
/// # Errors
/// The file as a whole is unusable.
pub(super) fn contents_at(
    path: &Path,
    columns: &ContentColumns,
    rows: &[u64],
) -> Result<Vec<Option<Content>>, DataError> {
    let table = Table::open(path)?;
    let leaves = Leaves::of(&table, columns)?;
    let mut found = Vec::with_capacity(rows.len());
    let mut first = 1;
    for part in table.row_groups() {
        let part = part?;
        let end = first + part.rows();
        if rows.get(found.len()).is_some_and(|row| *row < end) {
            let mut contents = Contents::of(&part, &leaves)?;
            let mut next = first;
            while let Some(row) = rows.get(found.len()).filter(|row| **row < end) {
                contents.skip(row.saturating_sub(next))?;
                found.push(contents.next(columns)?.ok());
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
pub(super) fn class_names(path: &Path, column: &str) -> Result<Option<Vec<String>>, DataError> {
    Ok(classes::of_column(&Table::open(path)?, column)?)
}

/// Whether a column of this name holds images.
///
/// # Errors
/// The file as a whole is unusable.
pub(super) fn holds_images(path: &Path, column: &str) -> Result<bool, DataError> {
    Ok(Table::open(path)?.image(column).is_ok())
}

/// The names of all columns, in their order.
///
/// # Errors
/// The file as a whole is unusable.
pub(super) fn names(path: &Path) -> Result<Vec<String>, DataError> {
    Ok(Table::open(path)?.names())
}

/// The columns of a content.
enum Leaves {
    Image(Leaf),
    Texts(Vec<Leaf>),
    Cells(Vec<NameColumn>),
}

impl Leaves {
    fn of(table: &Table, columns: &ContentColumns) -> Result<Self, ParquetError> {
        Ok(match columns {
            ContentColumns::Image(name) => Self::Image(table.image(name)?),
            ContentColumns::Cells(cells) => {
                Self::Cells(cells.iter().map(|cell| table.cell(&cell.name)).collect::<Result<_, _>>()?)
            }
            texts => {
                let named = texts.named().into_iter();
                Self::Texts(named.map(|(name, role)| table.text(name, role)).collect::<Result<_, _>>()?)
            }
        })
    }
}

/// The cells of a content in one part.
enum Contents<'a> {
    Image(Box<BytesCells<'a>>),
    Texts(Vec<BytesCells<'a>>),
    Cells(Vec<NameCells<'a>>),
}

impl<'a> Contents<'a> {
    fn of(part: &Part<'a>, leaves: &'a Leaves) -> Result<Self, ParquetError> {
        Ok(match leaves {
            Leaves::Image(leaf) => Self::Image(Box::new(part.bytes(*leaf)?)),
            Leaves::Texts(leaves) => {
                Self::Texts(leaves.iter().map(|leaf| part.bytes(*leaf)).collect::<Result<_, _>>()?)
            }
            Leaves::Cells(columns) => {
                Self::Cells(columns.iter().map(|column| part.names(column)).collect::<Result<_, _>>()?)
            }
        })
    }

    fn next(&mut self, columns: &ContentColumns) -> Result<Result<Content, Fault>, ParquetError> {
        // Every column goes on by a row, whatever another one holds.
        let values: Vec<Result<Value, Fault>> = match self {
            Self::Image(cells) => {
                let image = |bytes| Content::Image(Box::new(Picture { bytes, file: None }));
                return Ok(usable_image(cells.next()?).map(image));
            }
            Self::Texts(cells) => {
                let next = |cells: &mut BytesCells<'_>| cells.next().map(text_value);
                cells.iter_mut().map(next).collect::<Result<_, _>>()?
            }
            Self::Cells(cells) => cells.iter_mut().map(NameCells::next).collect::<Result<_, _>>()?,
        };
        let values: Result<Vec<Option<Value>>, Fault> = values.into_iter().map(|value| value.map(Some)).collect();
        Ok(values.and_then(|values| raw::content(columns, &mut values.into_iter())))
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        match self {
            Self::Image(cells) => cells.skip(rows),
            Self::Texts(cells) => cells.iter_mut().try_for_each(|cells| cells.skip(rows)),
            Self::Cells(cells) => cells.iter_mut().try_for_each(|cells| cells.skip(rows)),
        }
    }
}

/// A string as JSON has it.
fn text_value(cell: Option<ByteArray>) -> Result<Value, Fault> {
    match cell {
        None => Ok(Value::Null),
        Some(cell) if cell.len() > MAX_TEXT => Err(Fault::TooLong { bytes: cell.len() }),
        Some(cell) => Ok(std::str::from_utf8(cell.data()).map_err(|_| Fault::NotUtf8)?.into()),
    }
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
