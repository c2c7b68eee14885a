//! The values of one column in one part, one after another.

use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use serde_json::Value;

use super::super::error::Fault;
use super::error::ParquetError;
use super::open::Place;
use super::text_value;

/// A column of any type. Values are read one by one, since an encoding may make many large ones of a small page.
pub(super) struct Cells<'a, T: DataType> {
    place: Place<'a>,
    reader: ColumnReaderImpl<T>,
    levels: Vec<i16>,
    values: Vec<T::T>,
}

impl<'a, T: DataType> Cells<'a, T> {
    pub(super) fn new(place: Place<'a>, reader: ColumnReaderImpl<T>) -> Self {
        Self { place, reader, levels: Vec::new(), values: Vec::new() }
    }

    /// The next value; `None` for a null.
    fn next(&mut self) -> Result<Option<T::T>, ParquetError> {
        self.levels.clear();
        self.values.clear();
        let Self { place, reader, levels, values } = self;
        let (records, ..) = unpanicked(*place, || reader.read_records(1, Some(&mut *levels), None, &mut *values))?;
        if records == 0 {
            return Err(self.place.damaged(&"it has fewer values than the row group declares"));
        }
        Ok(self.values.pop())
    }

    fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        match unpanicked(self.place, || self.reader.skip_records(rows))? {
            skipped if skipped == rows => Ok(()),
            _ => Err(self.place.damaged(&"it has fewer values than the row group declares")),
        }
    }
}

/// Damaged pages make the reader fail, or panic; no value is asked for after that.
fn unpanicked<T>(place: Place<'_>, read: impl FnOnce() -> ::parquet::errors::Result<T>) -> Result<T, ParquetError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(found) => found.map_err(|e| place.damaged(&e)),
        Err(_) => Err(place.damaged(&"its pages do not hold what they declare")),
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

/// Labels, groups, or cells of a table.
pub(super) enum NameCells<'a> {
    Text(BytesCells<'a>),
    Narrow { cells: Cells<'a, Int32Type>, classes: Option<&'a [String]> },
    Wide { cells: Cells<'a, Int64Type>, classes: Option<&'a [String]> },
    Float(Cells<'a, FloatType>),
    Double(Cells<'a, DoubleType>),
    Truth(Cells<'a, BoolType>),
}

impl NameCells<'_> {
    /// The next value; a whole number is the name of its class where the file has names.
    pub(super) fn next(&mut self) -> Result<Result<Value, Fault>, ParquetError> {
        Ok(match self {
            Self::Text(cells) => text_value(cells.next()?),
            Self::Narrow { cells, classes } => whole(cells.next()?.map(i64::from), *classes),
            Self::Wide { cells, classes } => whole(cells.next()?, *classes),
            // The shorter form: 0.1 is not to become 0.10000000149011612.
            Self::Float(cells) => Ok(cells.next()?.map_or(Value::Null, |number| number.to_string().into())),
            Self::Double(cells) => Ok(cells.next()?.map_or(Value::Null, |number| number.to_string().into())),
            Self::Truth(cells) => Ok(cells.next()?.map_or(Value::Null, Value::Bool)),
        })
    }

    pub(super) fn skip(&mut self, rows: u64) -> Result<(), ParquetError> {
        match self {
            Self::Text(cells) => cells.skip(rows),
            Self::Narrow { cells, .. } => cells.skip(rows),
            Self::Wide { cells, .. } => cells.skip(rows),
            Self::Float(cells) => cells.skip(rows),
            Self::Double(cells) => cells.skip(rows),
            Self::Truth(cells) => cells.skip(rows),
        }
    }
}

fn whole(number: Option<i64>, classes: Option<&[String]>) -> Result<Value, Fault> {
    match (number, classes) {
        (None, _) => Ok(Value::Null),
        (Some(number), None) => Ok(number.into()),
        (Some(number), Some(classes)) => usize::try_from(number)
            .ok()
            .and_then(|place| classes.get(place))
            .map(|name| name.clone().into())
            .ok_or(Fault::LabelNumber { found: number, classes: classes.len() }),
    }
}
