//! What is to be learnt of a row: read from its label, and kept in columns.

use std::collections::BTreeMap;

use fedtune_config::job::{Task, TaskKind};

use super::content::Content;
use super::error::{DataError, Fault};
use super::fold::fold;
use super::labels::LabelMap;

/// What is to be learnt of a row. Labels are indices into the job's.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// One label.
    Class(usize),
    /// The labels that apply, ascending; perhaps none.
    Set(Vec<u16>),
    /// A finite number.
    Value(f32),
    /// The label of each word.
    Tags(Vec<u16>),
    /// The response to the prompt, which is part of the content; here it is known by a hash.
    Response(u64),
}

impl Default for Target {
    fn default() -> Self {
        Self::Class(0)
    }
}

/// The same, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TargetRef<'a> {
    /// One label.
    Class(usize),
    /// The labels that apply, ascending.
    Set(&'a [u16]),
    /// A finite number.
    Value(f32),
    /// The label of each word.
    Tags(&'a [u16]),
    /// A response, known by a hash.
    Response(u64),
}

impl Target {
    /// It, borrowed.
    pub fn borrowed(&self) -> TargetRef<'_> {
        match self {
            Self::Class(label) => TargetRef::Class(*label),
            Self::Set(labels) => TargetRef::Set(labels),
            Self::Value(value) => TargetRef::Value(*value),
            Self::Tags(labels) => TargetRef::Tags(labels),
            Self::Response(hash) => TargetRef::Response(*hash),
        }
    }
}

impl TargetRef<'_> {
    /// A copy that lasts.
    pub fn to_owned(self) -> Target {
        match self {
            Self::Class(label) => Target::Class(label),
            Self::Set(labels) => Target::Set(labels.to_vec()),
            Self::Value(value) => Target::Value(value),
            Self::Tags(labels) => Target::Tags(labels.to_vec()),
            Self::Response(hash) => Target::Response(hash),
        }
    }

    /// Every label that occurs, as often as it does.
    pub fn labels(self) -> impl Iterator<Item = usize> {
        let (one, several): (_, &[u16]) = match self {
            Self::Class(label) => (Some(label), &[]),
            Self::Set(labels) | Self::Tags(labels) => (None, labels),
            Self::Value(_) | Self::Response(_) => (None, &[]),
        };
        one.into_iter().chain(several.iter().map(|label| usize::from(*label)).collect::<Vec<_>>())
    }

    /// A number that equal targets share, and others of one kind do not.
    pub(super) fn key(self) -> u64 {
        match self {
            Self::Class(label) => label as u64,
            // Zero has two signs.
            Self::Value(value) => u64::from((value + 0.0).to_bits()),
            Self::Set(labels) | Self::Tags(labels) => {
                let mut hasher = blake3::Hasher::new();
                for label in labels {
                    hasher.update(&label.to_le_bytes());
                }
                hash(*hasher.finalize().as_bytes())
            }
            Self::Response(hash) => hash,
        }
    }

    /// As a report may show it, with these names of the labels. A response is text, so nothing is shown of it.
    pub(super) fn shown(self, names: &[String], separator: char) -> String {
        let name = |label: usize| names.get(label).map_or("", String::as_str);
        match self {
            Self::Class(label) => name(label).into(),
            Self::Set(labels) => {
                labels.iter().map(|label| name((*label).into())).collect::<Vec<_>>().join(&separator.to_string())
            }
            Self::Value(value) => value.to_string(),
            Self::Tags(labels) => labels.iter().map(|label| name((*label).into())).collect::<Vec<_>>().join(" "),
            Self::Response(_) => String::new(),
        }
    }
}

fn hash(bytes: [u8; 32]) -> u64 {
    bytes.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// A label as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawLabel {
    /// A text, without surrounding white space.
    One(String),
    /// A list of such.
    List(Vec<String>),
}

/// Makes targets of what stands in a file.
#[derive(Debug, Clone)]
pub struct TargetReader {
    kind: TaskKind,
    labels: LabelMap,
    separator: char,
}

impl TargetReader {
    /// The task's targets, with the site's `data.labels` from local names to the job's.
    ///
    /// # Errors
    /// A local name is mapped to a label that the job does not have.
    pub fn new(task: &Task, local: &BTreeMap<String, String>) -> Result<Self, DataError> {
        Ok(Self { kind: task.kind, labels: LabelMap::new(&task.labels, local)?, separator: separator(task) })
    }

    /// The names of the labels.
    pub fn labels(&self) -> &LabelMap {
        &self.labels
    }

    /// The target of a row.
    ///
    /// # Errors
    /// The label is none of the task's.
    pub fn read(&self, label: Option<RawLabel>, content: &Content) -> Result<Target, Fault> {
        let known = |name: &str| self.labels.index(name).ok_or_else(|| Fault::UnknownLabel { label: name.into() });
        target(self.kind, self.separator, label, content, known)
    }
}

/// What stands between the labels of a set where a task does not say.
pub(super) fn separator(task: &Task) -> char {
    task.label_separator.unwrap_or('|')
}

/// The target of a row, with the indices that `index` gives the names of labels.
pub(super) fn target(
    kind: TaskKind,
    separator: char,
    label: Option<RawLabel>,
    content: &Content,
    mut index: impl FnMut(&str) -> Result<usize, Fault>,
) -> Result<Target, Fault> {
    // More labels than fit are refused before: see `LabelMap` and `labels_in`.
    let mut short = |name: &str| index(name).map(|label| u16::try_from(label).unwrap_or(u16::MAX));
    Ok(match (kind, label) {
        (TaskKind::CausalLm, _) => match content {
            Content::Exchange(exchange) => {
                Target::Response(hash(*blake3::hash(fold(&exchange.response).as_bytes()).as_bytes()))
            }
            other => Target::Response(hash(*blake3::hash(&other.identity()).as_bytes())),
        },
        (_, None) => return Err(Fault::EmptyLabel),
        (
            TaskKind::TextClassification | TaskKind::ImageClassification | TaskKind::TableClassification,
            Some(RawLabel::One(name)),
        ) => Target::Class(index(&name)?),
        (TaskKind::TextRegression | TaskKind::TableRegression, Some(RawLabel::One(text))) => {
            match text.parse::<f64>() {
                Ok(value) if (value as f32).is_finite() => Target::Value(value as f32),
                _ => return Err(Fault::NotANumber { found: text }),
            }
        }
        (TaskKind::MultiLabelClassification, Some(label)) => {
            let mut labels = names(label, separator).iter().map(|name| short(name)).collect::<Result<Vec<_>, _>>()?;
            labels.sort_unstable();
            labels.dedup();
            Target::Set(labels)
        }
        (TaskKind::TokenClassification, Some(RawLabel::List(names))) => {
            let words = if let Content::Words(words) = content { words.len() } else { 0 };
            if names.len() != words {
                return Err(Fault::TagCount { words, labels: names.len() });
            }
            Target::Tags(names.iter().map(|name| short(name)).collect::<Result<_, _>>()?)
        }
        (
            TaskKind::TextClassification
            | TaskKind::TextRegression
            | TaskKind::ImageClassification
            | TaskKind::TableClassification
            | TaskKind::TableRegression,
            Some(RawLabel::List(_)),
        )
        | (TaskKind::TokenClassification, Some(RawLabel::One(_))) => return Err(Fault::LabelForm),
    })
}

/// The names in a label that is a set.
pub(super) fn names(label: RawLabel, separator: char) -> Vec<String> {
    match label {
        RawLabel::One(text) => {
            text.split(separator).map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        }
        RawLabel::List(names) => names,
    }
}

/// The targets of many rows, all of one kind.
#[derive(Debug, Default)]
pub(super) enum TargetColumn {
    /// No row yet.
    #[default]
    Empty,
    Classes(Vec<u32>),
    Values(Vec<f32>),
    Responses(Vec<u64>),
    /// Sets of labels, or the labels of words: where each row's end among all.
    Lists {
        sets: bool,
        ends: Vec<u64>,
        labels: Vec<u16>,
    },
}

impl TargetColumn {
    /// Adds a row's; `false`, and nothing is added, where it is of another kind than the first or has an absurd label.
    #[must_use]
    pub(super) fn push(&mut self, target: &Target) -> bool {
        if matches!(self, Self::Empty) {
            *self = match target {
                Target::Class(_) => Self::Classes(Vec::new()),
                Target::Value(_) => Self::Values(Vec::new()),
                Target::Response(_) => Self::Responses(Vec::new()),
                Target::Set(_) => Self::Lists { sets: true, ends: Vec::new(), labels: Vec::new() },
                Target::Tags(_) => Self::Lists { sets: false, ends: Vec::new(), labels: Vec::new() },
            };
        }
        match (self, target) {
            (Self::Classes(labels), Target::Class(label)) => match u32::try_from(*label) {
                Ok(label) => labels.push(label),
                Err(_) => return false,
            },
            (Self::Values(values), Target::Value(value)) => values.push(*value),
            (Self::Responses(hashes), Target::Response(hash)) => hashes.push(*hash),
            (Self::Lists { sets: true, ends, labels }, Target::Set(more))
            | (Self::Lists { sets: false, ends, labels }, Target::Tags(more)) => {
                labels.extend_from_slice(more);
                ends.push(labels.len() as u64);
            }
            _ => return false,
        }
        true
    }

    /// The target at a place; one that is not there is a bug of the caller.
    pub(super) fn get(&self, place: usize) -> TargetRef<'_> {
        match self {
            Self::Empty => TargetRef::Set(&[]),
            Self::Classes(labels) => TargetRef::Class(labels[place] as usize),
            Self::Values(values) => TargetRef::Value(values[place]),
            Self::Responses(hashes) => TargetRef::Response(hashes[place]),
            Self::Lists { sets, ends, labels } => {
                let start = place.checked_sub(1).map_or(0, |before| ends[before] as usize);
                let labels = &labels[start..ends[place] as usize];
                if *sets { TargetRef::Set(labels) } else { TargetRef::Tags(labels) }
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn reader(kind: TaskKind) -> TargetReader {
        let labels = if kind.has_labels() { vec!["a".into(), "b".into(), "c d".into()] } else { Vec::new() };
        TargetReader::new(&Task::new(kind, labels), &BTreeMap::new()).unwrap()
    }

    fn one(text: &str) -> Option<RawLabel> {
        Some(RawLabel::One(text.into()))
    }

    fn list(names: &[&str]) -> Option<RawLabel> {
        Some(RawLabel::List(names.iter().map(|name| (*name).to_owned()).collect()))
    }

    #[test]
    fn labels_become_targets_of_each_kind() {
        let text = Content::from("t");
        let words = Content::Words(["x".to_owned(), "y".to_owned()].into());
        for (kind, label, content, target) in [
            (TaskKind::TextClassification, one("b"), &text, Target::Class(1)),
            (TaskKind::MultiLabelClassification, one("c d| a|a"), &text, Target::Set(vec![0, 2])),
            (TaskKind::MultiLabelClassification, list(&["b"]), &text, Target::Set(vec![1])),
            (TaskKind::MultiLabelClassification, one(""), &text, Target::Set(vec![])),
            (TaskKind::TextRegression, one("-2.5e1"), &text, Target::Value(-25.0)),
            (TaskKind::TokenClassification, list(&["c d", "a"]), &words, Target::Tags(vec![2, 0])),
        ] {
            assert_eq!(reader(kind).read(label, content), Ok(target), "{kind}");
        }
    }

    #[test]
    fn labels_that_are_none_are_named() {
        let text = Content::from("t");
        let words = Content::Words(["x".to_owned(), "y".to_owned()].into());
        for (kind, label, content, expected) in [
            (TaskKind::TextRegression, one("high"), &text, "found \"high\""),
            (TaskKind::TextRegression, one("NaN"), &text, "found \"NaN\""),
            (TaskKind::TextRegression, one("1e39"), &text, "found \"1e39\""),
            (TaskKind::TextRegression, one("inf"), &text, "finite number"),
            (TaskKind::MultiLabelClassification, one("a|z"), &text, "found \"z\""),
            (TaskKind::TokenClassification, list(&["a"]), &words, "1 labels for 2 words"),
            (TaskKind::TokenClassification, list(&["a", "z"]), &words, "found \"z\""),
            (TaskKind::TextClassification, list(&["a"]), &text, "found a list"),
        ] {
            let fault = reader(kind).read(label, content).unwrap_err().to_string();
            assert!(fault.contains(expected), "{kind}: {fault}");
        }
    }

    #[test]
    fn a_column_gives_back_what_was_put_in() {
        for targets in [
            vec![Target::Class(3), Target::Class(0)],
            vec![Target::Set(vec![]), Target::Set(vec![1, 2]), Target::Set(vec![0])],
            vec![Target::Tags(vec![4, 4]), Target::Tags(vec![1])],
            vec![Target::Value(-0.5), Target::Value(7.0)],
            vec![Target::Response(u64::MAX), Target::Response(0)],
        ] {
            let mut column = TargetColumn::default();
            assert!(targets.iter().all(|target| column.push(target)));
            let found: Vec<Target> = (0..targets.len()).map(|place| column.get(place).to_owned()).collect();
            assert_eq!(found, targets);
            let other = if matches!(targets[0], Target::Class(_)) { Target::Value(1.0) } else { Target::Class(1) };
            assert!(!column.push(&other));
        }
    }

    #[test]
    fn equal_targets_have_one_key() {
        let key = |target: Target| target.borrowed().key();
        assert_eq!(key(Target::Value(0.0)), key(Target::Value(-0.0)));
        assert_eq!(key(Target::Set(vec![1, 2])), key(Target::Set(vec![1, 2])));
        assert_ne!(key(Target::Set(vec![1, 2])), key(Target::Set(vec![1])));
        assert_ne!(key(Target::Class(1)), key(Target::Class(2)));
    }
}
