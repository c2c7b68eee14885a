//! What can be seen of jobs and sites.

use std::collections::{BTreeMap, BTreeSet};

use super::sessions::About;
use crate::pki::Identity;
use crate::round::{Judge, Phase, RoundRecord, Trainee, Turn, Work};
use crate::store::records::{JobRecord, JobStatus};

/// How far a site is with its task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activity {
    /// The work.
    pub turn: Turn,
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0 while unknown.
    pub total: u64,
    /// Mean training loss so far.
    pub loss: Option<f64>,
    /// Speed.
    pub examples_per_second: f64,
}

impl Activity {
    pub(super) fn begun(turn: Turn) -> Self {
        Self { turn, done: 0, total: 0, loss: None, examples_per_second: 0.0 }
    }
}

/// A job with its rounds and what its sites are doing.
#[derive(Debug, Clone)]
pub struct JobSnapshot {
    /// The job.
    pub record: JobRecord,
    /// Its committed rounds.
    pub rounds: Vec<RoundRecord>,
    /// What it waits for, in words.
    pub phase: String,
    /// Each site at work: what it does, and how far it is.
    pub activity: Vec<(String, &'static str, Activity)>,
}

/// An enrolled site; `about` is what it said if it is online.
#[derive(Debug, Clone)]
pub struct SiteSnapshot {
    /// Name and role.
    pub identity: Identity,
    /// What it said of itself.
    pub about: Option<About>,
}

/// What monitoring sees of the sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overview {
    /// Sites and evaluators with an open session.
    pub online: BTreeSet<String>,
    /// Those whose task a running job waits for.
    pub working: BTreeSet<String>,
}

impl JobSnapshot {
    pub(super) fn new(record: JobRecord, rounds: Vec<RoundRecord>, mut known: BTreeMap<String, Activity>) -> Self {
        let phase = match record.status {
            JobStatus::Running => {
                let phase = in_words(&record.machine.phase, record.machine.plan.quorum);
                if record.machine.paused.is_some() { format!("{phase}; pauses after that") } else { phase }
            }
            status => status.as_str().into(),
        };
        let mut activity = Vec::new();
        let mut add = |site: &String, word: &'static str, turn: Turn| {
            let seen = known.remove(site).filter(|activity| activity.turn == turn);
            activity.push((site.clone(), word, seen.unwrap_or_else(|| Activity::begun(turn))));
        };
        match &record.machine.phase {
            Phase::Initializing { site: Some(site), attempt, .. } => {
                add(site, "initializing", Turn { work: Work::Initialize, round: 0, attempt: *attempt });
            }
            Phase::Training { round, attempt, sites, .. } => {
                let turn = Turn { work: Work::Train, round: *round, attempt: *attempt };
                for (site, trainee) in sites {
                    let word = match trainee {
                        Trainee::Working(_) => "training",
                        Trainee::Done(_) => "done",
                        Trainee::Out(_) => "failed",
                    };
                    add(site, word, turn);
                }
            }
            Phase::Evaluating { record, sites, .. } => {
                let turn = Turn { work: Work::Evaluate, round: record.round, attempt: record.attempt };
                for (site, judge) in sites {
                    add(site, if *judge == Judge::Waiting { "waiting" } else { "evaluating" }, turn);
                }
            }
            _ => {}
        }
        for (site, late) in &record.machine.late {
            let word = match late.answer {
                Trainee::Working(_) if late.turn.attempt == 0 => "ahead",
                Trainee::Working(_) => "late",
                Trainee::Done(_) | Trainee::Out(_) => continue,
            };
            add(site, word, late.turn);
        }
        Self { record, rounds, phase, activity }
    }
}

fn in_words(phase: &Phase, quorum: usize) -> String {
    match phase {
        Phase::Initializing { site: None, .. } => "waits for a site to make the first state".into(),
        Phase::Initializing { site: Some(site), .. } => format!("{site} makes the first state"),
        Phase::Gathering { round, .. } => format!("round {round} waits for {quorum} training sites to be online"),
        Phase::Training { round, attempt, .. } if *attempt > 1 => format!("round {round}, attempt {attempt}: training"),
        Phase::Training { round, .. } => format!("round {round}: training"),
        Phase::Aggregating { round, .. } => format!("round {round}: aggregating"),
        Phase::Evaluating { record, sites, .. } if sites.is_empty() => {
            format!("round {}: waits for an evaluator to be online", record.round)
        }
        Phase::Evaluating { record, .. } => format!("round {}: evaluating", record.round),
        Phase::Ended(_) => "ended".into(),
    }
}
