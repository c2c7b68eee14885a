//! Rows to learn from, in CSV and JSONL files.
//!
//! A faulty row is left out and reported in the [`DataReport`]; a faulty file is a [`DataError`]. Read in this order:
//! [`error`] (what can be wrong), [`columns`] (what is read), `sniff` (what kind of file it really is), `csv` and `jsonl`
//! (bounded readers of values), [`raw`] (rows of values), [`content`] and [`target`] (what a row gives a model and what is
//! learnt of it), [`labels`], [`report`], [`rows`] (where the contents are), [`mod@fold`] (when two texts are the same),
//! [`mod@split`], `sample`, [`near`] and [`check`] (a file's quality).

pub mod check;
pub mod columns;
pub mod content;
mod csv;
pub mod error;
pub mod fold;
mod jsonl;
pub mod labels;
pub mod near;
pub mod raw;
pub mod report;
pub mod rows;
mod sample;
mod sniff;
pub mod split;
mod suspect;
pub mod target;

use std::collections::BTreeSet;
use std::path::Path;

use fedtune_config::job::{Task, TaskKind};

pub use columns::{Columns, Renamed};
pub use content::{Content, Exchange};
pub use error::{DataError, Fault};
pub use labels::LabelMap;
pub use raw::RawRow;
pub use report::DataReport;
pub use rows::{HELD_TEXT, Row, Rows};
pub use sample::Sampling;
pub use split::split;
pub use target::{RawLabel, Target, TargetReader, TargetRef};

use rows::{Gathering, Repetition, Source, Stamp};

/// The longest text of a row, in bytes; longer ones are a [`Fault::TooLong`].
pub const MAX_TEXT: usize = 64 << 10;

/// Calls `each` with the first line and the content of every row in file order; memory does not grow with the file.
///
/// # Errors
/// The file as a whole is unusable: see [`DataError`].
pub fn scan(path: &Path, columns: &Columns, each: &mut dyn FnMut(u64, Result<RawRow, Fault>)) -> Result<(), DataError> {
    scan_places(path, columns, &mut |place, row| each(place.line, row)).map(|_| ())
}

/// Where a row begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Its first line, counted from 1.
    line: u64,
    /// Its first byte in the file.
    start: u64,
}

/// What must be known of a file to read one of its rows again.
#[derive(Debug)]
enum Layout {
    Csv(csv::Layout),
    Jsonl,
}

/// As [`scan`]; gives what it takes to read rows again, and how the file was.
fn scan_places(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<(Layout, Stamp), DataError> {
    let sniff::Opened { format, mut file, start } = sniff::open(path)?;
    let metadata = file.get_ref().metadata().map_err(|source| DataError::Read { path: path.into(), source })?;
    let layout = match format {
        sniff::Format::Csv => Layout::Csv(csv::scan(path, &mut file, start, columns, each)?),
        sniff::Format::Jsonl => {
            jsonl::scan(path, &mut file, start, columns, each)?;
            Layout::Jsonl
        }
    };
    Ok((layout, metadata.into()))
}

/// Checks every row of a file: gives the usable ones, and reports the others. Contents are held in memory up to
/// [`HELD_TEXT`].
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn read(path: &Path, columns: &Columns, targets: &TargetReader) -> Result<(Rows, DataReport), DataError> {
    read_holding(path, columns, targets, HELD_TEXT)
}

/// As [`read`], with another limit than [`HELD_TEXT`], in bytes. Where the contents are not held the file must not change as
/// long as the rows are used.
///
/// # Errors
/// As [`read`].
pub fn read_holding(
    path: &Path,
    columns: &Columns,
    targets: &TargetReader,
    most: usize,
) -> Result<(Rows, DataReport), DataError> {
    let mut gathering = Gathering::new(most);
    let mut report = DataReport::new(path);
    let (layout, stamp) = scan_places(path, columns, &mut |Place { line, start }, row| {
        let target = |row: RawRow| targets.read(row.label, &row.content).map(|target| (target, row.content, row.group));
        match row.and_then(target) {
            Ok((target, content, group)) => {
                report.use_row(target.borrowed());
                match gathering.add(Row { content, target, line, group }, start) {
                    Repetition::None => {}
                    Repetition::Whole => report.duplicates += 1,
                    Repetition::OtherTarget => report.conflicts += 1,
                }
            }
            Err(Fault::UnknownLabel { label }) => report.unknown_label(line, &label, targets.labels()),
            Err(fault) => report.fault(line, fault),
        }
    })?;
    if report.rows == 0 {
        return Err(DataError::NoRows { path: path.into() });
    }
    if report.used == 0 {
        let labels = targets.labels().known();
        return Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels });
    }
    let rows = gathering.of_file(Source { path: path.into(), layout, columns: columns.clone(), stamp })?;
    Ok((rows, report))
}

/// The distinct labels of a file, sorted, as a task of this kind would read them; rows with a fault are passed over. None
/// for kinds without labels.
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn labels_in(path: &Path, columns: &Columns, task: &Task) -> Result<Vec<String>, DataError> {
    if !task.kind.has_labels() {
        return Ok(Vec::new());
    }
    let separator = target::separator(task);
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut report = DataReport::new(path);
    scan(path, columns, &mut |line, row| match row {
        Ok(RawRow { label, .. }) => {
            let names = match (task.kind, label) {
                (_, None) => Vec::new(),
                (TaskKind::TextClassification, Some(RawLabel::One(name))) => vec![name],
                (_, Some(label)) => target::names(label, separator),
            };
            for name in names {
                // A file whose label column holds free text must not fill the memory.
                if seen.len() < labels::MAX_LABELS {
                    seen.insert(name);
                }
            }
            report.rows += 1;
        }
        Err(fault) => report.fault(line, fault),
    })?;
    let column = columns.label_name();
    match (report.rows, seen.len()) {
        (0, _) => Err(DataError::NoRows { path: path.into() }),
        (_, 0) => Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: Vec::new() }),
        (_, 1) if task.kind != TaskKind::MultiLabelClassification => {
            Err(DataError::OneLabel { path: path.into(), label: seen.into_iter().next().unwrap_or_default(), column })
        }
        (_, found) if found >= labels::MAX_LABELS => {
            Err(DataError::TooManyLabels { path: path.into(), column, most: labels::MAX_LABELS })
        }
        _ => Ok(seen.into_iter().collect()),
    }
}
