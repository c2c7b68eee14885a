//! How the program ends: one documented exit code for each kind of failure.

use std::process::ExitCode;

use fedtune_config::ConfigError;
use fedtune_proto::channel::{ChannelError, chain, is_refusal};
use fedtune_proto::transfer::TransferError;
use tonic::Code;

use crate::api::ServeError;
use crate::operator::OperatorError;
use crate::pki::PkiError;
use crate::simulate::SimulateError;
use crate::store::StoreError;

/// The table shown by `--help`.
pub const TABLE: &str = "\
Exit codes:
  0    done
  1    unexpected failure
  2    wrong use of the command line
  3    configuration or job file
  4    data file
  5    model folder
  7    network: the other side cannot be reached
  8    refused by the other side
  9    storage or a file on this machine
  10   the job failed, or did not complete
  11   an audit found a round that does not hold
  130  interrupted";

/// The job ended, and not well.
#[derive(Debug, thiserror::Error)]
#[error("job {job} {status}: {reason}")]
pub struct JobFailed {
    /// Its id.
    pub job: String,
    /// `failed` or `cancelled`.
    pub status: String,
    /// Why.
    pub reason: String,
}

/// Rounds do not hold.
#[derive(Debug, thiserror::Error)]
#[error("{bad} of {rounds} rounds of job {job} do not hold, or cannot be recomputed")]
pub struct Unsound {
    /// The job's id.
    pub job: String,
    /// Such rounds.
    pub bad: usize,
    /// All rounds.
    pub rounds: usize,
}

/// The code of an error, by the first cause that has one.
pub fn code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(error.chain().find_map(code_of).unwrap_or(1))
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<ConfigError>() {
        return Some(3);
    }
    if let Some(e) = cause.downcast_ref::<SimulateError>() {
        return Some(match e {
            SimulateError::Data { .. } => 4,
            SimulateError::Usage(_) => 2,
            SimulateError::Process { .. } => 1,
            SimulateError::File { .. } => 9,
            SimulateError::Interrupted => 130,
        });
    }
    if let Some(e) = cause.downcast_ref::<OperatorError>() {
        return match e {
            OperatorError::Remote(status) => Some(match status.code() {
                _ if is_refusal(&chain(&**status)) => 8,
                Code::Unavailable | Code::Unknown => 7,
                _ => 8,
            }),
            OperatorError::Model { .. } => Some(5),
            OperatorError::File { .. } => Some(9),
            OperatorError::Channel(ChannelError::Bundle { .. }) => Some(9),
            OperatorError::Channel(e) if e.is_refusal() => Some(8),
            OperatorError::Channel(_) => Some(7),
            OperatorError::Transfer(TransferError::File { .. }) => Some(9),
            OperatorError::Transfer(e) => Some(if e.is_transient() { 7 } else { 8 }),
        };
    }
    if let Some(e) = cause.downcast_ref::<ServeError>() {
        return Some(match e {
            ServeError::Listen { .. } | ServeError::Transport(_) => 7,
            ServeError::Pem { .. } | ServeError::Store(_) => 9,
            ServeError::Interrupted => 130,
        });
    }
    if cause.is::<StoreError>() || cause.is::<PkiError>() {
        return Some(9);
    }
    if cause.is::<Unsound>() {
        return Some(11);
    }
    cause.is::<JobFailed>().then_some(10)
}
