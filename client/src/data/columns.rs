//! Which columns hold content, label and group, and finding them in a header.

use std::path::Path;
use std::sync::Arc;

use fedtune_config::Job;
use fedtune_config::job::{Task, TaskKind};
use fedtune_config::site::Data;

use super::error::DataError;

/// What columns of a table are called in messages.
pub(super) const CELL: &str = "model";

/// The role of columns that an option names.
pub(super) const WISH: &str = "wish";

/// Where a row's content stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentColumns {
    /// A text.
    Text(String),
    /// Two texts.
    Pair(String, String),
    /// A list of words; JSONL only.
    Words(String),
    /// A prompt and its response.
    Exchange(String, String),
    /// An image; Parquet, or a folder of images.
    Image(String),
    /// The columns of a table that a model takes; none until it is known: see [`Columns::taking`].
    Cells(Arc<[CellColumn]>),
}

/// A column of a table that a model takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellColumn {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: CellKind,
}

/// What a column of a table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CellKind {
    /// Finite numbers.
    Number,
    /// Words; any, where none are known.
    Word {
        /// Those that the model knows, sorted.
        known: Vec<String>,
    },
}

/// Where a row's label stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelColumn {
    /// Its name.
    pub name: String,
    /// What stands there.
    pub form: LabelForm,
}

/// What stands in a label column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelForm {
    /// One label or number.
    One,
    /// Labels in one text, or a list of them; perhaps none.
    Set,
    /// A list with a label for each word; JSONL only.
    List,
}

/// The names of the needed columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The columns with the content.
    pub content: ContentColumns,
    /// The column with the label, where one is read.
    pub label: Option<LabelColumn>,
    /// The column whose equal values keep rows on one side of a split (a subject's number), if there is one.
    pub group: Option<String>,
}

impl ContentColumns {
    /// The columns, each with its name in messages and options.
    pub(super) fn named(&self) -> Vec<(&str, &'static str)> {
        match self {
            Self::Text(text) => vec![(text, "text")],
            Self::Pair(text, pair) => vec![(text, "text"), (pair, "pair")],
            Self::Words(words) => vec![(words, "tokens")],
            Self::Exchange(prompt, response) => vec![(prompt, "prompt"), (response, "response")],
            Self::Image(image) => vec![(image, "image")],
            Self::Cells(cells) => cells.iter().map(|cell| (cell.name.as_str(), CELL)).collect(),
        }
    }

    /// Whether rows are images.
    pub(super) fn is_image(&self) -> bool {
        matches!(self, Self::Image(_))
    }

    /// How many values of a row, the first ones, are cells of a table.
    pub(super) fn cells(&self) -> usize {
        if let Self::Cells(cells) = self { cells.len() } else { 0 }
    }
}

/// Names that take the place of a task's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renamed {
    /// Of the text.
    pub text: Option<String>,
    /// Of the second text.
    pub pair: Option<String>,
    /// Of the words.
    pub tokens: Option<String>,
    /// Of the label.
    pub label: Option<String>,
    /// Of the prompt.
    pub prompt: Option<String>,
    /// Of the response.
    pub response: Option<String>,
    /// Of the image.
    pub image: Option<String>,
}

impl From<&Data> for Renamed {
    fn from(site: &Data) -> Self {
        Self {
            text: site.text_column.clone(),
            pair: site.pair_column.clone(),
            tokens: site.tokens_column.clone(),
            label: site.label_column.clone(),
            prompt: site.prompt_column.clone(),
            response: site.response_column.clone(),
            image: site.image_column.clone(),
        }
    }
}

impl Columns {
    /// Texts with one label each.
    pub fn labelled(text: &str, label: &str) -> Self {
        let label = Some(LabelColumn { name: label.into(), form: LabelForm::One });
        Self { content: ContentColumns::Text(text.into()), label, group: None }
    }

    /// A task's columns, but for those that are `renamed`; without a group.
    pub fn of(task: &Task, renamed: &Renamed) -> Self {
        let or = |renamed: &Option<String>, column: &Option<String>| {
            renamed.clone().or_else(|| column.clone()).unwrap_or_default()
        };
        let content = match task.kind {
            TaskKind::TokenClassification => ContentColumns::Words(or(&renamed.tokens, &task.tokens_column)),
            TaskKind::CausalLm => ContentColumns::Exchange(
                or(&renamed.prompt, &task.prompt_column),
                or(&renamed.response, &task.response_column),
            ),
            TaskKind::ImageClassification => ContentColumns::Image(or(&renamed.image, &task.image_column)),
            TaskKind::TableClassification | TaskKind::TableRegression => ContentColumns::Cells(Arc::new([])),
            TaskKind::TextClassification | TaskKind::MultiLabelClassification | TaskKind::TextRegression => {
                let text = or(&renamed.text, &task.text_column);
                // Whether rows are pairs is the task's matter, not a file's.
                match &task.pair_column {
                    Some(_) => ContentColumns::Pair(text, or(&renamed.pair, &task.pair_column)),
                    None => ContentColumns::Text(text),
                }
            }
        };
        let form = match task.kind {
            TaskKind::TextClassification
            | TaskKind::TextRegression
            | TaskKind::ImageClassification
            | TaskKind::TableClassification
            | TaskKind::TableRegression => Some(LabelForm::One),
            TaskKind::MultiLabelClassification => Some(LabelForm::Set),
            TaskKind::TokenClassification => Some(LabelForm::List),
            TaskKind::CausalLm => None,
        };
        let label = form.map(|form| LabelColumn { name: or(&renamed.label, &task.label_column), form });
        Self { content, label, group: None }
    }

    /// The job's columns, unless the site maps others.
    pub fn resolve(job: &Job, site: &Data) -> Self {
        Self { group: site.group_column.clone(), ..Self::of(&job.task, &site.into()) }
    }

    /// With the columns of a table that a model takes in place of the content.
    #[must_use]
    pub fn taking(self, cells: Arc<[CellColumn]>) -> Self {
        Self { content: ContentColumns::Cells(cells), ..self }
    }

    /// Whether rows are cells of a table.
    pub fn is_table(&self) -> bool {
        matches!(self.content, ContentColumns::Cells(_))
    }

    /// Without the group, for rows that are not split.
    #[must_use]
    pub fn ungrouped(self) -> Self {
        Self { group: None, ..self }
    }

    /// Without what a model is to say of a row, label or response, and without group: for rows that are only read.
    #[must_use]
    pub fn unlabelled(self) -> Self {
        let content = match self.content {
            ContentColumns::Exchange(prompt, _) => ContentColumns::Text(prompt),
            content => content,
        };
        Self { content, label: None, group: None }
    }

    /// The name of the label column, empty where there is none.
    pub(super) fn label_name(&self) -> String {
        self.label.as_ref().map(|label| label.name.clone()).unwrap_or_default()
    }

    /// Every column with its name in messages: those of the content, the label, the group.
    pub(super) fn named(&self) -> Vec<(&str, &'static str)> {
        let label = self.label.as_ref().map(|label| (label.name.as_str(), "label"));
        let group = self.group.as_deref().map(|group| (group, "group"));
        self.content.named().into_iter().chain(label).chain(group).collect()
    }

    /// Refuses a model that would be given the answer.
    pub(super) fn check(&self, path: &Path) -> Result<(), DataError> {
        match (&self.content, &self.label) {
            (ContentColumns::Cells(cells), Some(label)) if cells.iter().any(|cell| cell.name == label.name) => {
                Err(DataError::LabelTaken { path: path.into(), column: label.name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether what they hold are lists, which are read from JSONL alone.
    pub(super) fn needs_lists(&self) -> bool {
        matches!(self.content, ContentColumns::Words(_))
            || self.label.as_ref().is_some_and(|label| label.form == LabelForm::List)
    }
}

/// The place of a needed column (`role` is its name in messages) in the header that stands on `line`.
pub(super) fn find(
    path: &Path,
    line: u64,
    header: &[String],
    wanted: &str,
    role: &'static str,
) -> Result<usize, DataError> {
    let mut places = header.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(place, _)| place);
    match (places.next(), places.count()) {
        (Some(place), 0) => Ok(place),
        (Some(_), more) => {
            Err(DataError::ColumnTwice { path: path.into(), line, column: wanted.into(), times: more + 1 })
        }
        (None, _) if role == WISH => Err(DataError::WishMissing {
            path: path.into(),
            line,
            wanted: wanted.into(),
            found: header.to_vec(),
            hint: hint(header, wanted),
        }),
        (None, _) if role == CELL => Err(DataError::CellMissing {
            path: path.into(),
            line,
            wanted: wanted.into(),
            found: header.to_vec(),
            hint: hint(header, wanted),
        }),
        (None, _) => Err(DataError::ColumnMissing {
            path: path.into(),
            line,
            wanted: wanted.into(),
            role,
            found: header.to_vec(),
            hint: hint(header, wanted),
        }),
    }
}

fn hint(header: &[String], wanted: &str) -> String {
    if let Some(name) = header.iter().find(|name| name.trim().eq_ignore_ascii_case(wanted)) {
        return format!(" ({name:?} differs only in case or white space)");
    }
    let near = header
        .iter()
        .filter(|name| name.len() <= 64)
        .map(|name| (strsim::damerau_levenshtein(name, wanted), name))
        .min()
        .filter(|(distance, _)| *distance <= 1 + wanted.len() / 3);
    match near {
        Some((_, name)) => format!(" (did you mean {name:?}?)"),
        None if header.iter().any(|name| name.len() > 40) => {
            " (is the first line a row? The first line must name the columns, for example text,label)".into()
        }
        None => String::new(),
    }
}
