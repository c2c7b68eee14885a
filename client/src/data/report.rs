//! What was found in a file, row by row.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::Fault;
use super::labels::LabelMap;

/// How many examples of each fault are kept.
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
    /// Used rows by label index.
    pub per_label: BTreeMap<usize, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, Faults>,
    /// Labels that are not the job's, the first fifty.
    pub unknown_labels: BTreeMap<String, Unknown>,
    /// Used rows whose text and label stood in an earlier row.
    pub duplicates: u64,
    /// Used rows whose text stood in an earlier row with another label.
    pub conflicts: u64,
}

/// The texts of earlier rows, by digest, with their label.
#[derive(Default)]
pub(super) struct Seen(HashMap<[u8; 16], usize>);

impl DataReport {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            rows: 0,
            used: 0,
            per_label: BTreeMap::new(),
            faults: BTreeMap::new(),
            unknown_labels: BTreeMap::new(),
            duplicates: 0,
            conflicts: 0,
        }
    }

    /// Rows left out.
    pub fn skipped(&self) -> u64 {
        self.rows - self.used
    }

    pub(super) fn use_row(&mut self, texts: &mut Seen, text: &str, label: usize) {
        self.rows += 1;
        self.used += 1;
        *self.per_label.entry(label).or_default() += 1;
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
        match texts.0.insert(digest, label) {
            Some(earlier) if earlier == label => self.duplicates += 1,
            Some(_) => self.conflicts += 1,
            None => {}
        }
    }

    pub(super) fn fault(&mut self, line: u64, fault: Fault) {
        self.rows += 1;
        let faults = self.faults.entry(fault.kind()).or_default();
        faults.count += 1;
        if faults.first.len() < EXAMPLES {
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
fn shorten(text: &str) -> String {
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
        if self.duplicates + self.conflicts > 0 {
            let (same, other) = (self.duplicates, self.conflicts);
            write!(out, "\n  note: {same} rows repeat an earlier row, {other} repeat a text with another label")?;
        }
        Ok(())
    }
}
