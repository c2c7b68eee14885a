//! What can be wrong with a Parquet file as a whole.

use std::path::PathBuf;

use super::super::error::list;

/// A Parquet file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParquetError {
    /// Not Parquet, or cut.
    #[error("{}: found {found}; expected a Parquet file, which begins and ends with PAR1. Write it again, or get it again", path.display())]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// Bytes that do not fit the format.
    #[error("{}: {place} cannot be read: {message}; write the file again, or get it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What was found.
        message: String,
    },
    /// A needed column is absent.
    #[error("{}: no column {wanted:?} for the {role}; found {}{hint}", path.display(), list(found))]
    ColumnMissing {
        /// The file.
        path: PathBuf,
        /// The column.
        wanted: String,
        /// What it is for: `text`, `image`, `label` or `group`.
        role: &'static str,
        /// The columns of the file.
        found: Vec<String>,
        /// A suggestion, or nothing.
        hint: String,
    },
    /// A column of another type.
    #[error("{}: the column {column:?} holds {found}; expected {expected} for the {role}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What it is for.
        role: &'static str,
        /// What is allowed.
        expected: &'static str,
    },
    /// A compression that is not read.
    #[error(
        "{}: the column {column:?} is compressed with {found}; expected Snappy, Zstandard or no compression. Write the file \
         again with one of them",
        path.display()
    )]
    Compression {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The compression.
        found: String,
    },
    /// Names of classes that cannot be used.
    #[error("{}: the metadata \"huggingface\" of the file, {field}: found {found}, expected {expected}", path.display())]
    Classes {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What stands there.
        found: String,
        /// What is allowed.
        expected: String,
    },
}
