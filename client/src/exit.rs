//! The exit codes of `fedtune-client`; one cause, one code.

use std::process::ExitCode;

/// Why the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// A fault of the program.
    Unexpected = 1,
    /// Wrong use of the command line.
    Usage = 2,
    /// site.toml or job.toml.
    Configuration = 3,
    /// The labelled files.
    Data = 4,
    /// The model folder or a state.
    Model = 5,
    /// CPU or GPU.
    Device = 6,
    /// The aggregator cannot be reached.
    Network = 7,
    /// The aggregator refused.
    Refused = 8,
    /// The disk.
    Storage = 9,
    /// The job failed.
    JobFailed = 10,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The codes as `--help` shows them.
pub const HELP: &str = "\
Exit codes:
    0  done
    1  unexpected; please report it
    2  wrong use of the command line
    3  configuration: site.toml or job.toml
    4  data: a labelled file, or findings of check --strict
    5  model: the model folder or a state
    6  device: CPU or GPU
    7  network: the aggregator cannot be reached
    8  refused by the aggregator
    9  storage: the disk
   10  the job failed
  130  interrupted";
