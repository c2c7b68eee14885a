//! The aggregator: holds the federation, never sees data, never runs a model.
//!
//! Read in this order: [`round`] (the pure state machine of a job), [`aggregate`] (the streaming pass and what is
//! checked before an update counts), [`store`] (records and artifacts), [`retention`] (what is deleted of it),
//! [`coordinator`] (drives the machine), [`pki`] (certificates), [`api`] (the gRPC edge), [`audit`] (recomputes what a job
//! made), [`health`], [`metrics`], [`mod@log`] and [`operations`] (what monitoring sees). Around them the operator's side:
//! [`operator`] (calls to an aggregator), [`simulate`] (a whole federation on this machine), [`cli`].

pub mod aggregate;
pub mod api;
pub mod audit;
mod claims;
pub mod cli;
pub mod coordinator;
pub mod exit;
pub mod health;
pub mod log;
pub mod metrics;
pub mod operations;
pub mod operator;
pub mod pki;
pub mod retention;
pub mod round;
pub mod simulate;
pub mod store;
pub mod traces;

/// This program and its version, as it tells its peers.
pub const PROGRAM: &str = concat!("fedtune-server ", env!("CARGO_PKG_VERSION"));
