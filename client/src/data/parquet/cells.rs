//! The values of one column in one part, one after another.

use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};

use super::super::MAX_TEXT;
use super::super::error::Fault;
use super::error::ParquetError;
use super::null;
use super::open::Place;

/// A column of any type. Values are read one by one, since an encoding may make many large ones of a small page.
struct Cells<'a, T: DataType> {
    place: Place<'a>,
    reader: ColumnReaderImpl<T>,
    levels: Vec<i16>,
    values: Vec<T::T>,
}

impl<'a, T: DataType> Cells<'a, T> {
    fn new(place: Place<'a>, reader: ColumnReaderImpl<T>) -> Self {
        Self { place, reader, levels: Vec::new(), values: Vec::new() }
    }

    /// The next value; `None` for a null.
    fn next(&mut self) -> Result<Option<T::T>, ParquetError> {
        self.levels.clear();
        self.values.clear();
        let (records, ..) = self
            .reader
            .read_records(1, Some(&mut self.levels), None, &mut self.values)
            .map_err(|e| self.place.damaged(&e))?;
        if records == 0 {
            return Err(self.place.damaged(&"it has fewer values than the row group declares"));
        }
        Ok(self.values.pop())
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        match self.reader.skip_records(rows).map_err(|e| self.place.damaged(&e))? {
            skipped if skipped == rows => Ok(()),
            _ => Err(self.place.damaged(&"it has fewer values than the row group declares")),
        }
    }
}

/// Strings or other bytes.
pub(super) struct BytesCells<'a>(Cells<'a, ByteArrayType>);

impl<'a> BytesCells<'a> {
    pub(super) fn new(place: Place<'a>, reader: ColumnReaderImpl<ByteArrayType>) -> Self {
        Self(Cells::new(place, reader))
    }

    /// The next value, a part of its page; `None` for a null.
    pub(super) fn next(&mut self) -> Result<Option<ByteArray>, ParquetError> {
        self.0.next()
    }

    pub(super) fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        self.0.skip(rows)
    }
}

/// Whole numbers.
pub(super) struct Numbers<'a>(Width<'a>);

enum Width<'a> {
    Narrow(Cells<'a, Int32Type>),
    Wide(Cells<'a, Int64Type>),
}

impl<'a> Numbers<'a> {
    pub(super) fn narrow(place: Place<'a>, reader: ColumnReaderImpl<Int32Type>) -> Self {
        Self(Width::Narrow(Cells::new(place, reader)))
    }

    pub(super) fn wide(place: Place<'a>, reader: ColumnReaderImpl<Int64Type>) -> Self {
        Self(Width::Wide(Cells::new(place, reader)))
    }

    fn next(&mut self) -> Result<Option<i64>, ParquetError> {
        match &mut self.0 {
            Width::Narrow(cells) => Ok(cells.next()?.map(i64::from)),
            Width::Wide(cells) => cells.next(),
        }
    }
}

/// Labels or groups.
pub(super) enum NameCells<'a> {
    Text { column: &'a str, cells: BytesCells<'a> },
    Number { column: &'a str, cells: Numbers<'a>, classes: Option<&'a [String]> },
}

impl NameCells<'_> {
    /// The next name; a number is the name of its class where the file has names. `empty` is the fault of one without
    /// content.
    pub(super) fn next(&mut self, empty: Fault) -> Result<Result<String, Fault>, ParquetError> {
        match self {
            Self::Text { column, cells } => Ok(text(column, cells.next()?, empty)),
            Self::Number { column, cells, classes } => Ok(match (cells.next()?, *classes) {
                (None, _) => Err(null(column, "a whole number")),
                (Some(number), None) => Ok(number.to_string()),
                (Some(number), Some(classes)) => usize::try_from(number)
                    .ok()
                    .and_then(|place| classes.get(place))
                    .cloned()
                    .ok_or(Fault::LabelNumber { found: number, classes: classes.len() }),
            }),
        }
    }
}

fn text(column: &str, cell: Option<ByteArray>, empty: Fault) -> Result<String, Fault> {
    let cell = cell.ok_or_else(|| null(column, "a string"))?;
    if cell.len() > MAX_TEXT {
        return Err(Fault::TooLong { bytes: cell.len() });
    }
    match std::str::from_utf8(cell.data()).map_err(|_| Fault::NotUtf8)?.trim() {
        "" => Err(empty),
        name if name.contains('\0') => Err(Fault::Nul),
        name => Ok(name.to_owned()),
    }
}
