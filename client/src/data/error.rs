//! What can be wrong with a file and with a row.

use std::fmt;
use std::path::PathBuf;

use super::image::ImageFault;
use super::parquet::ParquetError;
use super::report::DataReport;

/// A file that cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be opened or read.
    #[error("{}: cannot be read: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The ending names no format we read.
    #[error("{}: found the ending {found:?}; expected .csv, .jsonl (.ndjson) or .parquet", path.display())]
    Ending {
        /// The file.
        path: PathBuf,
        /// The ending.
        found: String,
    },
    /// Nothing in it.
    #[error("{}: the file is empty; expected a header line and rows", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Lists in a format that has none.
    #[error(
        "{}: lists are read from JSONL files only, and token classification reads a list of words and a list of labels; give \
         a JSONL file",
        path.display()
    )]
    NeedsLists {
        /// The file.
        path: PathBuf,
    },
    /// Images in a format that has none.
    #[error(
        "{}: images are read from Parquet files (an image in each row) and from folders with one folder for each label; give \
         one of these",
        path.display()
    )]
    NeedsImages {
        /// The file.
        path: PathBuf,
    },
    /// A folder for a task of texts.
    #[error("{}: found a folder; expected a CSV, JSONL or Parquet file", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A group column for what has no columns.
    #[error(
        "{}: a folder of images has no column {column:?}; leave the group column out, or give a Parquet file that has it",
        path.display()
    )]
    FolderGroup {
        /// The folder.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// Another kind of file under this name.
    #[error("{}: found {found}; expected UTF-8 text. {remedy}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A needed column is absent.
    #[error(
        "{}:{line}: no column {wanted:?}; found {}{hint}. Set data.{role}_column in site.toml{} or --{role}-column to the \
         name in the file",
        path.display(),
        list(found),
        if *role == "group" { String::new() } else { format!(", task.{role}_column in job.toml") }
    )]
    ColumnMissing {
        /// The file.
        path: PathBuf,
        /// The line of the header.
        line: u64,
        /// The column.
        wanted: String,
        /// `text`, `pair`, `tokens`, `prompt`, `response`, `label` or `group`.
        role: &'static str,
        /// The columns of the file.
        found: Vec<String>,
        /// A suggestion, or nothing.
        hint: String,
    },
    /// A column that an option names is absent.
    #[error("{}:{line}: no column {wanted:?}; found {}{hint}. Correct --ignore or --category", path.display(), list(found))]
    WishMissing {
        /// The file.
        path: PathBuf,
        /// The line of the header.
        line: u64,
        /// The column.
        wanted: String,
        /// The columns of the file.
        found: Vec<String>,
        /// A suggestion, or nothing.
        hint: String,
    },
    /// A column of the model is absent.
    #[error(
        "{}:{line}: no column {wanted:?}, which the model takes; found {}{hint}. Name it as config.json of the model does, or \
         make a model of the columns that there are (fedtune-client new-table-model)",
        path.display(),
        list(found)
    )]
    CellMissing {
        /// The file.
        path: PathBuf,
        /// The line of the header.
        line: u64,
        /// The column.
        wanted: String,
        /// The columns of the file.
        found: Vec<String>,
        /// A suggestion, or nothing.
        hint: String,
    },
    /// The model would be given the answer.
    #[error(
        "{}: the label column {column:?} is one that the model takes, so that it would be given the answer; make a model \
         without it (fedtune-client new-table-model --label), or name another label column",
        path.display()
    )]
    LabelTaken {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// More columns than a table may have.
    #[error("{}: found {found} columns; expected at most {most}. Leave out those that tell nothing", path.display())]
    TooManyColumns {
        /// The file.
        path: PathBuf,
        /// How many.
        found: usize,
        /// What is allowed.
        most: usize,
    },
    /// A column of a table of which no input can be made.
    #[error("{}: the column {column:?} {found}; {remedy}", path.display())]
    TableColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What is there.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A needed column is there twice.
    #[error("{}:{line}: the column {column:?} stands {times} times; rename or remove the others", path.display())]
    ColumnTwice {
        /// The file.
        path: PathBuf,
        /// The line of the header.
        line: u64,
        /// The column.
        column: String,
        /// How often.
        times: usize,
    },
    /// Not separated by commas.
    #[error(
        "{}:{line}: columns are separated by {found}; expected commas. Save the file again with commas as separator",
        path.display()
    )]
    Separator {
        /// The file.
        path: PathBuf,
        /// The line of the header.
        line: u64,
        /// What separates them.
        found: &'static str,
    },
    /// A quote that is never closed.
    #[error(
        "{}:{line}: a quoted cell of the row that begins on this line is never closed, so the {lines} lines from there on \
         are read as one row; close the quote there or in an earlier row (a quote inside a quoted cell is written twice)",
        path.display()
    )]
    OpenQuote {
        /// The file.
        path: PathBuf,
        /// First line of the row.
        line: u64,
        /// Lines that it swallows.
        lines: u64,
    },
    /// A header and nothing below it.
    #[error("{}: found no row; expected at least one", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// Every row has a fault.
    #[error("{}: none of its {} rows can be used:\n{report}{}", path.display(), report.rows, expected_labels(labels))]
    NoUsableRow {
        /// The file.
        path: PathBuf,
        /// Their faults.
        report: Box<DataReport>,
        /// The labels that would have been known.
        labels: Vec<String>,
    },
    /// Nothing to tell apart.
    #[error(
        "{}: every row has the label {label:?} in the column {column:?}; expected at least two labels. Give the labels \
         in a job.toml (task.labels) if the others only occur elsewhere",
        path.display()
    )]
    OneLabel {
        /// The file.
        path: PathBuf,
        /// The label.
        label: String,
        /// The column.
        column: String,
    },
    /// Not a column of labels.
    #[error(
        "{}: the column {column:?} has {most} or more different values; is it the label column? Name the right one with \
         --label-column or task.label_column",
        path.display()
    )]
    TooManyLabels {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What is allowed.
        most: usize,
    },
    /// More rows or lines than can be counted.
    #[error("{}: found more than {most} rows or lines; split the file, and train on a part of it", path.display())]
    TooManyRows {
        /// The file.
        path: PathBuf,
        /// What is allowed.
        most: u32,
    },
    /// Written to while its rows were in use.
    #[error(
        "{}:{line}: the file changed after it was checked: {found}. Start again, and leave it as it is until the end (a file \
         this large is read while it is used)",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// First line of the row that was wanted, as it was when the file was checked.
        line: u64,
        /// What is different.
        found: String,
    },
    /// A Parquet file is unusable.
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    /// Not a folder of labelled images.
    #[error("{}: found {found}; expected a folder with one folder for each label, and in each of them its images", path.display())]
    ImageFolder {
        /// The folder.
        path: PathBuf,
        /// What it is or has.
        found: String,
    },
    /// Rows chosen by a label where they have none, or several.
    #[error(
        "per_label and oversample choose training rows by their label, and the rows of this task do not have one label each; \
         leave them out"
    )]
    Sampling,
    /// data.labels maps to something the job does not know.
    #[error("data.labels: {local:?} is mapped to {target:?}; expected one of the job's labels: {}", list(known))]
    Mapping {
        /// The local name.
        local: String,
        /// What it is mapped to.
        target: String,
        /// The job's labels.
        known: Vec<String>,
    },
}

impl DataError {
    /// What is wrong, without a value, name or path of the data.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { .. } => "a data file cannot be read",
            Self::Empty { .. } | Self::NoRows { .. } => "a data file has no row",
            Self::ColumnMissing { .. } | Self::WishMissing { .. } | Self::CellMissing { .. } => {
                "the data lack a column that the job or site.toml asks for"
            }
            Self::NoUsableRow { .. } => "no row of the data can be used for this job",
            Self::OneLabel { .. } => "every row of the data has the same label",
            Self::TooManyLabels { .. } => "the label column has too many different values",
            Self::Mapping { .. } => "data.labels in site.toml names a label that the job does not have",
            Self::Changed { .. } => "a data file changed while it was read",
            _ => "the data do not fit this job",
        }
    }
}

/// Why a row is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not as many fields as the header.
    FieldCount {
        /// Fields of the row.
        found: usize,
        /// Fields of the header.
        expected: usize,
        /// Lines that the row takes.
        lines: u64,
    },
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// A NUL byte.
    Nul,
    /// A text above [`super::MAX_TEXT`].
    TooLong {
        /// Its bytes, or as many as were counted.
        bytes: usize,
    },
    /// An empty text.
    EmptyText,
    /// Only white space.
    BlankText,
    /// A prompt whose response is empty.
    EmptyResponse,
    /// A word that is only white space.
    BlankWord {
        /// Which one, counted from 1.
        place: usize,
    },
    /// Not as many labels as words.
    TagCount {
        /// Words of the row.
        words: usize,
        /// Its labels.
        labels: usize,
    },
    /// A label that should be a number.
    NotANumber {
        /// What it is.
        found: String,
    },
    /// A cell of a table that should be a number.
    Cell {
        /// Its column.
        column: String,
        /// What it is.
        found: String,
    },
    /// A cell of a table above [`super::MAX_CELL`].
    CellTooLong {
        /// Its column.
        column: String,
        /// Its bytes.
        bytes: usize,
    },
    /// A list where one label belongs, or one label where a list does.
    LabelForm,
    /// An empty label.
    EmptyLabel,
    /// An empty group, so that nobody knows on which side of a split the row belongs.
    EmptyGroup,
    /// A line that is not JSON.
    BadJson {
        /// The parser's words.
        message: String,
    },
    /// JSON, and not an object.
    NotObject {
        /// What it is.
        found: &'static str,
    },
    /// An object without a needed key.
    KeyMissing {
        /// The key.
        key: String,
    },
    /// A needed key that stands twice.
    KeyTwice {
        /// The key.
        key: String,
    },
    /// A value of a wrong type.
    WrongType {
        /// The key.
        key: String,
        /// Its type.
        found: &'static str,
        /// What is allowed.
        expected: &'static str,
    },
    /// A label that is not among the job's.
    UnknownLabel {
        /// The label.
        label: String,
    },
    /// A label number for which the file has no name.
    LabelNumber {
        /// The number.
        found: i64,
        /// How many names there are.
        classes: usize,
    },
    /// An image that cannot be used.
    Image {
        /// Its file, where each image has one.
        file: Option<String>,
        /// What is wrong with it.
        fault: ImageFault,
    },
}

impl Fault {
    /// What faults of this kind are called in a report.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::FieldCount { .. } => "wrong number of fields",
            Self::NotUtf8 => "not UTF-8",
            Self::Nul => "NUL byte",
            Self::TooLong { .. } => "text too long",
            Self::EmptyText => "empty text",
            Self::BlankText => "text of white space only",
            Self::EmptyResponse => "empty response",
            Self::BlankWord { .. } => "blank word",
            Self::TagCount { .. } => "labels and words differ in number",
            Self::NotANumber { .. } => "not a finite number",
            Self::Cell { .. } => "cell that is not a finite number",
            Self::CellTooLong { .. } => "cell too long",
            Self::LabelForm => "not the label that the task reads",
            Self::EmptyLabel => "empty label",
            Self::EmptyGroup => "empty group",
            Self::BadJson { .. } => "not valid JSON",
            Self::NotObject { .. } => "not a JSON object",
            Self::KeyMissing { .. } => "missing key",
            Self::KeyTwice { .. } => "key given twice",
            Self::WrongType { .. } => "wrong type",
            Self::UnknownLabel { .. } => "unknown label",
            Self::LabelNumber { .. } => "label number without a name",
            Self::Image { fault, .. } => fault.kind(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FieldCount { found, expected, lines } => {
                write!(out, "found {found} fields, expected {expected}")?;
                if *lines > 1 { write!(out, "; it takes {lines} lines, so a quote may not be closed") } else { Ok(()) }
            }
            Self::TooLong { bytes } => write!(out, "found {bytes} bytes or more, expected at most {}", super::MAX_TEXT),
            Self::BadJson { message } => write!(out, "{message}"),
            Self::NotObject { found } => write!(out, "found {found}, expected an object"),
            Self::KeyMissing { key } => write!(out, "no key {key:?}"),
            Self::KeyTwice { key } => write!(out, "the key {key:?} stands twice"),
            Self::WrongType { key, found, expected } => write!(out, "{key:?} is {found}, expected {expected}"),
            Self::UnknownLabel { label } => write!(out, "found {label:?}"),
            Self::LabelNumber { found, classes } => {
                write!(out, "found {found}, expected 0 to {}", classes.saturating_sub(1))
            }
            Self::Image { file: None, fault } => write!(out, "{fault}"),
            Self::Image { file: Some(file), fault } => write!(out, "{file}: {fault}"),
            Self::BlankWord { place } => write!(out, "word {place} is only white space"),
            Self::TagCount { words, labels } => write!(out, "found {labels} labels for {words} words"),
            Self::NotANumber { found } => write!(out, "found {found:?}, expected a finite number"),
            Self::Cell { column, found } => {
                let found: String = found.chars().take(40).collect();
                write!(out, "column {column:?}: found {found:?}, expected a finite number or nothing")
            }
            Self::CellTooLong { column, bytes } => {
                write!(out, "column {column:?}: found {bytes} bytes, expected at most {}", super::MAX_CELL)
            }
            Self::LabelForm => out.write_str("found a list in place of one label, or one label in place of a list"),
            Self::NotUtf8
            | Self::Nul
            | Self::EmptyText
            | Self::BlankText
            | Self::EmptyResponse
            | Self::EmptyLabel
            | Self::EmptyGroup => out.write_str(self.kind()),
        }
    }
}

/// Names for a message: quoted, shortened, at most twelve.
pub(super) fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(|name| match name.char_indices().nth(40) {
            Some((cut, _)) => format!("{:?}...", &name[..cut]),
            None => format!("{name:?}"),
        })
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

fn expected_labels(labels: &[String]) -> String {
    if labels.is_empty() { String::new() } else { format!("\nexpected labels: {}", list(labels)) }
}
