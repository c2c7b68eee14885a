//! What a person writes: `server.toml`, `site.toml` and `job.toml`, typed and validated.
//!
//! Read in this order: [`mod@load`] (file, environment, validation, one error type), then one module per document:
//! [`server`], [`site`], [`job`]. Nothing here knows the network, tensors or the programs.

pub mod demo;
pub mod error;
pub mod job;
pub mod load;
pub mod server;
pub mod site;
mod units;

pub use error::{ConfigError, Problem};
pub use job::Job;
pub use load::{Document, load, parse};
pub use server::ServerConfig;
pub use site::SiteConfig;
pub use units::Span;

/// The commented example of each document, as shipped in `config/examples/`.
pub mod examples {
    /// `server.toml`
    pub const SERVER: &str = include_str!("../examples/server.toml");
    /// `site.toml`
    pub const SITE: &str = include_str!("../examples/site.toml");
    /// `job.toml`
    pub const JOB: &str = include_str!("../examples/job.toml");
}
