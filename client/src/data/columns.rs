//! Which columns hold text, label and group, and finding them in a header.

use std::path::Path;

use fedtune_config::Job;
use fedtune_config::site::Data;

use super::error::DataError;

/// The names of the needed columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The column with the text.
    pub text: String,
    /// The column with the label.
    pub label: String,
    /// The column whose equal values keep rows on one side of a split (a subject's number), if there is one.
    pub group: Option<String>,
}

/// What is read of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The column with the text.
    pub text: &'a str,
    /// The column with the label, where one is asked for.
    pub label: Option<&'a str>,
    /// The column with the group, where one is asked for.
    pub group: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// Texts only.
    pub fn text(text: &'a str) -> Self {
        Self { text, label: None, group: None }
    }
}

impl Columns {
    /// All of them.
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted { text: &self.text, label: Some(&self.label), group: self.group.as_deref() }
    }

    /// Without the group, for rows that are not split.
    #[must_use]
    pub fn ungrouped(self) -> Self {
        Self { group: None, ..self }
    }

    /// The job's columns, unless the site maps others.
    pub fn resolve(job: &Job, site: &Data) -> Self {
        Self {
            text: site.text_column.clone().unwrap_or_else(|| job.task.text_column.clone()),
            label: site.label_column.clone().unwrap_or_else(|| job.task.label_column.clone()),
            group: site.group_column.clone(),
        }
    }
}

/// The place of a needed column (`role` is `text`, `label` or `group`) in the header that stands on `line`.
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
