//! One JSON object a line, with bounded memory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io::BufRead;
use std::path::Path;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::columns::{self, Columns};
use super::error::{DataError, Fault};
use super::raw::{self, RawRow, Values};
use super::{MAX_COLUMNS, MAX_TEXT, Place};

/// The longest line that is parsed; a text of the allowed length fits even with every character escaped.
const MAX_LINE: usize = 8 * MAX_TEXT;

/// Calls `each` with every line that is not blank; see [`super::scan`]. `input` stands at the byte `start` of the file.
pub(super) fn scan(
    path: &Path,
    mut input: impl BufRead,
    start: u64,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<(), DataError> {
    let mut place = Place { line: 1, start };
    let (mut content, keys) = (Vec::new(), Keys::of(columns));
    let (mut objects, mut unseen) = (0_u64, (0..columns.content.cells()).collect::<BTreeSet<_>>());
    while let Some(length) =
        next_line(&mut input, &mut content).map_err(|source| DataError::Read { path: path.into(), source })?
    {
        if length > MAX_LINE {
            each(place, Err(Fault::TooLong { bytes: length }));
        } else if !content.iter().all(u8::is_ascii_whitespace) {
            let found = values(&content, &keys);
            if let Ok(found) = &found {
                objects += 1;
                unseen.retain(|cell| found[*cell].is_none());
            }
            each(place, found.and_then(|found| raw::row(columns, found)));
        }
        // Past the last line, where no line end may be, nothing begins.
        place = Place { line: place.line + 1, start: place.start + length as u64 + 1 };
    }
    // Objects may leave out what is missing, but a column that is in none of them is not in the file.
    match unseen.first() {
        Some(cell) if objects > 0 => {
            let (wanted, role) = columns.named()[*cell];
            columns::find(path, 1, &super::column_names(path)?, wanted, role).map(drop)
        }
        _ => Ok(()),
    }
}

/// The row in the line that begins where `input` stands; `None` if it is no usable one.
pub(super) fn row_at(path: &Path, mut input: impl BufRead, columns: &Columns) -> Result<Option<RawRow>, DataError> {
    let mut content = Vec::new();
    let length = next_line(&mut input, &mut content).map_err(|source| DataError::Read { path: path.into(), source })?;
    let row = |_| values(&content, &Keys::of(columns)).and_then(|found| raw::row(columns, found)).ok();
    Ok(length.filter(|length| *length <= MAX_LINE).and_then(row))
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

/// The values of a line's columns.
fn values(line: &[u8], keys: &Keys<'_>) -> Result<Values, Fault> {
    let line = std::str::from_utf8(line).map_err(|_| Fault::NotUtf8)?;
    let mut parser = serde_json::Deserializer::from_str(line);
    let bad = |e: serde_json::Error| Fault::BadJson { message: e.to_string() };
    let found = parser.deserialize_any(Fields(keys)).map_err(bad)?;
    parser.end().map_err(bad)?;
    found
}

/// The keys of all objects, which are the columns of a table, in the order in which they come up; no more than one above
/// [`MAX_COLUMNS`].
pub(super) fn names(path: &Path, mut input: impl BufRead) -> Result<Vec<String>, DataError> {
    let (mut names, mut seen, mut rows) = (Vec::new(), HashSet::new(), 0u64);
    let mut content = Vec::new();
    while let Some(length) =
        next_line(&mut input, &mut content).map_err(|source| DataError::Read { path: path.into(), source })?
    {
        let object = serde_json::from_slice::<serde_json::Map<String, Value>>(&content);
        let (true, Ok(object)) = (length <= MAX_LINE, object) else { continue };
        rows += 1;
        for (key, _) in object {
            if names.len() <= MAX_COLUMNS && seen.insert(key.clone()) {
                names.push(key);
            }
        }
    }
    if rows == 0 { Err(DataError::NoRows { path: path.into() }) } else { Ok(names) }
}

/// For each needed key which of a row's values it has, and how many values there are.
struct Keys<'a> {
    wanted: HashMap<&'a str, Vec<usize>>,
    values: usize,
}

impl<'a> Keys<'a> {
    fn of(columns: &'a Columns) -> Self {
        let named = columns.named();
        let (mut wanted, values): (HashMap<_, Vec<usize>>, _) = (HashMap::new(), named.len());
        for (value, (name, _)) in named.into_iter().enumerate() {
            wanted.entry(name).or_default().push(value);
        }
        Self { wanted, values }
    }
}

/// Takes the needed keys out of an object and passes over the rest.
struct Fields<'a>(&'a Keys<'a>);

/// The values of the columns.
type Found = Result<Values, Fault>;

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Found;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let (mut found, mut twice): (Values, _) = (vec![None; self.0.values], None);
        while let Some(key) = map.next_key::<String>()? {
            let Some(places) = self.0.wanted.get(key.as_str()) else {
                map.next_value::<serde::de::IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<Value>()?;
            for place in places {
                if found[*place].replace(value.clone()).is_some() {
                    twice = Some(key.clone());
                }
            }
        }
        Ok(match twice {
            Some(key) => Err(Fault::KeyTwice { key }),
            None => Ok(found),
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
