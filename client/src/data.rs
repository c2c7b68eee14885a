//! Labelled text from CSV and JSONL files.
//!
//! A faulty row is left out and reported in the [`DataReport`]; a faulty file is a [`DataError`]. Read in this order:
//! [`error`] (what can be wrong), `sniff` (what kind of file it really is), `csv` and `jsonl` (bounded readers that give
//! raw rows), [`labels`], [`report`], [`mod@fold`] (when two texts are the same), [`mod@split`], `sample`, [`near`] and [`check`] (a
//! file's quality).

pub mod check;
mod columns;
mod csv;
pub mod error;
pub mod fold;
mod jsonl;
pub mod labels;
pub mod near;
pub mod report;
mod sample;
mod sniff;
pub mod split;
mod suspect;

use std::collections::BTreeMap;
use std::path::Path;

pub use columns::{Columns, Wanted};
pub use error::{DataError, Fault};
pub use labels::LabelMap;
pub use report::DataReport;
pub use sample::Sampling;
pub use split::split;

/// The longest text of a row, in bytes; longer ones are a [`Fault::TooLong`].
pub const MAX_TEXT: usize = 64 << 10;

/// A usable row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// The text; never empty.
    pub text: String,
    /// Index into the job's labels.
    pub label: usize,
    /// Its first line in the file, counted from 1.
    pub line: u64,
    /// The value of the group column, where one is read.
    pub group: Option<String>,
}

/// A row before its label is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// The text; never empty.
    pub text: String,
    /// The label as it stands in the file, without surrounding white space; `None` where none was asked for.
    pub label: Option<String>,
    /// The group, likewise.
    pub group: Option<String>,
}

/// Calls `each` with the first line and the content of every row in file order; memory does not grow with the file.
///
/// # Errors
/// The file as a whole is unusable: see [`DataError`].
pub fn scan(
    path: &Path,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(u64, Result<RawRow, Fault>),
) -> Result<(), DataError> {
    let (format, file) = sniff::open(path)?;
    match format {
        sniff::Format::Csv => csv::scan(path, file, wanted, each),
        sniff::Format::Jsonl => jsonl::scan(path, file, wanted, each),
    }
}

/// Reads every usable row of a file, and reports the others.
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn read(path: &Path, columns: &Columns, labels: &LabelMap) -> Result<(Vec<Row>, DataReport), DataError> {
    let (mut rows, mut seen) = (Vec::new(), report::Seen::default());
    let mut report = DataReport::new(path);
    scan(path, columns.wanted(), &mut |line, row| match row {
        Ok(RawRow { text, label, group }) => {
            let label = label.unwrap_or_default();
            match labels.index(&label) {
                Some(index) => {
                    report.use_row(seen.add(fold::identity(&fold::fold(&text)), line, index), index);
                    rows.push(Row { text, label: index, line, group });
                }
                None => report.unknown_label(line, &label, labels),
            }
        }
        Err(fault) => report.fault(line, fault),
    })?;
    if report.rows == 0 {
        return Err(DataError::NoRows { path: path.into() });
    }
    if rows.is_empty() {
        return Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: labels.known() });
    }
    Ok((rows, report))
}

/// The distinct labels of a file, sorted; rows with a fault are passed over.
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn labels_in(path: &Path, columns: &Columns) -> Result<Vec<String>, DataError> {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut report = DataReport::new(path);
    scan(path, columns.wanted(), &mut |line, row| match row {
        Ok(row) => {
            // A file whose label column holds free text must not fill the memory.
            if seen.len() < labels::MAX_LABELS || row.label.as_ref().is_some_and(|label| seen.contains_key(label)) {
                *seen.entry(row.label.unwrap_or_default()).or_default() += 1;
            }
            report.rows += 1;
        }
        Err(fault) => report.fault(line, fault),
    })?;
    match (report.rows, seen.len()) {
        (0, _) => Err(DataError::NoRows { path: path.into() }),
        (_, 0) => Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: Vec::new() }),
        (_, 1) => Err(DataError::OneLabel {
            path: path.into(),
            label: seen.into_keys().next().unwrap_or_default(),
            column: columns.label.clone(),
        }),
        (_, found) if found >= labels::MAX_LABELS => {
            Err(DataError::TooManyLabels { path: path.into(), column: columns.label.clone(), most: labels::MAX_LABELS })
        }
        _ => Ok(seen.into_keys().collect()),
    }
}
