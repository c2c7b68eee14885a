//! What monitoring counts, in one registry that is handed to whoever counts. Labels are names of enrolled sites and
//! words of the program, so that nobody outside can make more of them.

mod collectors;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::coordinator::Overview;
use crate::health::Report;
use crate::pki::{Identity, Role};
use crate::round::admission::LeftOut;
use crate::round::{Effect, Machine, Outcome, Phase, Work};
use crate::store::records::JobStatus;
use collectors::{Process, Sites};

/// The form of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the aggregator.
    Up,
    /// From it.
    Down,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    /// The method of a transfer.
    pub fn method(self) -> &'static str {
        match self {
            Self::Up => "fedtune.v1.Artifacts/Upload",
            Self::Down => "fedtune.v1.Artifacts/Download",
        }
    }
}

/// What became of the result of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Accepted,
    /// Quarantined: what it names was not uploaded whole.
    Missing,
    /// Quarantined: the bytes, the recipe or the sums are not what they should be.
    Unfit,
    /// Quarantined: its loss or time is not a number.
    NotFinite,
    /// Quarantined: the update of an earlier round again.
    Replayed,
    /// The site says that it could not do the work.
    Failed,
    /// The site says that it will not.
    Refused,
    /// Nobody waited for it any more.
    Late,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Missing => "missing",
            Self::Unfit => "unfit",
            Self::NotFinite => "not-finite",
            Self::Replayed => "replayed",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Late => "late",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moved {
    direction: Word,
    role: Word,
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    work: Word,
    verdict: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Left {
    reason: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Checked {
    check: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

/// A word of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Word(&'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.0.encode(encoder)
    }
}

/// The counts of one aggregator. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    rounds_committed: Counter,
    attempts_failed: Counter,
    jobs_ended: Family<Status, Counter>,
    results: Family<Answered, Counter>,
    left_out: Family<Left, Counter>,
    moved: Family<Moved, Counter>,
    aggregation: Histogram,
    calls: Family<Call, Counter>,
    call_durations: Family<Method, Histogram>,
    jobs: Family<Status, Gauge>,
    ready: Gauge,
    checks: Family<Checked, Gauge>,
    sites: Arc<Mutex<Sites>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own, with everything at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let ours = registry.sub_registry_with_prefix("fedtune");
        ours.register("build", "The program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let rounds_committed = Counter::default();
        ours.register("rounds_committed", "Rounds whose state was committed", rounds_committed.clone());
        let attempts_failed = Counter::default();
        ours.register("round_attempts_failed", "Attempts of rounds that committed nothing", attempts_failed.clone());
        let jobs_ended = Family::default();
        ours.register("jobs_ended", "Jobs by how they ended", jobs_ended.clone());
        let results = Family::default();
        ours.register("results", "Results of tasks by what became of them", results.clone());
        let left_out = Family::default();
        let help = "Updates that were accepted, and left out when those of their round were compared";
        ours.register("updates_left_out", help, left_out.clone());
        let moved = Family::default();
        let help = "Bytes of artifacts received (up) and sent (down); no site for those of operators";
        ours.register_with_unit("artifact", help, Unit::Bytes, moved.clone());
        let aggregation = Histogram::new(exponential_buckets(0.01, 4.0, 10));
        ours.register_with_unit("aggregation", "Time of the strategy's pass", Unit::Seconds, aggregation.clone());
        let calls = Family::default();
        ours.register("calls", "gRPC calls by how they were answered", calls.clone());
        let call_durations =
            Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.001, 4.0, 10))) as _);
        let help = "Time until a gRPC call was answered, for streams from the aggregator until they began";
        ours.register_with_unit("call_duration", help, Unit::Seconds, call_durations.clone());
        let jobs = Family::default();
        ours.register("jobs", "Jobs by where they stand", jobs.clone());
        let ready = Gauge::default();
        ours.register("ready", "Whether the aggregator is ready", ready.clone());
        let checks = Family::default();
        ours.register("check_ok", "Each check of readiness", checks.clone());
        let sites = Arc::new(Mutex::new(Sites::default()));
        ours.register_collector(Box::new(collectors::Shared(sites.clone())));
        Self {
            registry: Arc::new(registry),
            rounds_committed,
            attempts_failed,
            jobs_ended,
            results,
            left_out,
            moved,
            aggregation,
            calls,
            call_durations,
            jobs,
            ready,
            checks,
            sites,
        }
    }

    /// Everything, in the text form of OpenMetrics.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// A transition of a job's machine.
    pub fn transition(&self, before: &Machine, after: &Machine, effects: &[Effect]) {
        let committed = effects.iter().find_map(|effect| match effect {
            Effect::Record(record) if matches!(before.phase, Phase::Aggregating { .. }) => Some(record),
            _ => None,
        });
        if let Some(record) = committed {
            self.rounds_committed.inc();
            self.aggregation.observe(record.aggregate_seconds);
        } else if let Some(attempt) = attempt(&before.phase) {
            let failed = matches!(after.phase, Phase::Ended(Outcome::Failed(_)))
                || attempt_of(&after.phase).is_some_and(|next| next != attempt);
            if failed {
                self.attempts_failed.inc();
            }
        }
        if let (Phase::Ended(outcome), false) = (&after.phase, matches!(before.phase, Phase::Ended(_))) {
            let status = match outcome {
                Outcome::Completed(_) => JobStatus::Completed,
                Outcome::Failed(_) => JobStatus::Failed,
                Outcome::Cancelled => JobStatus::Cancelled,
            };
            self.jobs_ended.get_or_create(&Status { status: Word(status.as_str()) }).inc();
        }
    }

    /// What became of a result.
    pub fn result(&self, work: Work, verdict: Verdict) {
        let work = match work {
            Work::Initialize => "initialize",
            Work::Train => "train",
            Work::Evaluate => "evaluate",
        };
        self.results.get_or_create(&Answered { work: Word(work), verdict: Word(verdict.as_str()) }).inc();
    }

    /// An update that was accepted does not count after all.
    pub fn left_out(&self, kind: LeftOut) {
        self.left_out.get_or_create(&Left { reason: Word(kind.as_str()) }).inc();
    }

    /// Bytes of artifacts that an enrolled site, or an operator, sent or received.
    pub fn moved(&self, identity: &Identity, direction: Direction, bytes: u64) {
        // Operators are not enrolled, so their names are not bounded.
        let site = if identity.role == Role::Operator { String::new() } else { identity.name.clone() };
        self.moved
            .get_or_create(&Moved { direction: Word(direction.as_str()), role: Word(identity.role.as_str()), site })
            .inc_by(bytes);
    }

    /// An answered call. `method` must be one that exists.
    pub fn call(&self, method: &str, code: tonic::Code, took: Duration) {
        let code = format!("{code:?}");
        self.calls.get_or_create(&Call { method: method.into(), code }).inc();
        self.call_durations.get_or_create(&Method { method: method.into() }).observe(took.as_secs_f64());
    }

    /// What readiness found.
    pub fn health(&self, report: &Report) {
        self.ready.set(report.ready.into());
        for check in &report.checks {
            self.checks.get_or_create(&Checked { check: Word(check.name.as_str()) }).set(check.ok.into());
        }
    }

    /// How many jobs stand where.
    pub fn jobs(&self, counts: &[(JobStatus, u64)]) {
        for (status, count) in counts {
            let gauge = self.jobs.get_or_create(&Status { status: Word(status.as_str()) });
            gauge.set((*count).try_into().unwrap_or(i64::MAX));
        }
    }

    /// Who is enrolled.
    pub fn enrolled(&self, sites: Vec<Identity>) {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).enrolled = sites;
    }

    /// Who is online and who works.
    pub fn overview(&self, overview: Overview) {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).overview = overview;
    }
}

/// The round and attempt that a phase is busy with.
fn attempt(phase: &Phase) -> Option<(u32, u32)> {
    match phase {
        Phase::Training { round, attempt, .. } | Phase::Aggregating { round, attempt, .. } => Some((*round, *attempt)),
        _ => None,
    }
}

/// The same, or the one that it waits to begin.
fn attempt_of(phase: &Phase) -> Option<(u32, u32)> {
    match phase {
        Phase::Gathering { round, attempt } => Some((*round, *attempt)),
        other => attempt(other),
    }
}

#[cfg(test)]
mod tests;
