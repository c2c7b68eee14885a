//! What was found in a file, row by row.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::columns::{CellKind, Columns, ContentColumns};
use super::content::{Cell, Content};
use super::error::Fault;
use super::fold::Identity;
use super::labels::LabelMap;
use super::rows::Rows;
use super::target::{Target, TargetRef};

/// How many examples of each fault are kept where nobody says otherwise.
const EXAMPLES: usize = 5;
/// How many different unknown labels are kept.
const UNKNOWN: usize = 50;

/// The faults of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Rows with it.
    pub count: u64,
    /// First lines of the first such rows, and what was found there.
    pub first: Vec<(u64, String)>,
}

/// An unknown label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// Rows with it.
    pub count: u64,
    /// The nearest known label.
    pub nearest: Option<String>,
}

/// Which rows of a file were used, and why the others were not. It holds no text, only lines and labels.
#[derive(Debug, Clone, Serialize)]
pub struct DataReport {
    /// The file.
    pub path: PathBuf,
    /// Rows read.
    pub rows: u64,
    /// Rows used.
    pub used: u64,
    /// Used rows (words, where words are labelled) by label index.
    pub per_label: BTreeMap<usize, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, Faults>,
    /// Labels that are not the job's, the first fifty.
    pub unknown_labels: BTreeMap<String, Unknown>,
    /// Usable rows whose text (see [`fold`](super::fold::fold)) and label stood in an earlier row.
    pub duplicates: u64,
    /// Usable rows whose text stood in an earlier row with another label.
    pub conflicts: u64,
    /// Rows left out by [`DataReport::remove_duplicates`].
    pub removed: u64,
    /// Used rows with a word that the model does not know, by the column of the table.
    pub unknown_words: BTreeMap<String, u64>,
    /// How many lines of each fault are kept.
    #[serde(skip)]
    examples: usize,
}

/// The contents of earlier rows.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<Identity, Known>);

/// Where a content first stood, and the keys of its targets; few contents have a second one.
#[derive(Debug)]
struct Known {
    first: First,
    key: u64,
    others: Vec<u64>,
}

/// The first row of a content.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct First {
    pub(super) line: u64,
    pub(super) target: Target,
}

impl Seen {
    /// Adds a row, and tells how it stands to those before it.
    pub(super) fn add(&mut self, identity: Identity, row: &First) -> Sight {
        let key = row.target.borrowed().key();
        match self.0.entry(identity) {
            Entry::Vacant(place) => {
                place.insert(Known { first: row.clone(), key, others: Vec::new() });
                Sight::New
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                if known.key == key || known.others.contains(&key) {
                    return Sight::Repeated(known.first.clone());
                }
                known.others.push(key);
                Sight::OtherTarget(known.first.clone())
            }
        }
    }

    /// The first row of a content.
    pub(super) fn first(&self, identity: &Identity) -> Option<&First> {
        self.0.get(identity).map(|known| &known.first)
    }
}

/// How a row stands to the rows before it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Sight {
    New,
    Repeated(First),
    OtherTarget(First),
}

impl DataReport {
    pub(super) fn new(path: &Path) -> Self {
        Self::with_examples(path, EXAMPLES)
    }

    /// A report that keeps so many lines of each fault.
    pub(super) fn with_examples(path: &Path, examples: usize) -> Self {
        Self {
            path: path.into(),
            rows: 0,
            used: 0,
            per_label: BTreeMap::new(),
            faults: BTreeMap::new(),
            unknown_labels: BTreeMap::new(),
            duplicates: 0,
            conflicts: 0,
            removed: 0,
            unknown_words: BTreeMap::new(),
            examples,
        }
    }

    /// Rows left out because of a fault.
    pub fn skipped(&self) -> u64 {
        self.rows - self.used - self.removed
    }

    pub(super) fn use_row(&mut self, target: TargetRef<'_>) {
        self.rows += 1;
        self.used += 1;
        target.labels().for_each(|label| *self.per_label.entry(label).or_default() += 1);
    }

    /// Counts the words that the model does not know of a row that is used.
    pub(super) fn words(&mut self, columns: &Columns, content: &Content) {
        let (ContentColumns::Cells(columns), Content::Cells(cells)) = (&columns.content, content) else { return };
        for (column, cell) in columns.iter().zip(cells) {
            let (CellKind::Word { known }, Cell::Word(word)) = (&column.kind, cell) else { continue };
            if !known.is_empty() && known.binary_search_by(|known| known.as_str().cmp(word)).is_err() {
                match self.unknown_words.get_mut(&column.name) {
                    Some(count) => *count += 1,
                    None => _ = self.unknown_words.insert(column.name.clone(), 1),
                }
            }
        }
    }

    /// The rows without those whose text and label stand in an earlier row, which are counted. `rows` are those of this
    /// report.
    pub fn remove_duplicates(&mut self, rows: &Rows) -> Rows {
        let mut seen = HashSet::new();
        rows.select((0..rows.len()).filter(|row| {
            let target = rows.target(*row);
            let keep = seen.insert((rows.text_number(*row), target.key()));
            if !keep {
                self.used -= 1;
                self.removed += 1;
                for label in target.labels() {
                    if let Some(count) = self.per_label.get_mut(&label) {
                        *count -= 1;
                    }
                }
            }
            keep
        }))
    }

    pub(super) fn fault(&mut self, line: u64, fault: Fault) {
        self.rows += 1;
        let faults = self.faults.entry(fault.kind()).or_default();
        faults.count += 1;
        if faults.first.len() < self.examples {
            faults.first.push((line, shorten(&fault.to_string())));
        }
    }

    pub(super) fn unknown_label(&mut self, line: u64, label: &str, labels: &LabelMap) {
        self.fault(line, Fault::UnknownLabel { label: shorten(label) });
        if let Some(known) = self.unknown_labels.get_mut(label) {
            known.count += 1;
        } else if self.unknown_labels.len() < UNKNOWN {
            let nearest = labels.nearest(label).map(str::to_owned);
            self.unknown_labels.insert(shorten(label), Unknown { count: 1, nearest });
        }
    }
}

/// At most 120 characters, so that a report stays readable.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} of {} rows used", self.path.display(), self.used, self.rows)?;
        for (kind, faults) in &self.faults {
            let lines: Vec<String> = faults.first.iter().map(|(line, _)| line.to_string()).collect();
            let more = if faults.count as usize > lines.len() { ", ..." } else { "" };
            let example = faults.first.first().map_or("", |(_, found)| found.as_str());
            let example = if example == *kind { String::new() } else { format!(": {example}") };
            write!(out, "\n  {} x {kind} (line {}{more}){example}", faults.count, lines.join(", "))?;
        }
        for (label, unknown) in self.unknown_labels.iter().take(10) {
            write!(out, "\n    label {label:?}: {} rows", unknown.count)?;
            if let Some(nearest) = &unknown.nearest {
                write!(out, " (did you mean {nearest:?}? Map it in data.labels of site.toml, or correct the file)")?;
            }
        }
        for (column, rows) in &self.unknown_words {
            write!(out, "\n  note: {rows} rows have a word in the column {column:?} that the model does not know")?;
        }
        if self.duplicates + self.conflicts > 0 {
            let (same, other) = (self.duplicates, self.conflicts);
            let removed = if self.removed > 0 { format!(" ({} removed)", self.removed) } else { String::new() };
            write!(
                out,
                "\n  note: {same} rows repeat an earlier row{removed}, {other} repeat a text with another label"
            )?;
        }
        Ok(())
    }
}
