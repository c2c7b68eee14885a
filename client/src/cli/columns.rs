//! The options that say where a file's rows have what a task reads.

use std::sync::Arc;

use clap::Args;
use fedtune_config::Job;
use fedtune_config::job::{Task, TaskKind};

use super::CliError;
use crate::data::{Columns, Renamed};
use crate::model::{Classifier, Objective, Reads};

/// Names of columns.
#[derive(Debug, Clone, Args)]
pub(super) struct ColumnNames {
    /// Column with the text, where it differs from the job's (default `text`).
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column with a second text, where rows are pairs of texts.
    #[arg(long, value_name = "NAME")]
    pair_column: Option<String>,
    /// token-classification: column with the list of words (default `tokens`).
    #[arg(long, value_name = "NAME")]
    tokens_column: Option<String>,
    /// Column with the label or number (default `label`), or with the labels (default `labels`).
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// multi-label-classification: what stands between labels that are one text (default `|`).
    #[arg(long, value_name = "SIGN")]
    label_separator: Option<char>,
    /// image-classification: column with the encoded image in a Parquet file (default `image`).
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// causal-lm: column with the prompt (default `prompt`).
    #[arg(long, value_name = "NAME")]
    prompt_column: Option<String>,
    /// causal-lm: column with the response (default `response`).
    #[arg(long, value_name = "NAME")]
    response_column: Option<String>,
}

impl ColumnNames {
    /// Puts the names in place of the task's.
    pub(super) fn apply(&self, task: &mut Task) {
        for (name, column) in [
            (&self.text_column, &mut task.text_column),
            (&self.pair_column, &mut task.pair_column),
            (&self.tokens_column, &mut task.tokens_column),
            (&self.label_column, &mut task.label_column),
            (&self.prompt_column, &mut task.prompt_column),
            (&self.response_column, &mut task.response_column),
            (&self.image_column, &mut task.image_column),
        ] {
            if name.is_some() {
                column.clone_from(name);
            }
        }
        task.label_separator = self.label_separator.or(task.label_separator);
    }

    /// The columns of a task that a fine-tuned model was made for.
    pub(super) fn of(task: &Task, classifier: &Classifier) -> Columns {
        let columns = Columns::of(task, &Renamed::default());
        match classifier.cells() {
            Some(cells) => columns.taking(Arc::clone(cells.columns())),
            None => columns,
        }
    }

    /// The task that a fine-tuned model was made for, with these names.
    ///
    /// # Errors
    /// A name is given that such a task makes no use of.
    pub(super) fn task_of(&self, classifier: &Classifier) -> Result<Task, CliError> {
        let kind = kind(classifier.network().objective(), classifier.reads());
        let mut task = Task::new(kind, classifier.labels().to_vec());
        self.apply(&mut task);
        check(&Job::new("options", "model".as_ref(), task.clone()))?;
        Ok(task)
    }
}

fn kind(objective: Objective, reads: Reads) -> TaskKind {
    match objective {
        Objective::Class if reads == Reads::Images => TaskKind::ImageClassification,
        Objective::Class if reads == Reads::Tables => TaskKind::TableClassification,
        Objective::Value if reads == Reads::Tables => TaskKind::TableRegression,
        Objective::Class => TaskKind::TextClassification,
        Objective::Sets => TaskKind::MultiLabelClassification,
        Objective::Value => TaskKind::TextRegression,
        Objective::Tokens => TaskKind::TokenClassification,
        Objective::NextToken => TaskKind::CausalLm,
    }
}

/// Most labels of a job that sites are sent; on one machine there may be more.
const CHECKED: usize = 1000;

/// Refuses what options made of a job and a job's own text could not say.
///
/// # Errors
/// As reading such a job.
pub(super) fn check(job: &Job) -> Result<(), CliError> {
    let mut job = job.clone();
    job.task.labels.truncate(CHECKED);
    let name = "the job with the options of the command line";
    fedtune_config::parse::<Job>(name.as_ref(), &job.to_toml(), std::iter::empty())?;
    Ok(())
}
