//! One JSON object a line, with bounded memory.

use std::fmt;
use std::io::BufRead;
use std::path::Path;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::csv::check_text;
use super::error::{DataError, Fault};
use super::{MAX_TEXT, RawRow};

/// The longest line that is parsed; a text of the allowed length fits even with every character escaped.
const MAX_LINE: usize = 8 * MAX_TEXT;

/// Calls `each` with every line that is not blank; see [`super::scan`].
pub(super) fn scan(
    path: &Path,
    mut input: impl BufRead,
    text: &str,
    label: Option<&str>,
    each: &mut dyn FnMut(u64, Result<RawRow, Fault>),
) -> Result<(), DataError> {
    let mut line = 0;
    let mut content = Vec::new();
    while let Some(length) =
        next_line(&mut input, &mut content).map_err(|source| DataError::Read { path: path.into(), source })?
    {
        line += 1;
        if length > MAX_LINE {
            each(line, Err(Fault::TooLong { bytes: length }));
        } else if !content.iter().all(u8::is_ascii_whitespace) {
            each(line, row(&content, text, label));
        }
    }
    Ok(())
}

/// Reads a line, keeping at most a byte more than [`MAX_LINE`] of it; gives its length, or `None` at the end.
fn next_line(input: &mut impl BufRead, content: &mut Vec<u8>) -> std::io::Result<Option<usize>> {
    content.clear();
    let mut length = 0;
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok((length > 0).then_some(length));
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let room = (MAX_LINE + 1).saturating_sub(content.len());
        content.extend_from_slice(&part[..part.len().min(room)]);
        length += part.len();
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(length));
        }
    }
}

fn row(line: &[u8], text: &str, label: Option<&str>) -> Result<RawRow, Fault> {
    let line = std::str::from_utf8(line).map_err(|_| Fault::NotUtf8)?;
    let mut parser = serde_json::Deserializer::from_str(line);
    let bad = |e: serde_json::Error| Fault::BadJson { message: e.to_string() };
    let found = parser.deserialize_any(Fields { text, label }).map_err(bad)?;
    parser.end().map_err(bad)?;
    let (text_value, label_value) = found?;
    let missing = |key: &str| Fault::KeyMissing { key: key.into() };
    let content = match text_value.ok_or_else(|| missing(text))? {
        Value::String(content) => content,
        other => return Err(wrong(text, &other, "a string")),
    };
    check_text(&content)?;
    let Some(label) = label else { return Ok(RawRow { text: content, label: None }) };
    let name = match label_value.ok_or_else(|| missing(label))? {
        Value::String(name) => name,
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        other => return Err(wrong(label, &other, "a string, a number or a boolean")),
    };
    match name.trim() {
        "" => Err(Fault::EmptyLabel),
        name if name.contains('\0') => Err(Fault::Nul),
        name if name.len() > MAX_TEXT => Err(Fault::TooLong { bytes: name.len() }),
        name => Ok(RawRow { text: content, label: Some(name.to_owned()) }),
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

/// Takes the two needed keys out of an object and passes over the rest.
struct Fields<'a> {
    text: &'a str,
    label: Option<&'a str>,
}

type Found = Result<(Option<Value>, Option<Value>), Fault>;

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Found;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let (mut text, mut label, mut twice) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let place = if key == self.text {
                &mut text
            } else if Some(key.as_str()) == self.label {
                &mut label
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
                continue;
            };
            if place.replace(map.next_value::<Value>()?).is_some() {
                twice = Some(key);
            }
        }
        Ok(match twice {
            Some(key) => Err(Fault::KeyTwice { key }),
            None => Ok((text, label)),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Found, A::Error> {
        while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Err(Fault::NotObject { found: "an array" }))
    }

    fn visit_str<E>(self, _: &str) -> Result<Found, E> {
        Ok(Err(Fault::NotObject { found: "a string" }))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Err(Fault::NotObject { found: "a boolean" }))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(Err(Fault::NotObject { found: "a number" }))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Err(Fault::NotObject { found: "a number" }))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Err(Fault::NotObject { found: "a number" }))
    }
    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Err(Fault::NotObject { found: "null" }))
    }
}
