//! Whatever reads bytes that others wrote, one function each: the fuzz targets of the same names call them, and
//! `tests/tests/corpus.rs` calls them with every file of the committed corpus.
//!
//! Any bytes may be refused. What must not be is a panic, a hang, memory beyond what the bytes explain, or a value that
//! was accepted and breaks what its type promises.

pub mod client;
mod config;
pub mod proto;
mod server;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

pub use client::{adapters, checkpoint, csv, jsonl, model_config, parquet, picture, preprocessor, tensors, tokenizer};
pub use config::{job_toml, server_toml, site_toml};
pub use proto::{credentials, delta, difference, evaluation, layout, messages, names, recipe, residual};
pub use server::{authority, certificate, partition, records, update};

/// What bytes are given to.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("adapters", adapters),
    ("authority", authority),
    ("certificate", certificate),
    ("checkpoint", checkpoint),
    ("credentials", credentials),
    ("csv", csv),
    ("delta", delta),
    ("difference", difference),
    ("evaluation", evaluation),
    ("job_toml", job_toml),
    ("jsonl", jsonl),
    ("layout", layout),
    ("messages", messages),
    ("model_config", model_config),
    ("names", names),
    ("parquet", parquet),
    ("partition", partition),
    ("picture", picture),
    ("preprocessor", preprocessor),
    ("recipe", recipe),
    ("records", records),
    ("residual", residual),
    ("server_toml", server_toml),
    ("site_toml", site_toml),
    ("tensors", tensors),
    ("tokenizer", tokenizer),
    ("update", update),
];

/// Takes the first byte as a choice among `most`.
fn choice(data: &[u8], most: usize) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(*first) % most, rest))
}

/// A folder with these files.
fn folder<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
    }
    folder
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    fs::write(folder.join(name), bytes).expect("a folder of our own");
}
