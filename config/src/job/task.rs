//! `[task]`: what is learnt, from which columns.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::evaluation::Metric;
use super::{MAX_NAME, range};
use crate::error::Problems;

/// Most labels of a job; a confusion matrix has the square of it, and must fit a message.
const LABELS_MAX: usize = 1000;

/// The longest template, in bytes.
const TEMPLATE_MAX: usize = 4096;

/// What a template stands for in place of a row's prompt and response.
pub const PROMPT: &str = "{prompt}";
/// See [`PROMPT`].
pub const RESPONSE: &str = "{response}";

/// The kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// One label for each text, or for each pair of texts.
    TextClassification,
    /// Any number of labels for each text or pair.
    MultiLabelClassification,
    /// A number for each text or pair.
    TextRegression,
    /// A label for each word.
    TokenClassification,
    /// The response to each prompt, token by token.
    CausalLm,
    /// One label for each image.
    ImageClassification,
    /// One label for each row of a table.
    TableClassification,
    /// A number for each row of a table.
    TableRegression,
}

/// What a row is, and a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reads {
    /// Texts.
    #[default]
    Texts,
    /// Images.
    Images,
    /// Columns of a table.
    Tables,
}

impl fmt::Display for Reads {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Texts => "texts",
            Self::Images => "images",
            Self::Tables => "tables",
        })
    }
}

impl TaskKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::TextClassification,
        Self::MultiLabelClassification,
        Self::TextRegression,
        Self::TokenClassification,
        Self::CausalLm,
        Self::ImageClassification,
        Self::TableClassification,
        Self::TableRegression,
    ];

    /// As it stands in a job.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextClassification => "text-classification",
            Self::MultiLabelClassification => "multi-label-classification",
            Self::TextRegression => "text-regression",
            Self::TokenClassification => "token-classification",
            Self::CausalLm => "causal-lm",
            Self::ImageClassification => "image-classification",
            Self::TableClassification => "table-classification",
            Self::TableRegression => "table-regression",
        }
    }

    /// Whether the job names the labels.
    pub fn has_labels(self) -> bool {
        !matches!(self, Self::TextRegression | Self::TableRegression | Self::CausalLm)
    }

    /// Whether each row has one label.
    pub fn has_one_label(self) -> bool {
        matches!(self, Self::TextClassification | Self::ImageClassification | Self::TableClassification)
    }

    /// Whether a row is a text or a pair of texts.
    pub fn reads_text(self) -> bool {
        matches!(self, Self::TextClassification | Self::MultiLabelClassification | Self::TextRegression)
    }

    /// What a row is.
    pub fn reads(self) -> Reads {
        match self {
            Self::TextClassification
            | Self::MultiLabelClassification
            | Self::TextRegression
            | Self::TokenClassification
            | Self::CausalLm => Reads::Texts,
            Self::ImageClassification => Reads::Images,
            Self::TableClassification | Self::TableRegression => Reads::Tables,
        }
    }

    /// Whether a row is an image.
    pub fn reads_images(self) -> bool {
        self.reads() == Reads::Images
    }

    /// What can decide which state is best; the first does where a job names none.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::TextClassification | Self::ImageClassification | Self::TableClassification => {
                &[Metric::Accuracy, Metric::MacroF1, Metric::Loss]
            }
            Self::MultiLabelClassification => &[Metric::MicroF1, Metric::MacroF1, Metric::ExactMatch, Metric::Loss],
            Self::TextRegression | Self::TableRegression => {
                &[Metric::Mse, Metric::Loss, Metric::Mae, Metric::Pearson, Metric::R2]
            }
            Self::TokenClassification => &[Metric::MacroF1, Metric::EntityF1, Metric::Accuracy, Metric::Loss],
            Self::CausalLm => &[Metric::Loss, Metric::Perplexity, Metric::Accuracy],
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl std::str::FromStr for TaskKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("found {text:?}; expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What is learnt from which columns. What a kind reads and a document leaves out has its default after reading; what a
/// kind does not read is `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Task {
    /// The kind of task.
    pub kind: TaskKind,
    /// Every label, in the order of the outputs; empty for kinds without labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The column with the text, unless a site maps another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// The column with a second text, where rows are pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair_column: Option<String>,
    /// The column with the words of a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_column: Option<String>,
    /// The column with the label, the labels or the number, unless a site maps another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// What stands between the labels of a row where they are one text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_separator: Option<char>,
    /// The column with the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_column: Option<String>,
    /// The column with the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_column: Option<String>,
    /// The column with the encoded image, unless a site maps another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// How prompt and response make one text; what stands before [`RESPONSE`] is not learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Longest sequence in tokens, special tokens counted; longer texts are cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
}

fn default_max_length() -> usize {
    128
}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Task {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut task = Self::deserialize(deserializer)?;
        task.complete();
        Ok(task)
    }
}

impl Task {
    /// A task with every default.
    pub fn new(kind: TaskKind, labels: Vec<String>) -> Self {
        let mut task = Self {
            kind,
            labels,
            text_column: None,
            pair_column: None,
            tokens_column: None,
            label_column: None,
            label_separator: None,
            prompt_column: None,
            response_column: None,
            image_column: None,
            template: None,
            max_length: default_max_length(),
        };
        task.complete();
        task
    }

    /// Fills in what the kind reads.
    fn complete(&mut self) {
        fn default(field: &mut Option<String>, value: &str) {
            field.get_or_insert_with(|| value.into());
        }
        match self.kind {
            TaskKind::TextClassification | TaskKind::TextRegression => {
                default(&mut self.text_column, "text");
                default(&mut self.label_column, "label");
            }
            TaskKind::ImageClassification => {
                default(&mut self.image_column, "image");
                default(&mut self.label_column, "label");
            }
            TaskKind::TableClassification | TaskKind::TableRegression => default(&mut self.label_column, "label"),
            TaskKind::MultiLabelClassification => {
                default(&mut self.text_column, "text");
                default(&mut self.label_column, "labels");
                self.label_separator.get_or_insert('|');
            }
            TaskKind::TokenClassification => {
                default(&mut self.tokens_column, "tokens");
                default(&mut self.label_column, "labels");
            }
            TaskKind::CausalLm => {
                default(&mut self.prompt_column, "prompt");
                default(&mut self.response_column, "response");
                default(&mut self.template, &format!("{PROMPT}\n{RESPONSE}"));
            }
        }
    }

    /// Whether the labels mark the words of entities: `B-` where one begins, `I-` inside one, `O` outside (Ramshaw and
    /// Marcus 1995, cmp-lg/9505040).
    pub fn has_entities(&self) -> bool {
        self.kind == TaskKind::TokenClassification
            && self.labels.iter().any(|label| label.starts_with("B-") || label.starts_with("I-"))
    }

    pub(super) fn validate(&self, p: &mut Problems) {
        self.validate_labels(p);
        let kind = self.kind;
        let (text, tokens, exchange) =
            (kind.reads_text(), kind == TaskKind::TokenClassification, kind == TaskKind::CausalLm);
        let columns = [
            ("task.text_column", &self.text_column, text),
            ("task.pair_column", &self.pair_column, text),
            ("task.tokens_column", &self.tokens_column, tokens),
            ("task.label_column", &self.label_column, !exchange),
            ("task.prompt_column", &self.prompt_column, exchange),
            ("task.response_column", &self.response_column, exchange),
            ("task.image_column", &self.image_column, kind.reads_images()),
        ];
        let mut named: Vec<(&str, &str)> = Vec::new();
        for (field, name, read) in columns {
            let Some(name) = name else { continue };
            p.check(read, field, || unread(kind));
            p.check(!name.is_empty(), field, || "is empty; expected a column name".into());
            if let Some((other, _)) = named.iter().find(|(_, other)| other == name) {
                p.check(false, field, || format!("found {name:?}, which is {other} too; expected another column"));
            }
            named.push((field, name));
        }
        if let Some(separator) = self.label_separator {
            let field = "task.label_separator";
            p.check(kind == TaskKind::MultiLabelClassification, field, || unread(kind));
            let plain = !separator.is_alphanumeric() && !separator.is_control() && separator != '"';
            p.check(plain, field, || format!("found {separator:?}; expected a sign such as \"|\" or \";\""));
            if let Some(label) = self.labels.iter().find(|label| label.contains(separator)) {
                p.check(false, field, || {
                    format!("found {separator:?}, which is in the label {label:?}; expected one that is in no label")
                });
            }
        }
        if let Some(template) = &self.template {
            p.check(exchange, "task.template", || unread(kind));
            let once = |part: &str| template.matches(part).count() == 1;
            let ordered = once(PROMPT) && once(RESPONSE) && template.find(PROMPT) < template.find(RESPONSE);
            p.check(ordered && template.len() <= TEMPLATE_MAX, "task.template", || {
                format!(
                    "found {template:?}; expected at most {TEMPLATE_MAX} bytes with {PROMPT} once and {RESPONSE} once \
                     after it"
                )
            });
        }
        range(p, "task.max_length", self.max_length, 4, 8192);
    }

    fn validate_labels(&self, p: &mut Problems) {
        let (kind, labels) = (self.kind, &self.labels);
        if !kind.has_labels() {
            p.check(labels.is_empty(), "task.labels", || unread(kind));
            return;
        }
        let least = if kind == TaskKind::MultiLabelClassification { 1 } else { 2 };
        p.check((least..=LABELS_MAX).contains(&labels.len()), "task.labels", || {
            format!("found {} labels; expected {least} to {LABELS_MAX}", labels.len())
        });
        let mut seen = BTreeSet::new();
        // Of too many it is enough to say that they are.
        for (i, label) in labels.iter().take(LABELS_MAX).enumerate() {
            let field = format!("task.labels[{i}]");
            p.check(!label.trim().is_empty() && label.len() <= MAX_NAME, &field, || {
                format!("found {label:?}; expected 1 to {MAX_NAME} bytes")
            });
            p.check(seen.insert(label), &field, || format!("found {label:?} a second time; every label stands once"));
        }
    }
}

/// What is said of a field that a kind makes no use of.
pub(super) fn unread(kind: TaskKind) -> String {
    format!("stands beside task.kind = \"{kind}\", which makes no use of it; leave it out")
}
