//! `fedtune-client predict`: labels for a file of texts.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use clap::Args;
use tempfile::NamedTempFile;

use super::{CliError, processor};
use crate::data::{self, DataError, Fault, RawRow, Wanted};
use crate::finetune::metrics::{predicted, probabilities};
use crate::finetune::{self, Silent};
use crate::model::Classifier;

const EXAMPLES: &str = "\
Examples:
  fedtune-client predict --model tuned --data notes.csv --out labels.csv
  fedtune-client predict --model tuned --data notes.jsonl --text-column sentence --out labels.csv --scores

The output has one line for each row of the input, in the same order: the label with the highest score and the score.
A row that cannot be read keeps its line, with an empty label; such rows are counted on standard error.";

/// Rows held in memory at a time.
const CHUNK: usize = 1024;

/// Label the texts of a file.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the fine-tuned model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the base model, where --model holds adapters.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// CSV or JSONL file with texts; it need not have labels.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Column with the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// CSV file to write.
    #[arg(long, value_name = "FILE.csv")]
    out: PathBuf,
    /// Add a column `score_LABEL` with the probability of each label.
    #[arg(long)]
    scores: bool,
    /// Add a column `logit_LABEL` with the logit of each label.
    #[arg(long)]
    logits: bool,
    /// Rows computed together.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = batch_size)]
    batch_size: usize,
    /// CPU threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// A batch size from the command line.
pub(super) fn batch_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=65_536) => Ok(size),
        _ => Err("expected a whole number from 1 to 65536".into()),
    }
}

/// The file that grows while rows are labelled.
struct Predictions<'a> {
    arguments: &'a Arguments,
    classifier: &'a Classifier,
    writer: csv::Writer<BufWriter<NamedTempFile>>,
    waiting: Vec<Option<String>>,
    rows: u64,
    faulty: u64,
    first: Option<(u64, Fault)>,
}

impl Arguments {
    pub(super) fn run(self) -> Result<(), CliError> {
        let device = processor(self.threads)?;
        let classifier = Classifier::load_exported(&self.model, self.base.as_deref(), &device)?;
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).map_err(|e| self.write_error(e))?;
        let mut predictions = Predictions {
            arguments: &self,
            classifier: &classifier,
            writer: csv::Writer::from_writer(BufWriter::new(file)),
            waiting: Vec::new(),
            rows: 0,
            faulty: 0,
            first: None,
        };
        predictions.header()?;
        let mut failed = None;
        data::scan(&self.data, Wanted::text(&self.text_column), &mut |line, row| {
            if failed.is_none() {
                failed = predictions.add(line, row).err();
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        predictions.finish()
    }

    fn write_error(&self, source: std::io::Error) -> CliError {
        CliError::Write { path: self.out.clone(), source }
    }
}

impl Predictions<'_> {
    fn write(&mut self, fields: &[String]) -> Result<(), CliError> {
        self.writer.write_record(fields).map_err(|e| self.arguments.write_error(e.into()))
    }

    fn header(&mut self) -> Result<(), CliError> {
        let mut fields = vec!["label".to_owned(), "score".to_owned()];
        let labels = self.classifier.labels();
        if self.arguments.scores {
            fields.extend(labels.iter().map(|label| format!("score_{label}")));
        }
        if self.arguments.logits {
            fields.extend(labels.iter().map(|label| format!("logit_{label}")));
        }
        self.write(&fields)
    }

    fn add(&mut self, line: u64, row: Result<RawRow, Fault>) -> Result<(), CliError> {
        self.rows += 1;
        match row {
            Ok(row) => self.waiting.push(Some(row.text)),
            Err(fault) => {
                self.faulty += 1;
                self.first.get_or_insert((line, fault));
                self.waiting.push(None);
            }
        }
        if self.waiting.len() >= CHUNK { self.label() } else { Ok(()) }
    }

    /// Labels and writes the waiting rows.
    fn label(&mut self) -> Result<(), CliError> {
        let waiting = std::mem::take(&mut self.waiting);
        let texts: Vec<&str> = waiting.iter().flatten().map(String::as_str).collect();
        let mut logits = finetune::logits(self.classifier, &texts, self.arguments.batch_size, &mut Silent)?.into_iter();
        let labels = self.classifier.labels();
        let more = usize::from(self.arguments.scores) + usize::from(self.arguments.logits);
        for row in &waiting {
            let logits = if row.is_some() { logits.next() } else { None };
            let Some(logits) = logits else {
                self.write(&vec![String::new(); 2 + more * labels.len()])?;
                continue;
            };
            let (best, shares) = (predicted(&logits), probabilities(&logits));
            let mut fields = vec![labels[best].clone(), format!("{:.6}", shares[best])];
            if self.arguments.scores {
                fields.extend(shares.iter().map(|share| format!("{share:.6}")));
            }
            if self.arguments.logits {
                fields.extend(logits.iter().map(f32::to_string));
            }
            self.write(&fields)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), CliError> {
        if self.rows == 0 {
            return Err(DataError::NoRows { path: self.arguments.data.clone() }.into());
        }
        self.label()?;
        let arguments = self.arguments;
        let buffer =
            self.writer.into_inner().map_err(|e| arguments.write_error(std::io::Error::other(e.to_string())))?;
        let file = buffer.into_inner().map_err(|e| arguments.write_error(e.into_error()))?;
        file.as_file().sync_all().map_err(|e| arguments.write_error(e))?;
        file.persist(&arguments.out).map_err(|e| arguments.write_error(e.error))?;
        if let Some((line, fault)) = self.first {
            let (faulty, data) = (self.faulty, arguments.data.display());
            eprintln!("{faulty} rows of {data} could not be read and have no label; first on line {line}: {fault}");
        }
        eprintln!("{} rows labelled, written to {}", self.rows - self.faulty, arguments.out.display());
        Ok(())
    }
}
