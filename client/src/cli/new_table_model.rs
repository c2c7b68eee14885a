//! `fedtune-client new-table-model`: a model folder for the columns of a table.

use super::output::outln;
use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fedtune_config::job::{Task, TaskKind};
use serde_json::{Value, json};

use super::table::shorten;
use super::{CliError, Output, prepare_out};
use crate::data::check::NumberSummary;
use crate::data::survey::{Survey, Surveyed, Values, Wishes, survey};
use crate::data::{self, Columns, Renamed};
use crate::model::config::{Column, ColumnKind, Scale};
use crate::model::{NewTable, write_new_table};

const EXAMPLES: &str = "\
Examples:
  fedtune-client new-table-model --train patients.csv --label outcome --out risk
  fedtune-client new-table-model --train patients.csv --label outcome --ignore id,site --category ward --hidden none --out risk
  fedtune-client new-table-model --train doses.csv --label dose --task regression --out doses
  fedtune-client finetune --model risk --train patients.csv --label-column outcome --test new.csv --out tuned

A column is one of numbers if every value of it is a finite number; empty cells, NA, N/A, NaN, null and ? are missing values.
A number becomes (x - mean) / deviation and, where it is missing, 0 and a sign that it is; a word becomes an input of its own,
and one that is not in --train none. What the folder's config.json holds (names, means and deviations, words) goes to
whoever gets the model, so that in a federation every site makes the same inputs of the same cells.";

/// Make a new model for the columns of a table, to be fine-tuned alone or as the base model of a job.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// CSV, JSONL or Parquet file with the rows to train on; not those to test on, since means are taken of it.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Column with the label or number.
    #[arg(long, value_name = "NAME", default_value = "label", alias = "label-column")]
    label: String,
    /// What is learnt of a row.
    #[arg(long, value_enum, default_value = "classification")]
    task: Wanted,
    /// Widths of the dense layers, with commas between, or `none` for a linear (logistic) model, which suits few rows.
    #[arg(long, value_name = "N,N", default_value = "64,32", value_parser = hidden)]
    hidden: Hidden,
    /// Columns whose numbers are names (a ward, a code), with commas between; those with words are found.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    category: Vec<String>,
    /// Columns to leave out, with commas between: numbers of rows or subjects, sites, what is known only afterwards.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 42, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: u64,
    /// Folder for the model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// One of some labels.
    Classification,
    /// A number.
    Regression,
}

/// Widths of dense layers.
#[derive(Debug, Clone)]
struct Hidden(Vec<usize>);

fn hidden(text: &str) -> Result<Hidden, String> {
    if text == "none" {
        return Ok(Hidden(Vec::new()));
    }
    let width = |part: &str| part.trim().parse().ok().filter(|width| (1..=4096).contains(width));
    let widths: Option<Vec<usize>> = text.split(',').map(width).collect();
    match widths.filter(|widths| widths.len() <= 32) {
        Some(widths) => Ok(Hidden(widths)),
        None => Err("expected none, or up to 32 widths from 1 to 4096 with commas between, such as 64,32".into()),
    }
}

impl Arguments {
    pub(super) fn run(self) -> Result<(), CliError> {
        let regression = self.task == Wanted::Regression;
        let wishes = Wishes { label: &self.label, regression, ignore: &self.ignore, categories: &self.category };
        let found = survey(&self.train, wishes)?;
        eprintln!("{}", found.report);
        let labels = self.labels(regression)?;
        let columns = found.columns.iter().map(column).collect();
        let scale = |target: NumberSummary| Scale { mean: target.mean, deviation: target.sd };
        let (hidden_sizes, target) = (self.hidden.0.clone(), found.target.map(scale));
        let new = NewTable { columns, hidden_sizes, labels, target, seed: self.seed };
        prepare_out(&self.out, &[])?;
        write_new_table(&self.out, &new)?;
        match self.output {
            Output::Text => outln!("{}written to {}", text(&found, &new, &self.label), self.out.display()),
            Output::Json => {
                let column = |surveyed: &Surveyed| {
                    let (kind, values) = match &surveyed.values {
                        Values::Numbers(numbers) => ("number", json!(numbers)),
                        Values::Words(words) => ("category", json!(words)),
                    };
                    json!({ "name": surveyed.name, "kind": kind, "missing": surveyed.missing, "values": values })
                };
                let document = json!({
                    "model": self.out,
                    "rows": found.report.used,
                    "columns": found.columns.iter().map(column).collect::<Value>(),
                    "inputs": inputs(&new),
                    "labels": new.labels,
                    "target": found.target,
                });
                outln!("{document}");
            }
        }
        Ok(())
    }

    fn labels(&self, regression: bool) -> Result<Vec<String>, CliError> {
        if regression {
            return Ok(Vec::new());
        }
        let task = Task::new(TaskKind::TableClassification, Vec::new());
        let renamed = Renamed { label: Some(self.label.clone()), ..Renamed::default() };
        let labels = data::labels_in(&self.train, &Columns::of(&task, &renamed), &task)?;
        if labels.len() > MANY && labels.iter().all(|label| label.parse::<f64>().is_ok()) {
            eprintln!(
                "note: the column {:?} has {} different numbers; are they to be learnt as such (--task regression)?",
                self.label,
                labels.len()
            );
        }
        Ok(labels)
    }
}

/// So many labels that are all numbers are seldom meant.
const MANY: usize = 20;

fn column(surveyed: &Surveyed) -> Column {
    let kind = match &surveyed.values {
        // As they are all the same, any deviation gives zero.
        Values::Numbers(NumberSummary { mean, sd, .. }) => {
            ColumnKind::Number { mean: *mean, deviation: if *sd > 0.0 { *sd } else { 1.0 } }
        }
        Values::Words(words) => ColumnKind::Category { values: words.clone() },
    };
    Column { name: surveyed.name.clone(), kind }
}

fn inputs(new: &NewTable) -> usize {
    new.columns.iter().map(Column::width).sum()
}

/// The width of a table's columns.
const WIDE: usize = 28;

fn text(found: &Survey, new: &NewTable, label: &str) -> String {
    let mut out = format!("{:WIDE$}  {:8}  {:>7}  values\n", "column", "kind", "missing");
    for Surveyed { name, missing, values } in &found.columns {
        let (kind, values) = match values {
            Values::Numbers(NumberSummary { least, mean, sd, most }) => {
                let same = if least == most { "; the same in every row" } else { "" };
                ("number", format!("{least} to {most}, mean {mean:.4}, deviation {sd:.4}{same}"))
            }
            Values::Words(words) => {
                let shown: Vec<String> = words.iter().take(8).map(|word| shorten(word, 16)).collect();
                let more = if words.len() > shown.len() { ", ..." } else { "" };
                ("category", format!("{}: {}{more}", words.len(), shown.join(", ")))
            }
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{:WIDE$}  {kind:8}  {missing:7}  {values}", shorten(name, WIDE - 3));
    }
    if found.unnamed > 0 {
        let _ = writeln!(out, "left out: {} columns without a name", found.unnamed);
    }
    let answer = match found.target {
        Some(NumberSummary { least, mean, sd, most }) => {
            format!("numbers from {least} to {most}, mean {mean:.4}, deviation {sd:.4}")
        }
        None => {
            let shown: Vec<String> = new.labels.iter().take(12).map(|label| shorten(label, 32)).collect();
            let more = if new.labels.len() > shown.len() { ", ..." } else { "" };
            format!("{} labels: {}{more}", new.labels.len(), shown.join(", "))
        }
    };
    let layers = match new.hidden_sizes.as_slice() {
        [] => "a linear model".to_owned(),
        sizes => format!("dense layers of {}", sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let _ = writeln!(
        out,
        "\n{} columns make {} inputs of {layers}; {}: {answer}",
        new.columns.len(),
        inputs(new),
        shorten(label, WIDE)
    );
    out
}
