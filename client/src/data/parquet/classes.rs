//! The names of classes, as the `datasets` library writes them: the metadata `huggingface`, a JSON text with
//! `info.features.<column>.names`.

use serde_json::Value;

use super::super::labels::MAX_LABELS;
use super::error::ParquetError;
use super::open::Table;

/// The names that the numbers of a column stand for, in order; `None` where the file has none.
pub(super) fn of_column(table: &Table, column: &str) -> Result<Option<Vec<String>>, ParquetError> {
    let pairs = table.metadata().file_metadata().key_value_metadata();
    let text =
        pairs.into_iter().flatten().find(|pair| pair.key == "huggingface").and_then(|pair| pair.value.as_deref());
    let Some(text) = text else { return Ok(None) };
    let wrong = |field: &str, found: String, expected: &str| ParquetError::Classes {
        path: table.path().into(),
        field: field.into(),
        found,
        expected: expected.into(),
    };
    let document: Value = serde_json::from_str(text).map_err(|e| wrong("the whole", e.to_string(), "JSON"))?;
    let Some(feature) = document.get("info").and_then(|info| info.get("features")).and_then(|all| all.get(column))
    else {
        return Ok(None);
    };
    let Some(names) = feature.get("names") else { return Ok(None) };
    let field = format!("info.features.{column}.names");
    let list = names.as_array().ok_or_else(|| wrong(&field, kind(names).into(), "a list of strings"))?;
    if list.len() > MAX_LABELS {
        return Err(wrong(&field, format!("{} names", list.len()), &format!("at most {MAX_LABELS}")));
    }
    let mut known = std::collections::HashSet::new();
    for (place, name) in list.iter().enumerate() {
        let Some(name) = name.as_str() else {
            return Err(wrong(&format!("{field}[{place}]"), kind(name).into(), "a string"));
        };
        if name.trim().is_empty() || name.len() > 1024 || !known.insert(name) {
            let found = if name.len() > 1024 { format!("{} bytes", name.len()) } else { format!("{name:?}") };
            return Err(wrong(&format!("{field}[{place}]"), found, "a name that is not empty and stands once"));
        }
    }
    Ok(Some(list.iter().filter_map(Value::as_str).map(String::from).collect()))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
