//! Repeating what failed on the link, with growing pauses.

use std::time::Duration;

use fedtune_proto::channel::is_transient;
use fedtune_proto::transfer::TransferError;
use rand::RngExt;
use tonic::Status;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential back-off with jitter, so that the sites of a federation do not all come back in the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The coming pause in words, at most.
    pub(super) fn next_in(&self) -> String {
        format!("at most {:.1} s", self.next.as_secs_f64())
    }

    /// Waits between half the pause and all of it, then doubles it.
    pub(super) async fn wait(&mut self) {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(LONGEST);
        tokio::time::sleep(pause).await;
    }
}

/// What may succeed when it is tried again.
pub(super) trait Transient {
    /// Whether the link, and not the request, is at fault.
    fn is_transient(&self) -> bool;
}

impl Transient for TransferError {
    fn is_transient(&self) -> bool {
        self.is_transient()
    }
}

impl Transient for Status {
    fn is_transient(&self) -> bool {
        is_transient(self.code())
    }
}

/// Calls until it succeeds or fails for a reason that stays.
///
/// # Errors
/// The reason that stays.
pub(super) async fn repeat<T, E, F>(what: &str, mut call: impl FnMut() -> F) -> Result<T, E>
where
    E: Transient + std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Err(e) if e.is_transient() => {
                tracing::warn!("{what}: {e}; trying again in {}", backoff.next_in());
                backoff.wait().await;
            }
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn calls_are_repeated_while_an_earlier_one_has_not_ended_and_not_when_they_are_refused() {
        let mut answers = vec![Err(Status::permission_denied("no")), Ok(()), Err(Status::aborted("busy"))];
        repeat("trying", || std::future::ready(answers.pop().unwrap())).await.unwrap();
        assert_eq!(answers.len(), 1);
        let mut left = || std::future::ready(answers.pop().unwrap());
        assert_eq!(repeat("trying", &mut left).await.unwrap_err().code(), Code::PermissionDenied);
    }
}
