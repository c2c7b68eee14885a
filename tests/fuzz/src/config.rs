//! The documents that a person writes.

use std::path::Path;

use fedtune_config::{Document, Job, ServerConfig, SiteConfig, parse};

/// A document, and behind a NUL each the ends of the names of environment variables with their values.
fn document<T: Document>(data: &[u8]) -> Option<T> {
    let mut parts = std::str::from_utf8(data).ok()?.split('\0');
    let text = parts.next()?;
    let variable = |part: &str| {
        let (name, value) = part.split_once('=')?;
        Some((format!("{}__{name}", T::ENV_PREFIX?), value.to_owned()))
    };
    match parse(Path::new("document.toml"), text, parts.filter_map(variable)) {
        Ok(document) => Some(document),
        Err(error) => {
            assert!(!error.problems.is_empty() && !error.to_string().is_empty());
            None
        }
    }
}

/// server.toml, with its environment.
pub fn server_toml(data: &[u8]) {
    document::<ServerConfig>(data);
}

/// site.toml, with its environment.
pub fn site_toml(data: &[u8]) {
    document::<SiteConfig>(data);
}

/// job.toml, which comes from the network too. Its canonical text is the same job.
pub fn job_toml(data: &[u8]) {
    let Some(job) = document::<Job>(data) else { return };
    let text = job.to_toml();
    let again: Job = parse(Path::new("canonical.toml"), &text, std::iter::empty()).expect("its own text");
    assert_eq!(again.to_toml(), text);
    for name in ["classifier.weight", "", "bert.encoder.layer.11.attention.self.query.weight", "é"] {
        assert_eq!(again.aggregation.exclude.matches(name), job.aggregation.exclude.matches(name));
    }
}
