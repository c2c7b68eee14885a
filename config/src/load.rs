//! Reading a document: the file, then the environment over it, then validation. Every failure is a [`ConfigError`]
//! that names file, line and field.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::error::{ConfigError, Problem, Problems};

/// No document of ours comes near this size; a larger file is a mistake.
const MAX_BYTES: u64 = 4 << 20;

/// Longer than every name of ours, in bytes.
const NAME_MAX: usize = 64;

/// One kind of document.
pub trait Document: DeserializeOwned {
    /// Environment variables `PREFIX__SECTION__FIELD` override the file; `None` where nothing may.
    const ENV_PREFIX: Option<&'static str>;

    /// Adds a problem for each value that has the right type and is wrong all the same.
    fn validate(&self, problems: &mut Problems);

    /// Makes relative paths relative to the folder of the file.
    fn resolve(&mut self, folder: &Path);
}

/// Reads, overrides from the process environment, validates and resolves the document at `path`.
///
/// # Errors
/// The file cannot be read, is not TOML, has an unknown, missing or ill-typed field, or a value out of range.
pub fn load<T: Document>(path: &Path) -> Result<T, ConfigError> {
    let found = std::fs::metadata(path)
        .map_err(|e| ConfigError::whole(path, format!("cannot be read: {e}; check the path and its permissions")))?;
    if found.len() > MAX_BYTES {
        let message = format!("is {} bytes; expected a TOML document of at most {MAX_BYTES} bytes", found.len());
        return Err(ConfigError::whole(path, message));
    }
    let bytes = std::fs::read(path).map_err(|e| ConfigError::whole(path, format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        ConfigError {
            file: path.to_path_buf(),
            problems: vec![Problem {
                field: String::new(),
                line: Some(line),
                message: "found bytes that are not UTF-8; save the file as UTF-8".into(),
            }],
        }
    })?;
    let mut document: T = parse(
        path,
        &text,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    )?;
    document.resolve(path.parent().unwrap_or(Path::new("")));
    Ok(document)
}

/// The same from text; `file` is only named in errors, and paths stay as they are written.
///
/// # Errors
/// As [`load`], less reading.
pub fn parse<T: Document>(
    file: &Path,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let table: Table = toml::from_str(text).map_err(|e| ConfigError {
        file: file.to_path_buf(),
        problems: vec![Problem {
            field: String::new(),
            line: e.span().map(|span| line_of(text, span.start)),
            message: format!("not valid TOML: {}", e.message().trim_end()),
        }],
    })?;
    let fail = |problems| ConfigError { file: file.to_path_buf(), problems };

    let (table, overridden) = apply_environment::<T>(table, environment).map_err(|p| fail(vec![p]))?;
    let document: T = decode(table).map_err(|(field, message)| {
        let from = overridden.iter().find(|(path, _)| *path == field);
        let message = match from {
            Some((_, variable)) => format!("{message} (set by the environment variable {variable})"),
            None => message,
        };
        let line = if from.is_some() { None } else { Places::of(text).line(&field) };
        fail(vec![Problem { field, line, message }])
    })?;
    let mut problems = Problems::default();
    document.validate(&mut problems);
    if problems.0.is_empty() {
        Ok(document)
    } else {
        let places = Places::of(text);
        let problem = |(field, message): (String, String)| Problem { line: places.line(&field), field, message };
        Err(fail(problems.0.into_iter().map(problem).collect()))
    }
}

type Overrides = Vec<(String, String)>;

/// Puts each `PREFIX__A__B=value` over the table. A value is a string where the field takes one, else a TOML literal.
fn apply_environment<T: Document>(
    mut table: Table,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Table, Overrides), Problem> {
    let mut overridden = Vec::new();
    let Some(prefix) = T::ENV_PREFIX else { return Ok((table, overridden)) };
    let mut variables: Vec<_> = environment
        .filter_map(|(name, value)| {
            let path = name.strip_prefix(prefix)?.strip_prefix("__")?.to_ascii_lowercase();
            Some((path.split("__").map(str::to_owned).collect::<Vec<_>>(), name, value))
        })
        .collect();
    variables.sort();
    for (path, name, raw) in variables {
        let field = path.join(".");
        let absent = |message: String| Problem { field: field.clone(), line: None, message };
        insert(&mut table, &path, Value::String(raw.clone()))
            .map_err(|part| absent(format!("{part} is not a section (set by the environment variable {name})")))?;
        // A field that refuses the string gets the literal; one that refuses both is reported by the caller.
        if let Err((at, _)) = decode::<T>(table.clone())
            && at == field
            && let Ok(literal) = toml::from_str::<Table>(&format!("value = {raw}"))
            && let Some(value) = literal.get("value")
        {
            insert(&mut table, &path, value.clone()).map_err(|part| absent(format!("{part} is not a section")))?;
        }
        overridden.push((field, name));
    }
    Ok((table, overridden))
}

fn insert(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [leaf] => {
            table.insert(leaf.clone(), value);
            Ok(())
        }
        [section, rest @ ..] => match table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => insert(inner, rest, value),
            _ => Err(section.clone()),
        },
    }
}

/// Deserialises, giving the dotted path and a message in our words on failure.
fn decode<T: DeserializeOwned>(table: Table) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
        let path = e.path().to_string();
        let mut path = if path == "." { String::new() } else { path };
        let raw = e.into_inner().to_string();
        let raw = raw.lines().next().unwrap_or_default().trim().to_owned();
        if let Some(name) = quoted(&raw, "missing field `") {
            path = if path.is_empty() { name.into() } else { format!("{path}.{name}") };
            return (path, "is missing and has no default; add it".into());
        }
        (path, explain(&raw))
    })
}

/// Turns serde's words into ours, with a suggestion for a misspelt name.
fn explain(raw: &str) -> String {
    for (start, noun) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some(found) = quoted(raw, start) else { continue };
        let allowed: Vec<&str> = raw.split('`').skip(3).step_by(2).collect();
        // How near two names are takes memory and time by the product of their lengths, and anybody may have chosen them.
        let near = allowed
            .iter()
            .filter(|name| found.len().max(name.len()) <= NAME_MAX)
            .map(|name| (strsim::damerau_levenshtein(found, name), *name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
        let hint = near.map_or(String::new(), |(_, name)| format!(" (did you mean `{name}`?)"));
        let shown: String = found.chars().take(NAME_MAX).collect();
        let more = if shown.len() < found.len() { "..." } else { "" };
        return format!("found the unknown {noun} `{shown}{more}`{hint}; allowed: {}", allowed.join(", "));
    }
    raw.replace("invalid type: ", "found ").replace("invalid value: ", "found ").replace(", expected ", "; expected ")
}

fn quoted<'a>(raw: &'a str, start: &str) -> Option<&'a str> {
    raw.strip_prefix(start)?.split('`').next()
}

/// Where fields stand. The text is gone through once, however many are looked for.
struct Places<'a> {
    document: Option<Spanned<DeTable<'a>>>,
    /// Where each line ends.
    ends: Vec<usize>,
}

impl<'a> Places<'a> {
    fn of(text: &'a str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { document: DeTable::parse(text).ok(), ends }
    }

    fn line_at(&self, offset: usize) -> usize {
        1 + self.ends.partition_point(|end| *end < offset)
    }

    /// The line on which the longest existing prefix of `field` stands.
    fn line(&self, field: &str) -> Option<usize> {
        let mut table = self.document.as_ref()?.get_ref();
        let mut found = None;
        for part in field.split('.') {
            let (name, index) =
                part.split_once('[').map_or((part, None), |(n, i)| (n, i.trim_end_matches(']').parse().ok()));
            let Some((key, value)) = table.get_key_value(name) else { break };
            found = Some(self.line_at(key.span().start));
            let value = match (value.get_ref(), index) {
                (DeValue::Array(items), Some(index)) => match items.get::<usize>(index) {
                    Some(item) => {
                        found = Some(self.line_at(item.span().start));
                        item
                    }
                    None => break,
                },
                _ => value,
            };
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        found
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}
