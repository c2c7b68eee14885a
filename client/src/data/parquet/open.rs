//! A file, its columns and its parts.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::parquet::basic::{LogicalType, Type};
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::{FileReader, RowGroupReader};
use ::parquet::file::serialized_reader::SerializedFileReader;
use ::parquet::schema::types::ColumnDescriptor;

use super::super::columns::CELL;
use super::super::error::DataError;
use super::cells::{BytesCells, Cells, NameCells};
use super::classes;
use super::error::ParquetError;
use super::guard::{Guarded, MAX_PAGE, check_footer, tail};

/// An opened file.
pub(super) struct Table {
    path: PathBuf,
    file: SerializedFileReader<Guarded>,
}

/// The place of a column among the leaves of the schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf(pub(super) usize);

/// A column of labels or groups.
#[derive(Debug)]
pub(super) struct NameColumn {
    leaf: Leaf,
    kind: Type,
    /// What its numbers stand for.
    classes: Option<Vec<String>>,
}

/// Some rows that stand together.
pub(super) struct Part<'a> {
    table: &'a Table,
    number: usize,
    reader: Box<dyn RowGroupReader + 'a>,
    rows: u64,
}

/// Fails unless every column lies in the file, which the reader takes for granted.
fn check_places(metadata: &ParquetMetaData, length: u64) -> Result<(), String> {
    let inside = |start: i64, count: i64| {
        let (start, count) = (u64::try_from(start).ok(), u64::try_from(count).ok());
        start.zip(count).and_then(|(start, count)| start.checked_add(count)).is_some_and(|end| end <= length)
    };
    for column in metadata.row_groups().iter().flat_map(|part| part.columns()) {
        let starts = [Some(column.data_page_offset()), column.dictionary_page_offset()];
        if !starts.into_iter().flatten().all(|start| inside(start, 0)) || !inside(0, column.compressed_size()) {
            return Err(format!("it places the column {} outside the file", column.column_path()));
        }
    }
    Ok(())
}

impl Table {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.into(), source };
        let mut file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(std::io::Error::other("it is not a file")));
        }
        let not = |found| ParquetError::NotParquet { path: path.into(), found };
        let length = metadata.len();
        if length < 12 {
            return Err(not(format!("a file of {length} bytes")).into());
        }
        let mut magic = [0; 4];
        file.read_exact(&mut magic).map_err(read)?;
        let [a, b, c, d, end @ ..]: [u8; 8] = tail(&mut file).map_err(read)?;
        match (&magic, &end) {
            (b"PAR1", b"PAR1") => {}
            (_, b"PARE") => return Err(not("an encrypted Parquet file".into()).into()),
            (b"PAR1", _) => return Err(not("a Parquet file whose end is missing".into()).into()),
            _ => return Err(not("another kind of file".into()).into()),
        }
        let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
        if footer > length - 12 || footer > MAX_PAGE as u64 {
            return Err(not(format!("a footer that declares {footer} bytes in a file of {length}")).into());
        }
        file.seek(SeekFrom::Start(length - 8 - footer)).map_err(read)?;
        let checked = check_footer(BufReader::new(file.by_ref().take(footer)));
        checked.map_err(|e| damaged(path, "its footer".into(), &e))?;
        let file = SerializedFileReader::new(Guarded { file, pages_end: length - 8 - footer })
            .map_err(|e| damaged(path, "its footer".into(), &e))?;
        check_places(file.metadata(), length).map_err(|message| ParquetError::Damaged {
            path: path.into(),
            place: "its footer".into(),
            message,
        })?;
        Ok(Self { path: path.into(), file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn metadata(&self) -> &ParquetMetaData {
        self.file.metadata()
    }

    /// The parts, in file order.
    pub(super) fn row_groups(&self) -> impl Iterator<Item = Result<Part<'_>, ParquetError>> {
        (0..self.file.num_row_groups()).map(|number| {
            let place = || format!("row group {number}");
            let reader = self.file.get_row_group(number).map_err(|e| damaged(&self.path, place(), &e))?;
            let rows = reader.metadata().num_rows();
            let rows = u64::try_from(rows).map_err(|_| ParquetError::Damaged {
                path: self.path.clone(),
                place: place(),
                message: format!("it declares {rows} rows"),
            })?;
            Ok(Part { table: self, number, reader, rows })
        })
    }

    /// A column of strings.
    pub(super) fn text(&self, column: &str, role: &'static str) -> Result<Leaf, ParquetError> {
        let leaf = self.find(column, &[], role)?;
        match self.leaf(leaf).physical_type() {
            Type::BYTE_ARRAY => self.readable(column, leaf),
            _ => Err(self.wrong_type(column, leaf, role, "strings")),
        }
    }

    /// A column of encoded images, or a struct that has them in the field `bytes`.
    pub(super) fn image(&self, column: &str) -> Result<Leaf, ParquetError> {
        let leaf = match self.find(column, &["bytes"], "image") {
            Ok(leaf) => leaf,
            Err(missing) => self.find(column, &[], "image").map_err(|_| missing)?,
        };
        match (self.leaf(leaf).physical_type(), self.leaf(leaf).logical_type_ref()) {
            (Type::BYTE_ARRAY, Some(LogicalType::String)) | (Type::BOOLEAN, _) => {
                Err(self.wrong_type(column, leaf, "image", "bytes, or a struct with the fields bytes and path,"))
            }
            (Type::BYTE_ARRAY, _) => self.readable(column, leaf),
            _ => Err(self.wrong_type(column, leaf, "image", "bytes, or a struct with the fields bytes and path,")),
        }
    }

    /// A column of labels or groups: strings, or numbers.
    pub(super) fn name(&self, column: &str, role: &'static str) -> Result<NameColumn, ParquetError> {
        let leaf = self.find(column, &[], role)?;
        let kind = self.leaf(leaf).physical_type();
        match (kind, self.leaf(leaf).logical_type_ref()) {
            (Type::BYTE_ARRAY, _)
            | (Type::INT32 | Type::INT64, None | Some(LogicalType::Integer(_)))
            | (Type::FLOAT | Type::DOUBLE, None) => {
                let whole = matches!(kind, Type::INT32 | Type::INT64);
                let classes = if whole { classes::of_column(self, column)? } else { None };
                Ok(NameColumn { leaf: self.readable(column, leaf)?, kind, classes })
            }
            _ => Err(self.wrong_type(column, leaf, role, "strings or numbers")),
        }
    }

    /// A column of a table that a model takes: strings, numbers or booleans. Names of classes are of labels alone.
    pub(super) fn cell(&self, column: &str) -> Result<NameColumn, ParquetError> {
        let leaf = self.find(column, &[], CELL)?;
        match self.leaf(leaf).physical_type() {
            Type::BOOLEAN => Ok(NameColumn { leaf: self.readable(column, leaf)?, kind: Type::BOOLEAN, classes: None }),
            _ => Ok(NameColumn { classes: None, ..self.name(column, CELL)? }),
        }
    }

    /// The names of all columns, in their order.
    pub(super) fn names(&self) -> Vec<String> {
        let columns = self.metadata().file_metadata().schema_descr().columns();
        let mut names: Vec<String> = columns.iter().filter_map(|leaf| leaf.path().parts().first().cloned()).collect();
        names.dedup();
        names
    }

    fn leaf(&self, Leaf(leaf): Leaf) -> &ColumnDescriptor {
        &self.metadata().file_metadata().schema_descr().columns()[leaf]
    }

    fn find(&self, column: &str, inner: &[&str], role: &'static str) -> Result<Leaf, ParquetError> {
        let columns = self.metadata().file_metadata().schema_descr().columns();
        let is_it = |parts: &[String]| {
            parts.first().is_some_and(|first| first == column)
                && parts[1..].iter().map(String::as_str).eq(inner.iter().copied())
        };
        if let Some(leaf) = columns.iter().position(|leaf| is_it(leaf.path().parts())) {
            return Ok(Leaf(leaf));
        }
        if let Some(leaf) =
            columns.iter().position(|leaf| leaf.path().parts().first().is_some_and(|name| name == column))
        {
            let fields = columns[leaf].path().string();
            return Err(ParquetError::WrongType {
                path: self.path.clone(),
                column: column.into(),
                found: format!("a struct or list, with {fields:?}"),
                role,
                expected: "plain values (an image may be a struct with the fields bytes and path)",
            });
        }
        let found = self.names();
        let near = found
            .iter()
            .filter(|name| name.len() <= 64)
            .map(|name| (strsim::damerau_levenshtein(&name.to_lowercase(), &column.to_lowercase()), name))
            .min()
            .filter(|(distance, _)| *distance <= 1 + column.len() / 3);
        let hint = near.map(|(_, name)| format!(" (did you mean {name:?}?)")).unwrap_or_default();
        Err(ParquetError::ColumnMissing { path: self.path.clone(), wanted: column.into(), role, found, hint })
    }

    /// Refuses lists, other compressions and columns in other files.
    fn readable(&self, column: &str, leaf: Leaf) -> Result<Leaf, ParquetError> {
        let descriptor = self.leaf(leaf);
        if descriptor.max_rep_level() > 0 {
            return Err(ParquetError::WrongType {
                path: self.path.clone(),
                column: column.into(),
                found: "lists".into(),
                role: "rows",
                expected: "one value a row",
            });
        }
        for (number, part) in self.metadata().row_groups().iter().enumerate() {
            let Some(chunk) = part.columns().get(leaf.0) else {
                return Err(self.damaged(format!("row group {number}"), format!("it lacks the column {column:?}")));
            };
            let compression = format!("{:?}", chunk.compression_codec());
            if !matches!(compression.as_str(), "UNCOMPRESSED" | "SNAPPY" | "ZSTD") {
                return Err(ParquetError::Compression {
                    path: self.path.clone(),
                    column: column.into(),
                    found: compression,
                });
            }
            if let Some(other) = chunk.file_path() {
                return Err(self.damaged(
                    format!("row group {number}, column {column:?}"),
                    format!("it stands in another file, {other:?}"),
                ));
            }
        }
        Ok(leaf)
    }

    fn wrong_type(&self, column: &str, leaf: Leaf, role: &'static str, expected: &'static str) -> ParquetError {
        let descriptor = self.leaf(leaf);
        let physical = format!("{:?}", descriptor.physical_type());
        let found = match descriptor.logical_type_ref() {
            Some(logical) => format!("{physical} as {logical:?}"),
            None => physical,
        };
        ParquetError::WrongType { path: self.path.clone(), column: column.into(), found, role, expected }
    }

    fn damaged(&self, place: String, message: String) -> ParquetError {
        ParquetError::Damaged { path: self.path.clone(), place, message }
    }
}

impl<'a> Part<'a> {
    /// How many rows it declares.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn bytes(&self, leaf: Leaf) -> Result<BytesCells<'a>, ParquetError> {
        let Leaf(place) = leaf;
        let reader = self.reader.get_column_reader(place).map_err(|e| self.damaged(leaf, &e))?;
        match reader {
            ::parquet::column::reader::ColumnReader::ByteArrayColumnReader(reader) => {
                Ok(BytesCells::new(self.place(leaf), reader))
            }
            _ => Err(self.damaged(leaf, &"its type is another than in the schema")),
        }
    }

    pub(super) fn names<'b>(&self, column: &'b NameColumn) -> Result<NameCells<'b>, ParquetError>
    where
        'a: 'b,
    {
        use ::parquet::column::reader::ColumnReader;
        let (leaf, classes) = (column.leaf, column.classes.as_deref());
        if column.kind == Type::BYTE_ARRAY {
            return Ok(NameCells::Text(self.bytes(leaf)?));
        }
        let place = self.place(leaf);
        Ok(match self.reader.get_column_reader(leaf.0).map_err(|e| self.damaged(leaf, &e))? {
            ColumnReader::Int32ColumnReader(reader) => NameCells::Narrow { cells: Cells::new(place, reader), classes },
            ColumnReader::Int64ColumnReader(reader) => NameCells::Wide { cells: Cells::new(place, reader), classes },
            ColumnReader::FloatColumnReader(reader) => NameCells::Float(Cells::new(place, reader)),
            ColumnReader::DoubleColumnReader(reader) => NameCells::Double(Cells::new(place, reader)),
            ColumnReader::BoolColumnReader(reader) => NameCells::Truth(Cells::new(place, reader)),
            _ => return Err(self.damaged(leaf, &"its type is another than in the schema")),
        })
    }

    fn place(&self, leaf: Leaf) -> Place<'a> {
        Place { table: self.table, part: self.number, leaf }
    }

    fn damaged(&self, leaf: Leaf, message: &dyn std::fmt::Display) -> ParquetError {
        self.place(leaf).damaged(message)
    }
}

/// A column in a part, for messages.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    table: &'a Table,
    part: usize,
    leaf: Leaf,
}

impl Place<'_> {
    pub(super) fn damaged(&self, message: &dyn std::fmt::Display) -> ParquetError {
        let column = self.table.leaf(self.leaf).path().string();
        damaged(&self.table.path, format!("row group {}, column {column:?}", self.part), message)
    }
}

fn damaged(path: &Path, place: String, message: &dyn std::fmt::Display) -> ParquetError {
    ParquetError::Damaged { path: path.into(), place, message: message.to_string() }
}
