//! The embedded demo: a tiny pre-trained encoder, synthetic triage notes, and a job. See `config/demo/README.md`.

use std::io;
use std::path::Path;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        /// Every file of the demo, by its path below the demo's folder.
        pub const FILES: &[(&str, &[u8])] = &[$(($path, include_bytes!(concat!("../demo/", $path)))),*];
    };
}

files![
    "job.toml",
    "data/train.csv",
    "data/test.csv",
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "model/special_tokens_map.json",
    "model/vocab.txt",
];

/// Writes the demo's files into a folder.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path) -> io::Result<()> {
    for (path, bytes) in FILES {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, bytes)?;
    }
    Ok(())
}
