//! What the aggregator keeps: [`records`] (jobs, rounds, sites; SQLite) and [`artifacts`] (immutable bytes; a folder).

pub mod artifacts;
pub mod records;

pub use artifacts::Artifacts;
pub use records::Records;

/// Storage failed. Nothing was acknowledged that is not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("records: {0}")]
    Records(#[from] sqlx::Error),
    /// A database whose schema this program does not know.
    #[error(
        "{path}: found schema {found}; expected at most {known}, the last that this program knows. A newer fedtune-server \
         wrote it: run that one or a newer one, or put back the copy of the data folder made before it",
        path = path.display()
    )]
    NewerSchema {
        /// The database.
        path: std::path::PathBuf,
        /// The migration that is recorded there.
        found: i64,
        /// The last of this program.
        known: usize,
    },
    /// A database whose schema has another history.
    #[error(
        "{path}: its migration {version} is not the migration {version} of this program, so its tables may be others; \
         nothing was changed. Run the fedtune-server that wrote it, or put back a copy of the data folder",
        path = path.display()
    )]
    OtherSchema {
        /// The database.
        path: std::path::PathBuf,
        /// The migration.
        version: i64,
    },
    /// A migration of the database failed; those before it are kept, and it is tried again at the next start.
    #[error("{path}: its schema cannot be brought up to date: {source}", path = path.display())]
    Migration {
        /// The database.
        path: std::path::PathBuf,
        /// What failed.
        source: sqlx::migrate::MigrateError,
    },
    /// A record that this program cannot read.
    #[error("records: {what} cannot be read: {source}; the database may have been written by a newer program")]
    Record {
        /// Which record.
        what: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The artifact folder.
    #[error("artifacts: {0}")]
    Artifacts(#[from] object_store::Error),
    /// A file of the data folder.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task that reads or writes did not come to its end.
    #[error("the work was interrupted: {0}")]
    Interrupted(String),
    /// Two uploads of the same bytes by the same peer at once.
    #[error("this upload is in progress already")]
    Busy,
    /// Bytes that are not those of their digest.
    #[error("the bytes of artifact {expected} have the digest {found}")]
    Damaged {
        /// The name.
        expected: fedtune_proto::digest::Digest,
        /// The digest of the bytes.
        found: fedtune_proto::digest::Digest,
    },
    /// A file that is not a sound safetensors file.
    #[error("artifact {digest} is not a sound safetensors file: {reason}")]
    Unsound {
        /// The artifact.
        digest: fedtune_proto::digest::Digest,
        /// What was found and expected.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
