//! The one error a document can give: every problem found, each with its place and what was expected.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the field, empty for the document as a whole.
    pub field: String,
    /// Line in the file, counted from 1; `None` when the value is absent or came from the environment.
    pub line: Option<usize>,
    /// What was found, and what is allowed.
    pub message: String,
}

/// A document that could not be used: the file and all its problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file that was read.
    pub file: PathBuf,
    /// At least one problem.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// An error with a single problem that concerns the file as a whole.
    pub fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self {
            file: file.to_path_buf(),
            problems: vec![Problem { field: String::new(), line: None, message: message.into() }],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            write!(out, "{}", self.file.display())?;
            if let Some(line) = problem.line {
                write!(out, ":{line}")?;
            }
            if !problem.field.is_empty() {
                write!(out, ": {}", problem.field)?;
            }
            write!(out, ": {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects problems during validation; the loader adds the lines.
#[derive(Debug, Default)]
pub struct Problems(pub(crate) Vec<(String, String)>);

impl Problems {
    /// Records that `field` (a dotted path) is wrong; `message` says what was found and what is allowed.
    pub fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push((field.to_owned(), message.into()));
    }

    /// Records a problem unless `ok`.
    pub fn check(&mut self, ok: bool, field: &str, message: impl FnOnce() -> String) {
        if !ok {
            self.add(field, message());
        }
    }
}
