//! What a person should know about labelled files before anything is trained on them.
//!
//! A report holds no text, only lines, labels and counts. Memory: some 150 bytes for each distinct text, and the signatures
//! of [`super::near`] for the first million.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use fedtune_config::job::{Task, TaskKind};

use super::content::Content;
use super::error::{DataError, Fault};
use super::fold::{Identity, fold, identity};
use super::labels::{LabelMap, MAX_LABELS};
use super::near::{Pair, Signatures};
use super::report::{DataReport, Faults, First, Seen, Sight, Unknown, shorten};
use super::suspect::suspicions;
use super::target::{TargetRef, separator, target};
use super::{Columns, RawRow, scan};

/// How files are checked.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// What the rows are for.
    pub task: &'a Task,
    /// The columns to read.
    pub columns: &'a Columns,
    /// The labels that are allowed; without it those of the first file.
    pub labels: Option<&'a LabelMap>,
    /// How many lines are kept of each finding.
    pub listed: usize,
}

/// The report on a training file and perhaps a test file.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The training file.
    pub train: FileCheck,
    /// The test file.
    pub test: Option<FileCheck>,
    /// What stands in both.
    pub shared: Option<Shared>,
    /// Distinct texts that were not looked at for near-duplicates, because there are more than
    /// [`super::near::MOST`].
    pub near_not_compared: u64,
}

/// The report on one file.
#[derive(Debug, Clone, Serialize)]
pub struct FileCheck {
    /// The file.
    pub path: PathBuf,
    /// Rows read.
    pub rows: u64,
    /// Rows that training would use.
    pub used: u64,
    /// The faults of the others, by kind.
    pub faults: BTreeMap<&'static str, Faults>,
    /// Labels that are not allowed, the first fifty.
    pub unknown_labels: BTreeMap<String, Unknown>,
    /// Used rows with a word that the model does not know, by the column of the table.
    pub unknown_words: BTreeMap<String, u64>,
    /// The labels of the used rows.
    pub labels: Vec<LabelCount>,
    /// The numbers of the used rows, where they have numbers.
    pub numbers: Option<NumberSummary>,
    /// Characters of the used texts.
    pub characters: Option<LengthSummary>,
    /// Usable texts that are seldom meant, by what is odd about them.
    pub suspicious: BTreeMap<&'static str, Lines>,
    /// Rows whose text and label stand in an earlier row.
    pub duplicates: Matches,
    /// Rows whose text stands in an earlier row with another label.
    pub conflicts: Matches,
    /// Distinct texts much like an earlier one.
    pub near_duplicates: Matches,
    /// Different values of the group column, where one is read.
    pub groups: Option<u64>,
}

/// A label and its rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelCount {
    /// The label.
    pub label: String,
    /// Used rows with it; words, where words are labelled.
    pub rows: u64,
    /// Their share of the used rows, or of all words.
    pub share: f64,
    /// A label with ten times the rows or more that is written almost alike.
    pub resembles: Option<String>,
}

/// Rows, the first of them with their lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lines {
    /// How many.
    pub rows: u64,
    /// The first lines.
    pub lines: Vec<u64>,
}

/// Rows or texts that are like others, some of them listed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Matches {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub listed: Vec<Match>,
}

/// A row and an earlier one, or one of the other file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Match {
    /// The row's first line.
    pub line: u64,
    /// Its label.
    pub label: String,
    /// The first line of the earlier row; of the training file, where this row is of the test file.
    pub earlier_line: u64,
    /// That row's label.
    pub earlier_label: String,
    /// The Jaccard similarity of their runs of five characters, estimated; 1 where the folded texts are equal.
    pub similarity: f64,
}

/// What a test file has in common with the training file, so that it tests less than it seems to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Shared {
    /// Rows of the test file whose text is in the training file.
    pub texts: Matches,
    /// Those of them whose label there is another.
    pub other_label: u64,
    /// Distinct texts of the test file much like one of the training file, the equal ones not counted.
    pub near: Matches,
    /// Rows of the test file whose group is in the training file.
    pub grouped_rows: Option<u64>,
}

/// A distribution of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NumberSummary {
    /// The smallest.
    pub least: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sd: f64,
    /// The largest.
    pub most: f64,
}

/// Numbers that are summed up as they come (Welford 1962).
#[derive(Debug, Default)]
pub(super) struct Numbers {
    count: f64,
    mean: f64,
    squares: f64,
    range: Option<(f64, f64)>,
}

impl Numbers {
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1.0;
        let off = value - self.mean;
        self.mean += off / self.count;
        self.squares += off * (value - self.mean);
        let (least, most) = self.range.unwrap_or((value, value));
        self.range = Some((least.min(value), most.max(value)));
    }

    pub(super) fn summary(&self) -> Option<NumberSummary> {
        let (least, most) = self.range?;
        Some(NumberSummary { least, mean: self.mean, sd: (self.squares / self.count).sqrt(), most })
    }
}

/// How often each length occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths(BTreeMap<usize, u64>);

/// A distribution of lengths; quantiles by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LengthSummary {
    /// The shortest.
    pub least: usize,
    /// As many are longer as shorter.
    pub median: usize,
    /// The mean.
    pub mean: f64,
    /// 95 % are at most so long.
    pub p95: usize,
    /// 99 % are at most so long.
    pub p99: usize,
    /// The longest.
    pub most: usize,
}

impl Lengths {
    /// Counts one.
    pub fn add(&mut self, length: usize) {
        *self.0.entry(length).or_default() += 1;
    }

    /// The share that is longer than `length`.
    pub fn share_above(&self, length: usize) -> f64 {
        let above: u64 = self.0.range(length.saturating_add(1)..).map(|(_, count)| count).sum();
        above as f64 / self.count().max(1) as f64
    }

    /// The distribution; `None` of nothing.
    pub fn summary(&self) -> Option<LengthSummary> {
        let count = self.count();
        let sum: f64 = self.0.iter().map(|(length, count)| *length as f64 * *count as f64).sum();
        Some(LengthSummary {
            least: *self.0.keys().next()?,
            median: self.quantile(0.5)?,
            mean: sum / count as f64,
            p95: self.quantile(0.95)?,
            p99: self.quantile(0.99)?,
            most: *self.0.keys().next_back()?,
        })
    }

    fn count(&self) -> u64 {
        self.0.values().sum()
    }

    fn quantile(&self, share: f64) -> Option<usize> {
        let rank = (share * self.count() as f64).ceil() as u64;
        let mut below = 0;
        self.0.iter().find_map(|(length, count)| {
            below += count;
            (below >= rank).then_some(*length)
        })
    }
}

/// Checks a training file, and a test file against it.
///
/// # Errors
/// A file as a whole is unusable, no row of it is, or its label column is none.
pub fn check(train: &Path, test: Option<&Path>, settings: Settings<'_>) -> Result<Check, DataError> {
    let mut signatures = Signatures::default();
    let train = Reading::of(train, settings, None, &mut signatures)?;
    let second_part = signatures.len();
    let test = match test {
        Some(path) => {
            let own = LabelMap::new(&train.names, &BTreeMap::new())?;
            let settings = Settings { labels: Some(settings.labels.unwrap_or(&own)), ..settings };
            Some(Reading::of(path, settings, Some(&train), &mut signatures)?)
        }
        None => None,
    };
    let pairs = signatures.pairs(second_part);
    let (in_train, in_test) = pairs.within.split_at(pairs.within.partition_point(|pair| pair.second < second_part));
    let shared = test.as_ref().map(|test| {
        let mut near = Repeats::default();
        for pair in &pairs.across {
            // Equal texts are counted as such.
            if let (Some(first), Some(second)) = (train.texts.get(&pair.first), test.texts.get(&pair.second))
                && train.seen.first(&second.1).is_none()
            {
                near.add(settings.listed, Repeat::new(&second.0, &first.0, pair.similarity));
            }
        }
        Shared {
            texts: test.in_train.named(&test.names, settings.task),
            other_label: test.in_train_otherwise,
            near: near.named(&test.names, settings.task),
            grouped_rows: test.groups.as_ref().map(|_| test.grouped_in_train),
        }
    });
    let test = test.map(|test| test.report(in_test, settings));
    Ok(Check { train: train.report(in_train, settings), test, shared, near_not_compared: signatures.left_out() })
}

/// What is gathered from a file.
struct Reading {
    report: DataReport,
    names: Vec<String>,
    numbers: Numbers,
    lengths: Lengths,
    suspicious: BTreeMap<&'static str, Lines>,
    duplicates: Repeats,
    conflicts: Repeats,
    seen: Seen,
    /// The first rows of the distinct texts, by the place of their signature.
    texts: BTreeMap<usize, (First, Identity)>,
    groups: Option<HashSet<Identity>>,
    in_train: Repeats,
    in_train_otherwise: u64,
    grouped_in_train: u64,
}

/// A row and an earlier one, with labels by index; both files know the labels by the same indices.
#[derive(Debug)]
struct Repeat {
    row: First,
    earlier: First,
    similarity: f64,
}

impl Repeat {
    fn new(row: &First, earlier: &First, similarity: f64) -> Self {
        Self { row: row.clone(), earlier: earlier.clone(), similarity }
    }
}

#[derive(Debug, Default)]
struct Repeats {
    count: u64,
    listed: Vec<Repeat>,
}

impl Repeats {
    fn add(&mut self, listed: usize, repeat: Repeat) {
        self.count += 1;
        if self.listed.len() < listed {
            self.listed.push(repeat);
        }
    }

    fn named(&self, names: &[String], task: &Task) -> Matches {
        let shown = |row: &First| shorten(&row.target.borrowed().shown(names, separator(task)));
        let named = |repeat: &Repeat| Match {
            line: repeat.row.line,
            label: shown(&repeat.row),
            earlier_line: repeat.earlier.line,
            earlier_label: shown(&repeat.earlier),
            similarity: repeat.similarity,
        };
        Matches { count: self.count, listed: self.listed.iter().map(named).collect() }
    }
}

impl Reading {
    fn of(
        path: &Path,
        settings: Settings<'_>,
        train: Option<&Self>,
        signatures: &mut Signatures,
    ) -> Result<Self, DataError> {
        let Settings { task, columns, labels, listed } = settings;
        let mut reading = Self {
            report: DataReport::with_examples(path, listed),
            names: labels.map(LabelMap::known).unwrap_or_default(),
            numbers: Numbers::default(),
            lengths: Lengths::default(),
            suspicious: BTreeMap::new(),
            duplicates: Repeats::default(),
            conflicts: Repeats::default(),
            seen: Seen::default(),
            texts: BTreeMap::new(),
            groups: columns.group.as_ref().map(|_| HashSet::new()),
            in_train: Repeats::default(),
            in_train_otherwise: 0,
            grouped_in_train: 0,
        };
        let mut found: HashMap<String, usize> = HashMap::new();
        let mut too_many = false;
        let mut grown = |name: &str, names: &mut Vec<String>| match found.get(name) {
            Some(label) => Ok(*label),
            None if found.len() >= MAX_LABELS => {
                too_many = true;
                Err(Fault::UnknownLabel { label: name.into() })
            }
            None => {
                found.insert(name.into(), names.len());
                names.push(name.into());
                Ok(names.len() - 1)
            }
        };
        scan(path, columns, &mut |line, row| {
            let RawRow { content, label, group } = match row {
                Ok(row) => row,
                Err(fault) => return reading.report.fault(line, fault),
            };
            let index = |name: &str| match labels {
                Some(labels) => labels.index(name).ok_or_else(|| Fault::UnknownLabel { label: name.into() }),
                None => grown(name, &mut reading.names),
            };
            match (target(task.kind, separator(task), label, &content, index), labels) {
                (Ok(target), _) => {
                    let row = First { line, target };
                    reading.report.words(columns, &content);
                    reading.use_row(row, &content, group.as_deref(), train, signatures, listed);
                }
                (Err(Fault::UnknownLabel { label }), Some(labels)) => {
                    reading.report.unknown_label(line, &label, labels);
                }
                (Err(fault), _) => reading.report.fault(line, fault),
            }
        })?;
        let (path, report) = (path.to_path_buf(), &reading.report);
        if too_many {
            return Err(DataError::TooManyLabels { path, column: columns.label_name(), most: MAX_LABELS });
        }
        if report.rows == 0 {
            return Err(DataError::NoRows { path });
        }
        if report.used == 0 {
            return Err(DataError::NoUsableRow { path, report: Box::new(report.clone()), labels: reading.names });
        }
        Ok(reading)
    }

    fn use_row(
        &mut self,
        row: First,
        content: &Content,
        group: Option<&str>,
        train: Option<&Self>,
        signatures: &mut Signatures,
        listed: usize,
    ) {
        let folded = content.folded();
        let known_by = content.identity();
        let texts = content.texts();
        if !texts.is_empty() {
            self.lengths.add(texts.iter().map(|text| text.chars().count()).sum());
        }
        if let TargetRef::Value(value) = row.target.borrowed() {
            self.numbers.add(value.into());
        }
        let names: BTreeSet<_> = texts.iter().flat_map(|text| suspicions(text, &fold(text))).collect();
        for name in names {
            let lines = self.suspicious.entry(name).or_default();
            lines.rows += 1;
            if lines.lines.len() < listed {
                lines.lines.push(row.line);
            }
        }
        let sight = self.seen.add(known_by, &row);
        match sight {
            Sight::New => {
                if !texts.is_empty()
                    && let Some(place) = signatures.add(&folded)
                {
                    self.texts.insert(place, (row.clone(), known_by));
                }
            }
            Sight::Repeated(earlier) => self.duplicates.add(listed, Repeat::new(&row, &earlier, 1.0)),
            Sight::OtherTarget(earlier) => self.conflicts.add(listed, Repeat::new(&row, &earlier, 1.0)),
        }
        self.report.use_row(row.target.borrowed());
        let group = group.map(identity);
        if let (Some(groups), Some(group)) = (&mut self.groups, group) {
            groups.insert(group);
        }
        let Some(train) = train else { return };
        if let Some(earlier) = train.seen.first(&known_by) {
            self.in_train.add(listed, Repeat::new(&row, earlier, 1.0));
            self.in_train_otherwise += u64::from(row.target.borrowed().key() != earlier.target.borrowed().key());
        }
        if let (Some(groups), Some(group)) = (&train.groups, group) {
            self.grouped_in_train += u64::from(groups.contains(&group));
        }
    }

    fn report(self, pairs: &[Pair], settings: Settings<'_>) -> FileCheck {
        let mut near = Repeats::default();
        for pair in pairs {
            if let (Some(first), Some(second)) = (self.texts.get(&pair.first), self.texts.get(&pair.second)) {
                near.add(settings.listed, Repeat::new(&second.0, &first.0, pair.similarity));
            }
        }
        let names = &self.names;
        FileCheck {
            labels: label_counts(names, &self.report, settings),
            numbers: self.numbers.summary(),
            path: self.report.path,
            rows: self.report.rows,
            used: self.report.used,
            faults: self.report.faults,
            unknown_labels: self.report.unknown_labels,
            unknown_words: self.report.unknown_words,
            characters: self.lengths.summary(),
            suspicious: self.suspicious,
            duplicates: self.duplicates.named(names, settings.task),
            conflicts: self.conflicts.named(names, settings.task),
            near_duplicates: near.named(names, settings.task),
            groups: self.groups.map(|groups| groups.len() as u64),
        }
    }
}

/// More labels than this are not compared with each other.
const COMPARED: usize = 1000;

/// The labels in the order of their rows, the most first.
fn label_counts(names: &[String], report: &DataReport, settings: Settings<'_>) -> Vec<LabelCount> {
    let whole = match settings.task.kind {
        TaskKind::TokenClassification => report.per_label.values().sum(),
        _ => report.used,
    };
    let rows = |label: usize| report.per_label.get(&label).copied().unwrap_or(0);
    let mut labels: Vec<LabelCount> = names
        .iter()
        .enumerate()
        .map(|(label, name)| LabelCount {
            label: name.clone(),
            rows: rows(label),
            share: rows(label) as f64 / whole.max(1) as f64,
            resembles: None,
        })
        .collect();
    labels.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.label.cmp(&b.label)));
    if settings.labels.is_none() && labels.len() <= COMPARED {
        for place in 1..labels.len() {
            let (more, rest) = labels.split_at_mut(place);
            let rare = &mut rest[0];
            let often = more.iter().take_while(|often| often.rows >= 10 * rare.rows);
            rare.resembles = often.map(|often| &often.label).find(|often| alike(often, &rare.label)).cloned();
        }
    }
    labels
}

/// Whether two names differ in case, or in one character, and in one more for each sixteen.
fn alike(one: &str, other: &str) -> bool {
    let (one, other) = (fold(one), fold(other));
    let longest = one.len().max(other.len());
    longest <= 200 && one.len() > 3 && strsim::damerau_levenshtein(&one, &other) <= 1 + longest / 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_the_quantiles_of_nearest_rank() {
        let mut lengths = Lengths::default();
        assert_eq!(lengths.summary(), None);
        (1..=100).for_each(|length| lengths.add(length));
        let found = lengths.summary();
        let expected = LengthSummary { least: 1, median: 50, mean: 50.5, p95: 95, p99: 99, most: 100 };
        assert_eq!(found, Some(expected));
        assert!((lengths.share_above(90) - 0.1).abs() < 1e-12);
        assert!(lengths.share_above(100) == 0.0);
    }

    #[test]
    fn numbers_have_their_mean_and_deviation() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.summary(), None);
        [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0].into_iter().for_each(|value| numbers.add(value));
        assert_eq!(numbers.summary(), Some(NumberSummary { least: 2.0, mean: 5.0, sd: 2.0, most: 9.0 }));
    }

    #[test]
    fn names_that_differ_by_a_slip_are_alike() {
        assert!(alike("Cardiology", "cardiology") && alike("cardiology", "cardiologi"));
        assert!(!alike("cardiology", "radiology") && !alike("1", "2") && !alike("yes", "no"));
    }
}
