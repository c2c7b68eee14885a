//! Where a model given by a path or a name is.

use std::path::{Path, PathBuf};

use super::CliError;
use crate::model::ModelError;

/// The folder of a model: the path itself, or where one of that name on the hub is kept.
///
/// # Errors
/// There is no such folder; or the text can be a model's name, and it cannot be fetched, or this program was built without
/// that.
pub(super) fn folder(model: &Path) -> Result<PathBuf, CliError> {
    match (model.exists(), model.to_str().filter(|name| is_name(name))) {
        (true, _) => Ok(model.to_path_buf()),
        (false, Some(name)) => named(name),
        (false, None) => Err(ModelError::Folder { path: model.to_path_buf(), found: "does not exist".into() }.into()),
    }
}

#[cfg(feature = "hub")]
fn named(name: &str) -> Result<PathBuf, CliError> {
    Ok(crate::hub::fetch(name)?)
}

#[cfg(not(feature = "hub"))]
fn named(name: &str) -> Result<PathBuf, CliError> {
    Err(CliError::Usage(format!(
        "there is no folder {name:?}; models are fetched by their name on the hub by a fedtune-client built with \
         `--features hub`, which this one was not: download the model and give its folder"
    )))
}

/// Whether it has the form `organisation/model` or `organisation/model@revision`.
fn is_name(text: &str) -> bool {
    let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
    let word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphanumeric())
            && word.chars().all(|sign| sign.is_ascii_alphanumeric() || "-_.".contains(sign))
    };
    name.split_once('/').is_some_and(|(organisation, model)| word(organisation) && word(model))
        && revision.split('/').all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for name in ["org/model", "sentence-transformers/all-MiniLM-L6-v2", "org/model@v1.0", "org/model@refs/pr/1"] {
            assert!(is_name(name), "{name}");
        }
        for path in ["model", "./org/model", "/org/model", "../model", "a/b/c", "org/", "/model", "org/model@", "a b/c"]
        {
            assert!(!is_name(path), "{path}");
        }
    }

    #[test]
    #[cfg(not(feature = "hub"))]
    fn a_name_without_the_hub_says_what_to_do() {
        let error = folder(Path::new("org/no-such-model")).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("--features hub"), "{error}");
    }
}
