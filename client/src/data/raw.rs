//! From the values of a row's columns to a row whose label is not looked up yet; the same for every format.

use serde_json::Value;

use super::columns::{CellColumn, CellKind, Columns, ContentColumns, LabelColumn, LabelForm};
use super::content::{Cell, Content, Exchange};
use super::error::Fault;
use super::target::RawLabel;
use super::{MAX_CELL, MAX_TEXT};

/// A row before its label is looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct RawRow {
    /// What a model is given.
    pub content: Content,
    /// The label as it stands in the file; `None` where none was asked for.
    pub label: Option<RawLabel>,
    /// The group, without surrounding white space, likewise.
    pub group: Option<String>,
}

/// The values of a row's columns, in the order of [`Columns::named`]; `None` for a column that is not there.
pub(super) type Values = Vec<Option<Value>>;

/// Makes a row of its values.
pub(super) fn row(columns: &Columns, values: Values) -> Result<RawRow, Fault> {
    let mut values = values.into_iter();
    let content = content(&columns.content, &mut values)?;
    let label = columns.label.as_ref().and_then(|_| values.next().flatten());
    let group = columns.group.as_ref().and_then(|_| values.next().flatten());
    labelled(columns, content, label, group)
}

/// Makes a content of as many values as it has columns.
pub(super) fn content(
    columns: &ContentColumns,
    values: &mut dyn Iterator<Item = Option<Value>>,
) -> Result<Content, Fault> {
    let mut next = || values.next().flatten();
    Ok(match columns {
        ContentColumns::Text(name) => Content::Text(text(name, next())?),
        ContentColumns::Pair(one, other) => Content::Pair(Box::new((text(one, next())?, text(other, next())?))),
        ContentColumns::Words(name) => Content::Words(words(name, next())?),
        ContentColumns::Exchange(prompt, response) => {
            let prompt = text(prompt, next())?;
            let response = text(response, next()).map_err(|fault| match fault {
                Fault::EmptyText | Fault::BlankText => Fault::EmptyResponse,
                other => other,
            })?;
            Content::Exchange(Box::new(Exchange { prompt, response }))
        }
        // Formats of text are refused before: see `scan_places`.
        ContentColumns::Image(name) => {
            return Err(wrong(name, &present(name, next())?, "an image"));
        }
        ContentColumns::Cells(cells) => {
            Content::Cells(cells.iter().map(|column| cell(column, next())).collect::<Result<_, _>>()?)
        }
    })
}

/// Puts the values of label and group beside a content.
pub(super) fn labelled(
    columns: &Columns,
    content: Content,
    label: Option<Value>,
    group: Option<Value>,
) -> Result<RawRow, Fault> {
    let label = match &columns.label {
        Some(LabelColumn { name, form }) => Some(self::label(name, *form, label)?),
        None => None,
    };
    let group =
        columns.group.as_ref().map(|key| self::name(key, present(key, group)?, Fault::EmptyGroup)).transpose()?;
    Ok(RawRow { content, label, group })
}

fn present(key: &str, value: Option<Value>) -> Result<Value, Fault> {
    value.ok_or_else(|| Fault::KeyMissing { key: key.into() })
}

fn text(key: &str, value: Option<Value>) -> Result<String, Fault> {
    let text = match present(key, value)? {
        Value::String(text) => text,
        other => return Err(wrong(key, &other, "a string")),
    };
    if text.len() > MAX_TEXT {
        Err(Fault::TooLong { bytes: text.len() })
    } else if text.contains('\0') {
        Err(Fault::Nul)
    } else if text.is_empty() {
        Err(Fault::EmptyText)
    } else if text.trim().is_empty() {
        Err(Fault::BlankText)
    } else {
        Ok(text)
    }
}

fn words(key: &str, value: Option<Value>) -> Result<Box<[String]>, Fault> {
    let items = match present(key, value)? {
        Value::Array(items) if items.is_empty() => return Err(Fault::EmptyText),
        Value::Array(items) => items,
        other => return Err(wrong(key, &other, "a list of strings")),
    };
    let mut bytes = 0;
    items
        .into_iter()
        .enumerate()
        .map(|(place, item)| match item {
            Value::String(word) if word.trim().is_empty() => Err(Fault::BlankWord { place: place + 1 }),
            Value::String(word) if word.contains('\0') => Err(Fault::Nul),
            Value::String(word) => {
                bytes += word.len() + 1;
                if bytes > MAX_TEXT { Err(Fault::TooLong { bytes }) } else { Ok(word) }
            }
            other => Err(wrong(key, &other, "a string in its list")),
        })
        .collect()
}

fn cell(column: &CellColumn, value: Option<Value>) -> Result<Cell, Fault> {
    let CellColumn { name, kind } = column;
    // An object need not have every key.
    let text = match (value.unwrap_or(Value::Null), kind) {
        (Value::Null, _) => return Ok(Cell::Missing),
        (Value::Bool(truth), CellKind::Number) => return Ok(Cell::Number(f64::from(u8::from(truth)))),
        (Value::Bool(truth), CellKind::Word { .. }) => truth.to_string(),
        (Value::Number(number), _) => number.to_string(),
        (Value::String(text), _) => text,
        (other, _) => return Err(wrong(name, &other, "a number, a string, a boolean or null")),
    };
    if text.len() > MAX_CELL {
        return Err(Fault::CellTooLong { column: name.clone(), bytes: text.len() });
    }
    if text.contains('\0') {
        return Err(Fault::Nul);
    }
    match kind {
        CellKind::Word { .. } => Ok(Cell::word(&text)),
        CellKind::Number => {
            Cell::number(&text).ok_or_else(|| Fault::Cell { column: name.clone(), found: text.trim().into() })
        }
    }
}

fn label(key: &str, form: LabelForm, value: Option<Value>) -> Result<RawLabel, Fault> {
    let value = present(key, value)?;
    match (form, value) {
        (LabelForm::Set | LabelForm::List, Value::Array(items)) => {
            let names = items.into_iter().map(|item| name(key, item, Fault::EmptyLabel));
            Ok(RawLabel::List(names.collect::<Result<_, _>>()?))
        }
        (LabelForm::List, other) => Err(wrong(key, &other, "a list with a label for each word")),
        // A row may have none of the labels.
        (LabelForm::Set, Value::String(text)) if text.trim().is_empty() => Ok(RawLabel::List(Vec::new())),
        (LabelForm::One | LabelForm::Set, value) => name(key, value, Fault::EmptyLabel).map(RawLabel::One),
    }
}

/// A label or a group.
fn name(key: &str, value: Value, empty: Fault) -> Result<String, Fault> {
    let name = match value {
        Value::String(name) => name,
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        other => return Err(wrong(key, &other, "a string, a number or a boolean")),
    };
    match name.trim() {
        "" => Err(empty),
        name if name.contains('\0') => Err(Fault::Nul),
        name if name.len() > MAX_TEXT => Err(Fault::TooLong { bytes: name.len() }),
        name => Ok(name.to_owned()),
    }
}

fn wrong(key: &str, value: &Value, expected: &'static str) -> Fault {
    Fault::WrongType { key: key.into(), found: kind(value), expected }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
