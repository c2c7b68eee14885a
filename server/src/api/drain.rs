//! How the aggregator stops without losing what it has begun: no new calls, time for those in progress, and a clean end
//! for those that need more.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;

/// Shared by all that serves calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Drain {
    stopping: CancellationToken,
    cutting: CancellationToken,
    calls: TaskTracker,
}

impl Drain {
    /// Counts a call as in progress for as long as the token lives.
    ///
    /// # Errors
    /// UNAVAILABLE: the aggregator takes no more calls.
    pub(super) fn enter(&self) -> Result<TaskTrackerToken, Status> {
        // First the token: who asks whether all have ended must not miss one that was let in.
        let token = self.calls.token();
        if self.stopping.is_cancelled() { Err(stopping()) } else { Ok(token) }
    }

    /// Ready once no new calls are taken.
    pub(super) async fn stopped(self) {
        self.stopping.cancelled_owned().await;
    }

    /// Ready once calls in progress must end, keeping what they have.
    pub(super) async fn cut(&self) {
        self.cutting.cancelled().await;
    }

    /// Whether [`Self::cut`] is ready.
    pub(super) fn is_cut(&self) -> bool {
        self.cutting.is_cancelled()
    }

    /// Takes no new calls.
    pub(super) fn stop(&self) {
        self.stopping.cancel();
        self.calls.close();
    }

    /// Ends the calls in progress. Gives their number.
    pub(super) fn cut_off(&self) -> usize {
        let left = self.calls.len();
        self.cutting.cancel();
        left
    }

    /// Ready once no call is in progress, after [`Self::stop`].
    pub(super) async fn idle(&self) {
        self.calls.wait().await;
    }
}

/// What a caller is told; the clients of this project come again.
pub(super) fn stopping() -> Status {
    Status::unavailable("the aggregator is stopping; try again when it is back")
}
