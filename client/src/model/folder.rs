//! A folder in Hugging Face layout.

use std::path::{Path, PathBuf};

pub(super) use fedtune_proto::folder::{
    ADAPTER_CONFIG, ADAPTER_TENSORS, CONFIG, PREPROCESSOR, TENSORS, TOKENIZER, TOKENIZER_EXTRAS,
};

use fedtune_proto::folder::needed;
use serde_json::{Map, Value};

use super::config::{Config, Reads};
use super::error::ModelError;

/// No config.json comes near this size.
pub(super) const MAX_CONFIG: u64 = 16 << 20;

/// Finds the folder with the files of a model that reads this.
pub(super) fn check(folder: &Path, reads: Reads) -> Result<(), ModelError> {
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(ModelError::Folder { path: folder.into(), found: "is a file".into() }),
        Err(e) => return Err(ModelError::Folder { path: folder.into(), found: format!("cannot be opened ({e})") }),
    }
    for file in needed(reads == Reads::Texts, reads == Reads::Images) {
        if !folder.join(file).is_file() {
            return Err(ModelError::FileMissing { folder: folder.into(), file, remedy: remedy(folder, file) });
        }
    }
    Ok(())
}

fn remedy(folder: &Path, file: &str) -> &'static str {
    let there = |name: &str| folder.join(name).exists();
    if file == TENSORS && there("model.safetensors.index.json") {
        "It is split into several files; save it as one with save_pretrained(..., max_shard_size=\"100GB\")"
    } else if file == TENSORS && there("pytorch_model.bin") {
        "It has pytorch_model.bin; save it again with save_pretrained(..., safe_serialization=True)"
    } else if file == PREPROCESSOR {
        "It says how images are prepared; AutoImageProcessor of transformers and save_pretrained write it"
    } else if file == TOKENIZER && there("vocab.txt") {
        "It has vocab.txt; load it with AutoTokenizer (the fast one) and save_pretrained writes tokenizer.json"
    } else {
        "Check the path, or download the model again"
    }
}

/// Reads config.json of a folder and finds the other files that such a model needs.
pub(super) fn open(folder: &Path) -> Result<(Config, Map<String, Value>), ModelError> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        // A folder that is none, or lacks it.
        check(folder, Reads::default())?;
    }
    let found = Config::parse(&path, &read(path.clone(), MAX_CONFIG)?)?;
    check(folder, found.0.reads())?;
    Ok(found)
}

/// Reads a file of at most `most` bytes.
pub(super) fn read(path: PathBuf, most: u64) -> Result<Vec<u8>, ModelError> {
    let failed = |source| ModelError::Read { path: path.clone(), source };
    let found = std::fs::metadata(&path).map_err(failed)?.len();
    if found > most {
        return Err(ModelError::TooLarge { path, found, most });
    }
    std::fs::read(&path).map_err(failed)
}
