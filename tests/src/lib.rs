//! Proofs across both programs. The harness starts the real ones, with real TLS and real files; nothing here is part of
//! the product.
//!
//! [`Federation`] is an aggregator with its folder; [`SyntheticSite`] speaks a site's protocol with made-up tensors, for
//! what would be slow or impossible with the real client (large states, hostile answers); [`Proxy`] is a bad link between
//! them, and [`Watch`] looks at a job.

mod federation;
mod proxy;
mod synthetic;
mod watch;

use std::path::PathBuf;

pub use federation::{Federation, Ran, run, text};
pub use proxy::{Break, Link, Outage, Proxy, Way};
pub use synthetic::{SyntheticSite, delta_file, last_answer, model_folder, state_file};
pub use watch::Watch;

/// The folder of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One of the programs, built beside the running test.
///
/// # Panics
/// It is not there.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test has a path");
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built; run `cargo build --workspace --bins` first"))
}
