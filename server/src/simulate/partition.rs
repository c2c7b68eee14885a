//! Splitting a labelled file among sites. Deterministic: the same rows, seed and wishes give the same split on every
//! machine; every row goes to exactly one site.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chacha20::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Gamma};
use serde_json::Value;

use super::SimulateError;
use crate::pki::{Identity, Role};

/// Fewest rows of a site, and how often a draw that gives fewer is repeated.
const ROWS_MIN: usize = 10;
const DRAWS_MAX: u64 = 10;

/// Who gets which rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Partition {
    /// Shuffled, in equal parts.
    Iid,
    /// Label skew: each label's rows are dealt by a draw from a symmetric Dirichlet distribution (Hsu et al. 2019,
    /// 1909.06335, in the class-wise form of NIID-Bench). Small values make sites differ more.
    Dirichlet(f64),
    /// One site for each value of a column.
    Column(String),
}

impl fmt::Display for Partition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => out.write_str("iid"),
            Self::Dirichlet(alpha) => write!(out, "dirichlet:{alpha}"),
            Self::Column(name) => write!(out, "column:{name}"),
        }
    }
}

impl FromStr for Partition {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("found {text:?}; expected iid, dirichlet:ALPHA (such as dirichlet:0.5) or column:NAME");
        match text.split_once(':') {
            None if text == "iid" => Ok(Self::Iid),
            Some(("dirichlet", alpha)) => {
                let alpha: f64 = alpha.parse().map_err(|_| wrong())?;
                if (1e-3..=1e6).contains(&alpha) { Ok(Self::Dirichlet(alpha)) } else { Err(wrong()) }
            }
            Some(("column", name)) if !name.is_empty() => Ok(Self::Column(name.into())),
            _ => Err(wrong()),
        }
    }
}

/// A labelled file, row by row as it stands: faults inside rows are the sites' to report.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    /// The CSV header; `None` for JSONL.
    header: Option<csv::ByteRecord>,
    rows: Vec<RawRow>,
    label_column: Option<String>,
}

#[derive(Debug)]
enum RawRow {
    Csv(csv::ByteRecord),
    Json(String, BTreeMap<String, String>),
}

impl Table {
    /// Reads a CSV or, by its ending, a JSONL file. Without a label column rows are not told apart by labels.
    ///
    /// # Errors
    /// The file cannot be read, or lacks the label column.
    pub fn read(path: &Path, label_column: Option<&str>) -> Result<Self, SimulateError> {
        let data = |reason: String| SimulateError::Data { path: path.to_path_buf(), reason };
        let mut table = Self {
            path: path.to_path_buf(),
            header: None,
            rows: Vec::new(),
            label_column: label_column.map(str::to_owned),
        };
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            let text = std::fs::read(path).map_err(|e| data(format!("cannot be read: {e}")))?;
            for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.trim().is_empty()) {
                let fields = match serde_json::from_str(line) {
                    Ok(Value::Object(map)) => map.into_iter().map(|(k, v)| (k, plain(v))).collect(),
                    _ => BTreeMap::new(),
                };
                table.rows.push(RawRow::Json(line.into(), fields));
            }
        } else {
            let mut reader = csv::ReaderBuilder::new()
                .flexible(true)
                .from_path(path)
                .map_err(|e| data(format!("cannot be read: {e}; check the path and its permissions")))?;
            table.header = Some(reader.byte_headers().map_err(|e| data(format!("has no header: {e}")))?.clone());
            label_column.map(|label| table.column(label)).transpose()?;
            for row in reader.into_byte_records() {
                table.rows.push(RawRow::Csv(row.map_err(|e| data(e.to_string()))?));
            }
        }
        if table.rows.is_empty() {
            return Err(data("has no rows; expected labelled rows under a header".into()));
        }
        Ok(table)
    }

    /// Every label that occurs, sorted, with its rows.
    ///
    /// # Errors
    /// The label column is absent.
    pub fn labels(&self) -> Result<BTreeMap<String, usize>, SimulateError> {
        let mut counts = BTreeMap::new();
        for label in self.label_values()?.into_iter().filter(|label| !label.is_empty()) {
            *counts.entry(label).or_default() += 1;
        }
        Ok(counts)
    }

    /// The label of each row; empty where there is no label column.
    fn label_values(&self) -> Result<Vec<String>, SimulateError> {
        match &self.label_column {
            Some(label) => self.values(label),
            None => Ok(vec![String::new(); self.rows.len()]),
        }
    }

    fn column(&self, name: &str) -> Result<Option<usize>, SimulateError> {
        let Some(header) = &self.header else { return Ok(None) };
        let clean = |field: &[u8]| String::from_utf8_lossy(field).trim_start_matches('\u{feff}').trim().to_owned();
        let found: Vec<String> = header.iter().map(clean).collect();
        match found.iter().position(|field| field == name) {
            Some(index) => Ok(Some(index)),
            None => Err(SimulateError::Data {
                path: self.path.clone(),
                reason: format!("lacks the column {name:?}; it has {}", found.join(", ")),
            }),
        }
    }

    fn values(&self, column: &str) -> Result<Vec<String>, SimulateError> {
        let index = self.column(column)?;
        let value = |row: &RawRow| match row {
            RawRow::Csv(record) => {
                let field = index.and_then(|index| record.get(index)).unwrap_or_default();
                String::from_utf8_lossy(field).trim().to_owned()
            }
            RawRow::Json(_, fields) => fields.get(column).cloned().unwrap_or_default(),
        };
        Ok(self.rows.iter().map(value).collect())
    }

    /// The ending of a shard's file.
    pub fn ending(&self) -> &'static str {
        if self.header.is_some() { "csv" } else { "jsonl" }
    }

    /// Writes the rows of a shard as a file of the same kind.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, shard: &Shard, path: &Path) -> Result<(), SimulateError> {
        let write = || -> std::io::Result<()> {
            let file = std::io::BufWriter::new(std::fs::File::create(path)?);
            let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(file);
            if let Some(header) = &self.header {
                writer.write_byte_record(header)?;
            }
            let mut lines = writer.into_inner().map_err(|e| std::io::Error::other(e.to_string()))?;
            for row in &shard.rows {
                match &self.rows[*row] {
                    RawRow::Csv(record) => {
                        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(&mut lines);
                        writer.write_byte_record(record)?;
                        writer.flush()?;
                    }
                    RawRow::Json(line, _) => writeln!(lines, "{line}")?,
                }
            }
            lines.flush()
        };
        write().map_err(SimulateError::file(path))
    }
}

fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    }
}

/// One site's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The site's name.
    pub site: String,
    /// Indices into the table, ascending.
    pub rows: Vec<usize>,
}

impl Shard {
    /// Its size and labels in words.
    pub fn describe(&self, table: &Table) -> String {
        if table.label_column.is_none() {
            return format!("{} rows", self.rows.len());
        }
        let labels = table.label_values().unwrap_or_default();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for row in &self.rows {
            *counts.entry(labels.get(*row).map_or("", String::as_str)).or_default() += 1;
        }
        let most: Vec<String> = counts.iter().take(12).map(|(label, count)| format!("{label} {count}")).collect();
        let more = if counts.len() > 12 { format!(", {} more labels", counts.len() - 12) } else { String::new() };
        format!("{} rows ({}{more})", self.rows.len(), most.join(", "))
    }
}

impl Partition {
    /// Splits the rows.
    ///
    /// # Errors
    /// The wishes do not go together, or a site would get fewer than ten rows.
    pub fn split(&self, table: &Table, sites: Option<usize>, seed: u64) -> Result<Vec<Shard>, SimulateError> {
        let usage = |reason: String| Err(SimulateError::Usage(reason));
        let rows = table.rows.len();
        if let Self::Column(name) = self {
            return by_column(&table.values(name)?, name, sites);
        }
        if matches!(self, Self::Dirichlet(_)) && table.label_column.is_none() {
            return usage(format!("{self} deals rows by their labels, which this kind of task does not have; use iid"));
        }
        let sites = sites.unwrap_or(3);
        if sites == 0 || rows / sites < ROWS_MIN {
            return usage(format!(
                "{rows} rows among {sites} sites: expected 1 site or more, and {ROWS_MIN} rows for each"
            ));
        }
        for draw in 0..DRAWS_MAX {
            let mut random = stream(seed, draw);
            let mut shards = match self {
                Self::Dirichlet(alpha) => dirichlet(&table.label_values()?, sites, *alpha, &mut random),
                Self::Iid | Self::Column(_) => iid(rows, sites, &mut random),
            };
            if shards.iter().all(|shard| shard.len() >= ROWS_MIN) {
                shards.iter_mut().for_each(|shard| shard.sort_unstable());
                let named = shards.into_iter().enumerate();
                return Ok(named.map(|(i, rows)| Shard { site: format!("site-{}", i + 1), rows }).collect());
            }
        }
        usage(format!(
            "{DRAWS_MAX} draws of {self} left a site with fewer than {ROWS_MIN} rows; raise ALPHA or lower --sites"
        ))
    }
}

fn stream(seed: u64, draw: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&draw.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Fisher-Yates on integers, the same on every platform.
fn shuffle(rows: &mut [usize], random: &mut ChaCha8Rng) {
    for i in (1..rows.len()).rev() {
        let other = random.random_range(0..=i as u64);
        rows.swap(i, usize::try_from(other).unwrap_or(i));
    }
}

fn iid(rows: usize, sites: usize, random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let mut all: Vec<usize> = (0..rows).collect();
    shuffle(&mut all, random);
    (0..sites).map(|site| all[site * rows / sites..(site + 1) * rows / sites].to_vec()).collect()
}

fn dirichlet(labels: &[String], sites: usize, alpha: f64, random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let mut classes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, label) in labels.iter().enumerate() {
        classes.entry(label).or_default().push(row);
    }
    let mut shards = vec![Vec::new(); sites];
    let Ok(gamma) = Gamma::new(alpha, 1.0) else { return shards };
    for mut rows in classes.into_values() {
        shuffle(&mut rows, random);
        // Gammas divided by their sum are a Dirichlet draw.
        let shares: Vec<f64> = (0..sites).map(|_| gamma.sample(random)).collect();
        let total: f64 = shares.iter().sum();
        let mut sum = 0.0;
        let mut begin = 0;
        for (site, share) in shares.iter().enumerate() {
            sum += share;
            let exact = if total > 0.0 { sum / total * rows.len() as f64 } else { 0.0 };
            let end = if site + 1 == sites { rows.len() } else { (exact as usize).clamp(begin, rows.len()) };
            shards[site].extend_from_slice(&rows[begin..end]);
            begin = end;
        }
    }
    shards
}

fn by_column(values: &[String], column: &str, sites: Option<usize>) -> Result<Vec<Shard>, SimulateError> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, value) in values.iter().enumerate() {
        groups.entry(value).or_default().push(row);
    }
    if sites.is_some_and(|sites| sites != groups.len()) || groups.len() > 1000 {
        let wanted = sites.map_or("at most 1000".into(), |sites| sites.to_string());
        let reason = format!("the column {column:?} has {} values, so as many sites; expected {wanted}", groups.len());
        return Err(SimulateError::Usage(reason));
    }
    let mut names = BTreeSet::new();
    groups
        .into_iter()
        .map(|(value, rows)| {
            let site = site_name(value);
            if Identity::new(Role::Site, &site).is_err() || !names.insert(site.clone()) {
                let reason = format!(
                    "the value {value:?} of the column {column:?} gives the site name {site:?}, which is empty or taken"
                );
                return Err(SimulateError::Usage(reason));
            }
            Ok(Shard { site, rows })
        })
        .collect()
}

/// A value as a site's name: lower case, everything but letters and digits a hyphen.
fn site_name(value: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = value.chars().map(plain).take(63).collect();
    name.trim_matches('-').into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    fn table(labels: &[&str]) -> (tempfile::TempDir, Table) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        let mut text = "text,label,ward\n".to_owned();
        for (i, label) in labels.iter().enumerate() {
            text += &format!("\"note, {i}\",{label},Ward {}\n", i % 4);
        }
        std::fs::write(&path, text).unwrap();
        let table = Table::read(&path, Some("label")).unwrap();
        (folder, table)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn splits_are_disjoint_complete_and_repeatable(rows in 60_usize..300, classes in 2_usize..6, sites in 1_usize..6, seed in any::<u64>(), kind in 0..3) {
            let names = ["a", "b", "c", "d", "e"];
            let labels: Vec<&str> = (0..rows).map(|i| names[i * 7 % classes]).collect();
            let (_folder, table) = table(&labels);
            let (partition, sites) = match kind {
                0 => (Partition::Iid, Some(sites)),
                1 => (Partition::Dirichlet(5.0), Some(sites)),
                _ => (Partition::Column("ward".into()), None),
            };
            let Ok(shards) = partition.split(&table, sites, seed) else { return Ok(()) };
            prop_assert_eq!(&shards, &partition.split(&table, sites, seed).unwrap());
            let mut all: Vec<usize> = shards.iter().flat_map(|shard| shard.rows.clone()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }
    }

    /// Mean total-variation distance to the global label distribution, weighted by size, for 10 classes and 10 sites:
    /// the reference of 200 draws in numpy is .432 at alpha .5 and .113 at alpha 10.
    #[test]
    fn dirichlet_skews_as_the_reference_does() {
        let labels: Vec<String> = (0..5000).map(|i| (i % 10).to_string()).collect();
        for (alpha, expected) in [(0.5, 0.432), (10.0, 0.113)] {
            let mut sum = 0.0;
            for seed in 0..50 {
                for shard in dirichlet(&labels, 10, alpha, &mut stream(seed, 0)) {
                    let mut counts = [0.0; 10];
                    shard.iter().for_each(|row| counts[row % 10] += 1.0);
                    let size = shard.len() as f64;
                    let distance: f64 =
                        counts.iter().map(|count| (count / size.max(1.0) - 0.1).abs()).sum::<f64>() / 2.0;
                    sum += distance * size / 5000.0;
                }
            }
            let mean = sum / 50.0;
            assert!((mean - expected).abs() < 0.03, "{alpha}: {mean} is not near {expected}");
        }
    }

    #[test]
    fn shards_are_written_as_they_stood() {
        let labels = ["a", "b"].repeat(20);
        let (folder, table) = table(&labels);
        let shards = Partition::Column("ward".into()).split(&table, None, 0).unwrap();
        assert_eq!(
            shards.iter().map(|s| s.site.as_str()).collect::<Vec<_>>(),
            ["ward-0", "ward-1", "ward-2", "ward-3"]
        );
        let path = folder.path().join("shard.csv");
        table.write(&shards[1], &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("text,label,ward\n\"note, 1\",b,Ward 1\n"), "{text}");
        assert_eq!(text.lines().count(), 11);
    }

    #[test]
    fn wrong_wishes_are_explained() {
        let (_folder, table) = table(&["a"; 40]);
        for (partition, sites, expected) in [
            (Partition::Iid, Some(5), "40 rows among 5 sites"),
            (Partition::Iid, Some(0), "1 site or more"),
            (Partition::Column("ward".into()), Some(3), "has 4 values"),
            (Partition::Column("wrad".into()), None, "it has text, label, ward"),
            (Partition::Column("text".into()), Some(2), "has 40 values"),
        ] {
            let error = partition.split(&table, sites, 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for text in ["", "idd", "dirichlet", "dirichlet:x", "dirichlet:0", "dirichlet:nan", "column:"] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
    }
}
