//! `fedtune-client predict`: labels or numbers for a file of rows.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use clap::Args;
use fedtune_config::job::Task;
use tempfile::NamedTempFile;

use super::columns::ColumnNames;
use super::model_folder::folder;
use super::progress::Display;
use super::{CliError, processor};
use crate::data::{self, Content, DataError, Fault, RawRow};
use crate::finetune::metrics::{applies, predicted, probabilities, probability};
use crate::finetune::{self, Prediction, Silent};
use crate::model::{Classifier, Objective, Response};

const EXAMPLES: &str = "\
Examples:
  fedtune-client predict --model tuned --data notes.csv --out labels.csv
  fedtune-client predict --model tuned --data notes.jsonl --text-column sentence --out labels.csv --scores
  fedtune-client predict --model cells --data images --out labels.csv --scores

The output has one line for each row of the input, in the same order. What stands there follows from the model's task:
  one label a text      `label`, the one with the highest score, and its `score`
  several labels        `labels`, those with a probability above a half, with the separator between them
  a number              `value`
  a label for each word `labels`, a JSON list; null for words behind the longest sequence
  a response            `response`, by the likeliest token at a time, its `score`, the geometric mean of its tokens'
                        probabilities, and `complete`, which is false where --max-new-tokens cut it
  images                before these `file`, its path in the folder, or `row`, its number in the Parquet file (from 1)
A row that cannot be read keeps its line, with empty cells; such rows are counted on standard error.";

/// Rows held in memory at a time.
const CHUNK: usize = 1024;

/// Bytes of rows held in memory at a time; images are large.
const CHUNK_BYTES: usize = 32 << 20;

/// Tokens of the longest response.
const RESPONSE: usize = 128;

/// Apply a fine-tuned model to the rows of a file.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the fine-tuned model, or its name on a hub (with `--features hub`).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the base model, where --model holds adapters.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// CSV, JSONL or Parquet file with texts (or pairs, or lists of words), images or the columns of a table, or a folder of
    /// images; it need not have labels.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnNames,
    /// CSV file to write.
    #[arg(long, value_name = "FILE.csv")]
    out: PathBuf,
    /// Add a column `score_LABEL` with the probability of each label.
    #[arg(long)]
    scores: bool,
    /// Add a column `logit_LABEL` with the logit of each label.
    #[arg(long)]
    logits: bool,
    /// Longest response in tokens, for models that respond to prompts (default 128).
    #[arg(long, value_name = "N", value_parser = batch_size)]
    max_new_tokens: Option<usize>,
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
    task: &'a Task,
    writer: csv::Writer<BufWriter<NamedTempFile>>,
    /// Rows to label, those of images with a name.
    waiting: Vec<(Option<String>, Option<Content>)>,
    waiting_bytes: usize,
    /// Cells of a line.
    width: usize,
    rows: u64,
    faulty: u64,
    first: Option<(u64, Fault)>,
}

impl Arguments {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.model = folder(&self.model)?;
        self.base = self.base.map(|base| folder(&base)).transpose()?;
        let device = processor(self.threads)?;
        let classifier = Classifier::load_exported(&self.model, self.base.as_deref(), &device)?;
        let objective = classifier.network().objective();
        if self.max_new_tokens.is_some() && objective != Objective::NextToken {
            let message = "--max-new-tokens is for models that respond to prompts, which this one does not";
            return Err(CliError::Usage(message.into()));
        }
        if (self.scores || self.logits) && !matches!(objective, Objective::Class | Objective::Sets) {
            return Err(CliError::Usage(
                "--scores and --logits are of the labels of a text, which this model does not give".into(),
            ));
        }
        let task = self.columns.task_of(&classifier)?;
        let columns = ColumnNames::of(&task, &classifier).unlabelled();
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).map_err(|e| self.write_error(e))?;
        let mut predictions = Predictions {
            arguments: &self,
            classifier: &classifier,
            task: &task,
            writer: csv::Writer::from_writer(BufWriter::new(file)),
            waiting: Vec::new(),
            waiting_bytes: 0,
            width: 0,
            rows: 0,
            faulty: 0,
            first: None,
        };
        predictions.header()?;
        let mut failed = None;
        data::scan(&self.data, &columns, &mut |line, row| {
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
        let fields: &[&str] = match self.classifier.network().objective() {
            Objective::Class => &["label", "score"],
            Objective::Sets | Objective::Tokens => &["labels"],
            Objective::Value => &["value"],
            Objective::NextToken => &["response", "score", "complete"],
        };
        let images = self.task.kind.reads_images();
        let place = images.then_some(if self.arguments.data.is_dir() { "file" } else { "row" });
        let mut fields: Vec<String> = place.iter().chain(fields).map(|name| (*name).to_owned()).collect();
        let labels = self.classifier.labels();
        if self.arguments.scores {
            fields.extend(labels.iter().map(|label| format!("score_{label}")));
        }
        if self.arguments.logits {
            fields.extend(labels.iter().map(|label| format!("logit_{label}")));
        }
        self.width = fields.len();
        self.write(&fields)
    }

    fn add(&mut self, line: u64, row: Result<RawRow, Fault>) -> Result<(), CliError> {
        self.rows += 1;
        let name = self.task.kind.reads_images().then(|| match &row {
            Ok(RawRow { content: Content::Image(picture), .. }) => picture.file.clone(),
            Err(Fault::Image { file, .. }) => file.clone(),
            _ => None,
        });
        let name = name.map(|file| file.unwrap_or_else(|| line.to_string()));
        let content = match row {
            Ok(row) => {
                self.waiting_bytes += row.content.length();
                Some(row.content)
            }
            Err(fault) => {
                self.faulty += 1;
                self.first.get_or_insert((line, fault));
                None
            }
        };
        self.waiting.push((name, content));
        let full = self.waiting.len() >= CHUNK || self.waiting_bytes >= CHUNK_BYTES;
        if full { self.label() } else { Ok(()) }
    }

    /// Labels and writes the waiting rows.
    fn label(&mut self) -> Result<(), CliError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let (mut names, mut contents) = (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
        for (name, content) in waiting {
            names.push((name, content.is_none()));
            contents.extend(content);
        }
        let Arguments { batch_size, max_new_tokens, .. } = *self.arguments;
        let found = match self.classifier.network().objective() {
            Objective::NextToken => {
                let most = max_new_tokens.unwrap_or(RESPONSE);
                finetune::respond(self.classifier, &contents, most, batch_size, &mut Display::new("responding"))?
            }
            _ => finetune::predict(self.classifier, &contents, batch_size, &mut Silent)?,
        };
        let mut found = found.into_iter();
        for (name, faulty) in names {
            let mut fields: Vec<String> = name.into_iter().collect();
            if let Some(prediction) = if faulty { None } else { found.next() } {
                fields.extend(self.fields(&prediction));
            }
            fields.resize(self.width, String::new());
            self.write(&fields)?;
        }
        Ok(())
    }

    fn fields(&self, prediction: &Prediction) -> Vec<String> {
        let labels = self.classifier.labels();
        let outputs = match prediction {
            Prediction::Outputs(outputs) => outputs,
            Prediction::Response(Response { text, score, ended }) => {
                return vec![text.clone(), format!("{score:.6}"), ended.to_string()];
            }
            Prediction::Tags(tags) => {
                let names: Vec<Option<&String>> = tags.iter().map(|tag| tag.and_then(|tag| labels.get(tag))).collect();
                return vec![serde_json::json!(names).to_string()];
            }
        };
        let (mut fields, shares) = match self.classifier.network().objective() {
            Objective::Class => {
                let (best, shares) = (predicted(outputs), probabilities(outputs));
                (vec![labels[best].clone(), format!("{:.6}", shares[best])], shares)
            }
            Objective::Sets => {
                let separator = self.task.label_separator.unwrap_or('|').to_string();
                let found = labels.iter().zip(outputs).filter(|(_, logit)| applies(**logit));
                let names: Vec<&str> = found.map(|(label, _)| label.as_str()).collect();
                (vec![names.join(&separator)], outputs.iter().map(|logit| probability(*logit)).collect())
            }
            Objective::Value | Objective::Tokens | Objective::NextToken => {
                return outputs.iter().map(f32::to_string).collect();
            }
        };
        if self.arguments.scores {
            fields.extend(shares.iter().map(|share| format!("{share:.6}")));
        }
        if self.arguments.logits {
            fields.extend(outputs.iter().map(f32::to_string));
        }
        fields
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
