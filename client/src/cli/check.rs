//! `fedtune-client check`: what a person should know about labelled files before anything is trained.

use super::output::outln;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use fedtune_config::Job;
use fedtune_config::job::{Reads, TaskKind};
use serde::Serialize;
use serde_json::json;

use super::model_folder::folder;
use super::progress::Display;
use super::table::{share, shorten};
use super::training::Training;
use super::{CliError, Output, processor};
use crate::data::check::{self, Check, FileCheck, LengthSummary, Lengths, Matches, NumberSummary, Settings, Shared};
use crate::data::{self, Columns, Content, LabelMap, TargetReader};
use crate::finetune::confident::label_errors;
use crate::finetune::{cross_validate, text};
use crate::model::{ModelError, Text, TokenCounter};

const EXAMPLES: &str = "\
Examples:
  fedtune-client check --train train.csv --test test.csv
  fedtune-client check --train notes.jsonl --job job.toml --model all-MiniLM-L6-v2 --group-column patient
  fedtune-client check --train train.csv --model all-MiniLM-L6-v2 --find-label-errors --trainable head --output json

Texts are compared without Unicode form, case and white space. Nothing is written, and no text is shown but what stands
where a label should. The code is 0 when every file can be used, whatever was found in it; with --strict findings give 4.";

/// Texts whose tokens are counted together.
const CHUNK: usize = 1024;

/// Look at files before anything is trained: faulty rows, labels, lengths, duplicates, what test and training
/// file share, labels that are probably wrong.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// CSV, JSONL or Parquet file, or folder of images, to train on.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// The same to evaluate on; what it shares with the training file is reported.
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Folder of a model: lengths are counted in its tokens too, and label errors are found with it; of a table it names the
    /// columns.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The labels that are allowed, with commas between; without it (or a job) those of the training file.
    #[arg(long, value_name = "LABEL,...", value_delimiter = ',', conflicts_with = "job")]
    labels: Vec<String>,
    /// Column whose equal values (a subject's number) should not be in both files, nor in two folds.
    #[arg(long, value_name = "NAME")]
    group_column: Option<String>,
    /// Cross-validate the model on the training file and list the rows whose label it disagrees with most (confident
    /// learning).
    #[arg(long, requires = "model")]
    find_label_errors: bool,
    /// Number of folds for that.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = super::cross_validate::folds(), requires = "find_label_errors")]
    folds: u32,
    #[command(flatten)]
    training: Training,
    /// How many lines are listed of each finding.
    #[arg(long, value_name = "N", default_value_t = 10)]
    list: usize,
    /// End with code 4 when there is a finding to settle.
    #[arg(long)]
    strict: bool,
    /// CPU threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Lengths in tokens of a file's texts.
#[derive(Debug, Serialize)]
struct Tokens {
    #[serde(flatten)]
    lengths: Option<LengthSummary>,
    max_length: usize,
    /// The share of the texts that is cut there.
    cut: f64,
}

/// Labels that are probably wrong.
#[derive(Debug, Serialize)]
struct Suspects {
    /// Estimated number of wrong labels.
    estimated: f64,
    /// Rows that are suspected.
    count: usize,
    /// The most suspicious of them.
    listed: Vec<SuspectRow>,
}

#[derive(Debug, Serialize)]
struct SuspectRow {
    line: u64,
    label: String,
    probability: f64,
    suggested: String,
    suggested_probability: f64,
}

impl Arguments {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.model = self.model.map(|model| folder(&model)).transpose()?;
        if self.find_label_errors {
            // Before anything else computes and starts as many threads as there are cores.
            processor(self.threads)?;
        }
        if let (false, Some(option)) = (self.find_label_errors, self.training.given()) {
            return Err(CliError::Usage(format!("{option} tells how to train; give --find-label-errors with it")));
        }
        let job = self.training.base_job(self.model.as_deref().unwrap_or(Path::new("")))?;
        let reads = job.task.kind.reads();
        if reads == Reads::Tables && self.model.is_none() {
            return Err(CliError::Usage(
                "the columns of a table are named by a model; give one with --model (fedtune-client new-table-model makes it)"
                    .into(),
            ));
        }
        if reads == Reads::Images && self.model.is_some() && !self.find_label_errors {
            return Err(CliError::Usage(
                "--model counts the tokens of texts, and images have none; give --find-label-errors with it, or leave it out"
                    .into(),
            ));
        }
        if self.model.is_none() && self.training.max_length.is_some() {
            return Err(CliError::Usage("--max-length counts tokens; give --model with it".into()));
        }
        let columns = Columns { group: self.group_column.clone(), ..self.training.columns(&job)? };
        if self.find_label_errors && !job.task.kind.has_one_label() {
            return Err(CliError::Usage(format!(
                "--find-label-errors knows tasks where each row has one label; the task here is {}",
                job.task.kind
            )));
        }
        // A job's labels, or those of the command line, or none.
        let known = if self.labels.is_empty() { &job.task.labels } else { &self.labels };
        let labels = if known.is_empty() { None } else { Some(LabelMap::new(known, &BTreeMap::new())?) };
        let settings = Settings { task: &job.task, columns: &columns, labels: labels.as_ref(), listed: self.list };
        let found = check::check(&self.train, self.test.as_deref(), settings)?;
        let files: Vec<&FileCheck> = [Some(&found.train), found.test.as_ref()].into_iter().flatten().collect();
        let tokens = match &self.model {
            Some(model) if reads == Reads::Texts => {
                let counter = TokenCounter::load(model)?;
                let count = |file: &&FileCheck| tokens(&counter, &file.path, &columns, job.task.max_length);
                files.iter().map(count).collect::<Result<Vec<_>, _>>()?
            }
            _ => Vec::new(),
        };
        let suspects = match &self.model {
            Some(model) if self.find_label_errors => Some(self.suspects(model, &job, &columns)?),
            _ => None,
        };
        let findings = findings(&found, job.task.kind);
        match self.output {
            Output::Text => {
                for (place, file) in files.iter().enumerate() {
                    outln!("{}", file_text(file, tokens.get(place)));
                }
                if let Some(shared) = &found.shared {
                    outln!("{}", shared_text(shared));
                }
                if let Some(suspects) = &suspects {
                    outln!("{}", suspects_text(suspects));
                }
                if found.near_not_compared > 0 {
                    outln!("{} texts were not looked at for near-duplicates\n", found.near_not_compared);
                }
                match findings.as_slice() {
                    [] => outln!("nothing to settle"),
                    findings => outln!("to settle:\n  - {}", findings.join("\n  - ")),
                }
            }
            Output::Json => {
                let mut document = json!(found);
                for (name, tokens) in ["train", "test"].iter().zip(&tokens) {
                    document[name]["tokens"] = json!(tokens);
                }
                document["label_errors"] = json!(suspects);
                document["findings"] = json!(findings);
                outln!("{document}");
            }
        }
        if self.strict && !findings.is_empty() { Err(CliError::Findings(findings.len())) } else { Ok(()) }
    }

    fn suspects(&self, model: &Path, job: &Job, columns: &Columns) -> Result<Suspects, CliError> {
        let mut job = job.clone();
        if !self.labels.is_empty() {
            job.task.labels.clone_from(&self.labels);
        } else if job.task.labels.is_empty() {
            job.task.labels = data::labels_in(&self.train, columns, &job.task)?;
        }
        let names = &job.task.labels;
        let (rows, _) = data::read(&self.train, columns, &TargetReader::new(&job.task, &BTreeMap::new())?)?;
        let device = processor(self.threads)?;
        let (folds, sampling) = (self.folds as usize, self.training.sampling());
        let found = cross_validate(model, &job, &device, &rows, folds, sampling, Display::new)?;
        let given: Vec<usize> = rows.labels().collect();
        let errors = label_errors(&found.logits, &given);
        let listed = errors.suspects.iter().take(self.list).map(|suspect| SuspectRow {
            line: rows.line(suspect.row),
            label: names[suspect.given].clone(),
            probability: suspect.given_probability,
            suggested: names[suspect.suggested].clone(),
            suggested_probability: suspect.suggested_probability,
        });
        Ok(Suspects { estimated: errors.estimated, count: errors.suspects.len(), listed: listed.collect() })
    }
}

/// Counts tokens a chunk at a time, so that memory does not grow with the file.
fn tokens(counter: &TokenCounter, path: &Path, columns: &Columns, max_length: usize) -> Result<Tokens, CliError> {
    let (mut lengths, mut waiting, mut failed) = (Lengths::default(), Vec::<Content>::new(), None);
    let mut count = |waiting: &mut Vec<Content>| -> Result<(), ModelError> {
        let contents = std::mem::take(waiting);
        let texts: Vec<Text<'_>> = contents.iter().filter_map(text).collect();
        counter.count(&texts)?.into_iter().for_each(|length| lengths.add(length));
        Ok(())
    };
    data::scan(path, &columns.clone().unlabelled(), &mut |_, row| {
        waiting.extend(row.map(|row| row.content));
        if waiting.len() >= CHUNK && failed.is_none() {
            failed = count(&mut waiting).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    count(&mut waiting)?;
    Ok(Tokens { lengths: lengths.summary(), max_length, cut: lengths.share_above(max_length) })
}

/// What a person has to decide on, each with what to do.
fn findings(found: &Check, kind: TaskKind) -> Vec<String> {
    // A set of labels may be one label or none.
    let one_label = kind != TaskKind::MultiLabelClassification;
    let mut out = Vec::new();
    for file in [Some(&found.train), found.test.as_ref()].into_iter().flatten() {
        let path = file.path.display();
        let faulty = file.rows - file.used;
        if faulty > 0 {
            out.push(format!("{path}: {faulty} rows cannot be used; correct them, or let them be left out"));
        }
        if file.conflicts.count > 0 {
            let count = file.conflicts.count;
            out.push(format!(
                "{path}: {count} rows give what an earlier row holds another label, number or response; decide on one"
            ));
        }
        if file.duplicates.count > 0 {
            let count = file.duplicates.count;
            out.push(format!("{path}: {count} rows repeat an earlier row; duplicates = \"remove\" leaves them out"));
        }
        for label in &file.labels {
            if let Some(other) = &label.resembles {
                let (label, rows) = (&label.label, label.rows);
                out.push(format!("{path}: is the label {label:?} ({rows} rows) meant to be {other:?}?"));
            }
        }
        if let ([only], true) = (&file.labels.iter().filter(|label| label.rows > 0).collect::<Vec<_>>()[..], one_label)
        {
            out.push(format!("{path}: every row has the label {:?}; training needs two labels or more", only.label));
        }
    }
    if let Some(Shared { texts, other_label, near, grouped_rows }) = &found.shared {
        let remedy = "the test looks better than it is; take them out of one of the two files";
        if texts.count > 0 {
            let (count, other) = (texts.count, other_label);
            out.push(format!(
                "{count} test rows stand in the training file, {other} with another label there: {remedy}"
            ));
        }
        if near.count > 0 {
            out.push(format!("{} test texts are much like one of the training file: {remedy}", near.count));
        }
        if let Some(rows @ 1..) = grouped_rows {
            out.push(format!("{rows} test rows are of a group that is in the training file: {remedy}"));
        }
    }
    out
}

/// Lines for a table, `...` where there are more than are listed.
fn lines(listed: impl ExactSizeIterator<Item = String>, count: u64) -> String {
    let more = if count > listed.len() as u64 { ", ..." } else { "" };
    listed.collect::<Vec<_>>().join(", ") + more
}

fn matches(found: &Matches) -> String {
    let named = found.listed.iter().map(|found| {
        let near = if found.similarity < 1.0 { format!(" {:.2}", found.similarity) } else { String::new() };
        format!("{} ({}{near})", found.line, found.earlier_line)
    });
    lines(named, found.count)
}

/// The width of a table's first column.
const WIDE: usize = 44;

fn file_text(file: &FileCheck, tokens: Option<&Tokens>) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}: {} rows, {} usable", file.path.display(), file.rows, file.used);
    if !file.labels.is_empty() {
        let _ = writeln!(out, "\n{:WIDE$}  {:>7}  {:>6}", "label", "rows", "share");
    }
    for label in &file.labels {
        let note = label.resembles.as_ref().map_or_else(String::new, |other| format!("  meant to be {other:?}?"));
        let name = shorten(&label.label, WIDE - 3);
        let _ = writeln!(out, "{name:WIDE$}  {:7}  {:>6}{note}", label.rows, share(Some(label.share)));
    }
    if let Some(NumberSummary { least, mean, sd, most }) = file.numbers {
        let _ = writeln!(out, "\nnumbers from {least} to {most}, mean {mean:.4}, standard deviation {sd:.4}");
    }
    if file.characters.is_some() {
        let _ = writeln!(
            out,
            "\n{:WIDE$}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}",
            "length", "least", "median", "mean", "95 %", "99 %", "most"
        );
    }
    let mut row = |name: &str, lengths: Option<LengthSummary>| {
        if let Some(LengthSummary { least, median, mean, p95, p99, most }) = lengths {
            let _ = writeln!(out, "{name:WIDE$}  {least:7}  {median:7}  {mean:7.1}  {p95:7}  {p99:7}  {most:7}");
        }
    };
    row("characters", file.characters);
    if let Some(tokens) = tokens {
        row("tokens", tokens.lengths);
        let _ = writeln!(out, "{:.2} % of the texts are cut at {} tokens", 100.0 * tokens.cut, tokens.max_length);
    }
    if let Some(groups) = file.groups {
        let _ = writeln!(out, "\n{groups} groups");
    }
    if !file.faults.is_empty() {
        let _ = writeln!(out, "\n{:WIDE$}  {:>7}  lines", "cannot be used", "rows");
    }
    for (kind, faults) in &file.faults {
        let listed = lines(faults.first.iter().map(|(line, _)| line.to_string()), faults.count);
        let _ = writeln!(out, "{kind:WIDE$}  {:7}  {listed}", faults.count);
    }
    for (label, unknown) in &file.unknown_labels {
        let nearest = unknown.nearest.as_ref().map_or_else(String::new, |near| format!("  did you mean {near:?}?"));
        let _ = writeln!(out, "  {:width$}  {:7}{nearest}", shorten(label, WIDE - 5), unknown.count, width = WIDE - 2);
    }
    if !file.unknown_words.is_empty() {
        let _ = writeln!(out, "\n{:WIDE$}  {:>7}", "columns with words the model does not know", "rows");
    }
    for (column, rows) in &file.unknown_words {
        let _ = writeln!(out, "{:WIDE$}  {rows:7}", shorten(column, WIDE - 3));
    }
    let repeated = [
        ("an earlier row again", &file.duplicates),
        ("much like an earlier text", &file.near_duplicates),
        ("an earlier text with another label", &file.conflicts),
    ];
    if !file.suspicious.is_empty() || repeated.iter().any(|(_, found)| found.count > 0) {
        let _ = writeln!(out, "\n{:WIDE$}  {:>7}  lines (earlier line, similarity)", "usable, to be looked at", "rows");
    }
    for (name, found) in repeated.iter().filter(|(_, found)| found.count > 0) {
        let _ = writeln!(out, "{name:WIDE$}  {:7}  {}", found.count, matches(found));
    }
    for found in &file.conflicts.listed {
        let (label, other) = (shorten(&found.label, WIDE), shorten(&found.earlier_label, WIDE));
        let _ = writeln!(out, "  {} {label} ({} {other})", found.line, found.earlier_line);
    }
    for (name, found) in &file.suspicious {
        let listed = lines(found.lines.iter().map(u64::to_string), found.rows);
        let _ = writeln!(out, "{name:WIDE$}  {:7}  {listed}", found.rows);
    }
    out
}

fn shared_text(shared: &Shared) -> String {
    let mut out = format!("{:WIDE$}  {:>7}  test lines (training lines)\n", "in both files", "rows");
    let Shared { texts, other_label, near, grouped_rows } = shared;
    let _ = writeln!(out, "{:WIDE$}  {:7}  {}", "the same text", texts.count, matches(texts));
    let _ = writeln!(out, "{:WIDE$}  {other_label:7}", "  with another label there");
    let _ = writeln!(out, "{:WIDE$}  {:7}  {}", "much the same text", near.count, matches(near));
    if let Some(rows) = grouped_rows {
        let _ = writeln!(out, "{:WIDE$}  {rows:7}", "the same group");
    }
    out
}

fn suspects_text(suspects: &Suspects) -> String {
    let Suspects { estimated, count, listed } = suspects;
    let mut out = format!("labels that are probably wrong: {count} rows suspected, {estimated:.0} estimated\n");
    let _ = writeln!(out, "{:>7}  {:32}  {:>6}  {:32}  {:>6}", "line", "label", "share", "suggested", "share");
    for row in listed {
        let (label, suggested) = (shorten(&row.label, 29), shorten(&row.suggested, 29));
        let (given, other) = (row.probability, row.suggested_probability);
        let _ = writeln!(out, "{:7}  {label:32}  {given:6.4}  {suggested:32}  {other:6.4}", row.line);
    }
    out
}
