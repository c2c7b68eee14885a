//! How the rest of the aggregator talks to the coordinator.

use fedtune_proto::delta::Codec;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::evaluation::Form;
use tokio::sync::{mpsc, oneshot, watch};

use super::sessions::{About, Opened};
use super::snapshot::{Activity, JobSnapshot, Overview, SiteSnapshot};
use crate::aggregate::Bounds;
use crate::pki::Identity;
use crate::round::{Event, Turn};
use crate::store::StoreError;
use crate::store::records::JobRecord;

/// Why the coordinator did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// It will not.
    #[error("{0}")]
    Refused(String),
    /// The aggregator takes no new sessions.
    #[error("the aggregator is stopping; connect again when it is back")]
    Stopping,
    /// No such job.
    #[error("there is no job {0:?}; `fedtune-server job list` shows them all")]
    Unknown(String),
    /// Storage failed; nothing was changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it counts.
    pub accepted: bool,
    /// Whether it is an update that counted in an earlier round.
    pub replayed: bool,
    /// Why it does not.
    pub reason: String,
}

/// What a result is checked against.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// The turn is open.
    Open {
        /// The state the turn started from.
        state: Option<ArtifactRef>,
        /// What an evaluation counts.
        form: Form,
        /// What an update may be at most.
        bounds: Bounds,
        /// How an update is encoded; `None` for not at all.
        codec: Option<Codec>,
    },
    /// The turn was answered, or is over.
    Answered(Answer),
}

/// What a peer wants to do with artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Read this one.
    Read(Digest),
    /// Store this one.
    Write(ArtifactRef),
}

type Reply<T> = oneshot::Sender<T>;

pub(super) enum Request {
    OpenSession {
        identity: Identity,
        about: About,
        reply: Reply<Result<Opened, Rejected>>,
    },
    CloseSession {
        site: String,
        session: String,
    },
    Heartbeat {
        site: String,
        session: String,
        reply: Reply<bool>,
    },
    Progress {
        site: String,
        session: String,
        job: String,
        turn: Turn,
        activity: Activity,
        reply: Reply<bool>,
    },
    Moving {
        site: String,
    },
    Expect {
        site: String,
        job: String,
        turn: Turn,
        reply: Reply<Result<Expected, StoreError>>,
    },
    Report {
        site: String,
        job: String,
        turn: Turn,
        event: Event,
        recipe: Option<String>,
        reply: Reply<Result<Answer, StoreError>>,
    },
    Permit {
        identity: Identity,
        permit: Permit,
        reply: Reply<Result<(), Rejected>>,
    },
    Aggregated {
        job: String,
        event: Event,
    },
    Submit {
        record: Box<JobRecord>,
        reply: Reply<Result<(), StoreError>>,
    },
    Pause {
        job: String,
        reply: Reply<Result<(), Rejected>>,
    },
    Resume {
        job: String,
        reply: Reply<Result<(), Rejected>>,
    },
    Cancel {
        job: String,
        reply: Reply<Result<(), Rejected>>,
    },
    Jobs {
        reply: Reply<Result<Vec<JobRecord>, StoreError>>,
    },
    Show {
        job: String,
        reply: Reply<Result<JobSnapshot, Rejected>>,
    },
    Sites {
        reply: Reply<Result<Vec<SiteSnapshot>, StoreError>>,
    },
    Overview {
        reply: Reply<Overview>,
    },
    Drain {
        reply: Reply<()>,
    },
}

/// A cheap, cloneable way to the coordinator.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    changed: watch::Receiver<u64>,
}

/// The aggregator is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the aggregator is shutting down")]
pub struct Gone;

impl Handle {
    pub(super) fn new(requests: mpsc::Sender<Request>, changed: watch::Receiver<u64>) -> Self {
        Self { requests, changed }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Opens a session; an older one of the same site is closed.
    pub async fn open_session(&self, identity: Identity, about: About) -> Result<Result<Opened, Rejected>, Gone> {
        self.ask(|reply| Request::OpenSession { identity, about, reply }).await
    }

    /// Whether the session is the site's current one.
    pub async fn heartbeat(&self, site: String, session: String) -> Result<bool, Gone> {
        self.ask(|reply| Request::Heartbeat { site, session, reply }).await
    }

    /// Notes progress. False if the session is not the site's current one.
    pub async fn progress(
        &self,
        site: String,
        session: String,
        job: String,
        turn: Turn,
        activity: Activity,
    ) -> Result<bool, Gone> {
        self.ask(|reply| Request::Progress { site, session, job, turn, activity, reply }).await
    }

    /// Bytes of a site are moving, which counts as progress of its task.
    pub async fn moving(&self, site: String) {
        // Only a sign: a lost one is made good by the next.
        let _ = self.requests.send(Request::Moving { site }).await;
    }

    /// What a result of this turn is checked against.
    pub async fn expect(&self, site: String, job: String, turn: Turn) -> Result<Result<Expected, StoreError>, Gone> {
        self.ask(|reply| Request::Expect { site, job, turn, reply }).await
    }

    /// A checked result, or its quarantine ([`Event::Failed`]); answered once it is stored.
    pub async fn report(
        &self,
        site: String,
        job: String,
        turn: Turn,
        event: Event,
        recipe: Option<String>,
    ) -> Result<Result<Answer, StoreError>, Gone> {
        self.ask(|reply| Request::Report { site, job, turn, event, recipe, reply }).await
    }

    /// Whether a peer may read or store an artifact; the reason if not.
    pub async fn permit(&self, identity: Identity, permit: Permit) -> Result<Result<(), Rejected>, Gone> {
        self.ask(|reply| Request::Permit { identity, permit, reply }).await
    }

    /// Queues a job.
    pub async fn submit(&self, record: JobRecord) -> Result<Result<(), StoreError>, Gone> {
        self.ask(|reply| Request::Submit { record: Box::new(record), reply }).await
    }

    /// Pauses a job once what was begun of it is done.
    pub async fn pause(&self, job: String) -> Result<Result<(), Rejected>, Gone> {
        self.ask(|reply| Request::Pause { job, reply }).await
    }

    /// Lets a paused job go on.
    pub async fn resume(&self, job: String) -> Result<Result<(), Rejected>, Gone> {
        self.ask(|reply| Request::Resume { job, reply }).await
    }

    /// Cancels a job.
    pub async fn cancel(&self, job: String) -> Result<Result<(), Rejected>, Gone> {
        self.ask(|reply| Request::Cancel { job, reply }).await
    }

    /// Every job, oldest first.
    pub async fn jobs(&self) -> Result<Result<Vec<JobRecord>, StoreError>, Gone> {
        self.ask(|reply| Request::Jobs { reply }).await
    }

    /// A job with its rounds and what its sites are doing.
    pub async fn show(&self, job: String) -> Result<Result<JobSnapshot, Rejected>, Gone> {
        self.ask(|reply| Request::Show { job, reply }).await
    }

    /// Every enrolled site.
    pub async fn sites(&self) -> Result<Result<Vec<SiteSnapshot>, StoreError>, Gone> {
        self.ask(|reply| Request::Sites { reply }).await
    }

    /// Who is online and who works. Needs no storage, so an answer shows that the coordinator runs.
    pub async fn overview(&self) -> Result<Overview, Gone> {
        self.ask(|reply| Request::Overview { reply }).await
    }

    /// Closes every session, opens no new one and begins nothing new. Results that come are still stored.
    pub async fn drain(&self) -> Result<(), Gone> {
        self.ask(|reply| Request::Drain { reply }).await
    }

    /// Whether the coordinator has ended; while there is a handle it does so only by a fault.
    pub fn is_gone(&self) -> bool {
        self.requests.is_closed()
    }

    /// Changes its value whenever something visible does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}
