//! Models by their name on a hub with Hugging Face's interface (`HF_ENDPOINT`, by default huggingface.co), kept in its cache
//! (`HF_HOME`). The token of `huggingface-cli login` is used where there is one.

use std::path::PathBuf;

use fedtune_proto::folder::{
    ADAPTER_CONFIG, ADAPTER_TENSORS, CONFIG, PREPROCESSOR, TENSORS, TOKENIZER, TOKENIZER_EXTRAS,
};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

/// A model that the hub did not give.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model {name:?} cannot be fetched: {reason}; check the name (`organisation/model`, or \
     `organisation/model@revision`) and the connection, or give the folder of a model"
)]
pub struct HubError {
    /// Its name.
    pub name: String,
    /// What happened.
    pub reason: String,
}

/// The folder in the cache that holds the files of a model that we read, fetched where they are not there. Without a
/// connection what the cache holds is taken.
///
/// # Errors
/// There is no such model, or the hub cannot be reached and the cache does not have it.
pub fn fetch(name: &str) -> Result<PathBuf, HubError> {
    let failed = |e: &dyn std::fmt::Display| HubError { name: name.to_owned(), reason: e.to_string() };
    let repo = match name.split_once('@') {
        Some((model, revision)) => Repo::with_revision(model.into(), RepoType::Model, revision.into()),
        None => Repo::model(name.into()),
    };
    let api = ApiBuilder::from_env().with_progress(true).build().map_err(|e| failed(&e))?.repo(repo.clone());
    match files(&api) {
        Ok(found) => found.ok_or_else(|| failed(&format!("it has no {CONFIG}"))),
        Err(error) => {
            let kept = Cache::from_env().repo(repo).get(CONFIG).and_then(|file| Some(file.parent()?.to_path_buf()));
            let whole = |folder: &PathBuf| [TENSORS, ADAPTER_TENSORS].iter().any(|file| folder.join(file).exists());
            let folder = kept.filter(whole).ok_or_else(|| failed(&error))?;
            eprintln!("the hub did not answer ({error}); using {}", folder.display());
            Ok(folder)
        }
    }
}

/// Fetches what there is of a model's files; gives their folder.
fn files(repo: &ApiRepo) -> Result<Option<PathBuf>, ApiError> {
    let there = repo.info()?.siblings;
    let wanted = [CONFIG, TOKENIZER, PREPROCESSOR, TENSORS, ADAPTER_CONFIG, ADAPTER_TENSORS];
    let wanted = wanted.into_iter().chain(TOKENIZER_EXTRAS);
    let files: Vec<&str> = wanted.filter(|file| there.iter().any(|found| found.rfilename == *file)).collect();
    let mut folder: Option<PathBuf> = None;
    // Where the model changed since some were fetched, these are of another state of it, and are fetched again.
    for _ in 0..2 {
        for file in &files {
            folder = repo.get(file)?.parent().map(PathBuf::from);
        }
        if folder.as_ref().is_some_and(|folder| files.iter().all(|file| folder.join(file).exists())) {
            break;
        }
    }
    Ok(folder)
}
