//! What sites may do, and what becomes of what they send.

use std::collections::BTreeSet;

use fedtune_config::job::{self, Copies, Job, TaskKind};
use fedtune_proto::delta::{self, Codec};
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::Form;
use tracing::warn;

use super::Coordinator;
use super::counted::Counted;
use super::handle::{Answer, Expected, Permit, Rejected};
use crate::aggregate::Bounds;
use crate::pki::{Identity, Role};
use crate::round::{Event, Fault, Turn, Work};
use crate::store::StoreError;

/// Most artifacts that a site may begin to store for one task: one, and those of attempts that it lost.
const UPLOADS_MAX: usize = 16;

impl Coordinator {
    /// What a result of this turn would be checked against, or the answer it has had already.
    pub(super) async fn expect(&self, site: &str, job: &str, turn: Turn) -> Result<Expected, StoreError> {
        let stale = |reason: String| Expected::Answered(Answer { accepted: false, replayed: false, reason });
        let active = self.active.get(job);
        let stored;
        let machine = match active {
            Some(active) => &active.record.machine,
            None => match self.find(job).await {
                Ok(record) => {
                    stored = record;
                    &stored.machine
                }
                Err(Rejected::Store(e)) => return Err(e),
                Err(unknown) => return Ok(stale(unknown.to_string())),
            },
        };
        if let Some(active) = active.filter(|_| machine.work_of(site) == Some(turn)) {
            return Ok(Expected::Open {
                state: machine.state_for(site),
                form: form(&active.job.task),
                bounds: Bounds {
                    examples: self.limits.examples_per_update.min(match turn.work {
                        // What a site registers is its training data.
                        Work::Evaluate => u64::MAX,
                        _ => self.sessions.examples(site).unwrap_or(u64::MAX),
                    }),
                    norm: active.job.admission.norm_max.unwrap_or(f64::INFINITY),
                    excluded: active.job.aggregation.exclude.clone(),
                },
                codec: codec(&active.job),
            });
        }
        let accepted = "it is stored already".to_owned();
        let accepted = Expected::Answered(Answer { accepted: true, replayed: false, reason: accepted });
        match machine.answer_to(site, turn) {
            Some(Ok(())) => return Ok(accepted),
            Some(Err(reason)) => return Ok(stale(reason)),
            None => {}
        }
        // An update counts in the round it was made for, in one a little later, or, where that is tried again, in the one before.
        let near = turn.round.saturating_sub(1)..=turn.round.saturating_add(machine.plan.staleness_max.unwrap_or(0));
        let rounds = self.records.rounds_within(job, near).await?;
        let counted = rounds.iter().any(|record| {
            let made = (turn.round, turn.attempt);
            match turn.work {
                Work::Evaluate => (record.round, record.attempt) == made && record.evaluations.contains_key(site),
                _ => record.sites.get(site).is_some_and(|share| share.made_for(record.round, record.attempt) == made),
            }
        });
        Ok(if counted {
            accepted
        } else {
            stale(format!("round {} attempt {} does not wait for {site} any more", turn.round, turn.attempt))
        })
    }

    pub(super) async fn report(
        &mut self,
        site: &str,
        job: &str,
        turn: Turn,
        event: Event,
        recipe: Option<String>,
    ) -> Result<Answer, StoreError> {
        // The world may have moved while the bytes were checked.
        if let Expected::Answered(answer) = self.expect(site, job, turn).await? {
            return Ok(answer);
        }
        let replay = self.replay(site, job, &event).await?;
        let replayed = replay.is_some();
        let event = match replay {
            Some(reason) => Event::Failed { site: site.to_owned(), turn, reason, fault: Fault::Quarantined },
            None => event,
        };
        let quarantined = match &event {
            Event::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        if let (Some(recipe), Some(active)) = (recipe, self.active.get_mut(job)) {
            active.record.recipe = Some(recipe);
        }
        self.apply(job, event).await?;
        self.pass_on().await;
        match quarantined {
            Some(reason) => {
                warn!(site, job, round = turn.round, reason, "a result does not count");
                Ok(Answer { accepted: false, replayed, reason })
            }
            None => Ok(Answer { accepted: true, replayed, reason: String::new() }),
        }
    }

    /// Why an update is none of this turn: it counted in an earlier round, or is that of another turn that is still open.
    async fn replay(&mut self, site: &str, job: &str, event: &Event) -> Result<Option<String>, StoreError> {
        let (Event::Updated { share, .. }, Some(active)) = (event, self.active.get_mut(job)) else { return Ok(None) };
        if active.job.admission.copies == Copies::Count || share.norm == 0.0 {
            return Ok(None);
        }
        if active.record.machine.holds(site, share.update.digest) {
            return Ok(Some("the update is one that this site sent for an earlier task, byte for byte".into()));
        }
        if active.counted.is_none() {
            active.counted = Some(Counted::of(&self.records.rounds(job).await?));
        }
        let earlier = active.counted.as_ref().and_then(|counted| counted.find(share.update.digest));
        Ok(earlier
            .map(|(round, site)| format!("the update is the one that {site} sent in round {round}, byte for byte")))
    }

    pub(super) async fn permits(&mut self, identity: &Identity, permit: Permit) -> Result<(), Rejected> {
        let refused = |reason: String| Err(Rejected::Refused(reason));
        let within = |size: u64, most: u64| {
            if size <= most {
                Ok(())
            } else {
                refused(format!("the artifact has {size} bytes; expected at most {most}"))
            }
        };
        if identity.role == Role::Operator {
            return match permit {
                Permit::Read(_) => Ok(()),
                Permit::Write(artifact) => within(artifact.size, self.limits.artifact_bytes),
            };
        }
        if !self.records.sites().await?.contains(identity) {
            return refused(format!("{} is not enrolled here", identity.name));
        }
        match permit {
            Permit::Read(digest) => {
                if self.active.values().any(|active| active.record.gives(&identity.name, digest)) {
                    Ok(())
                } else {
                    refused(format!("artifact {digest} is not part of a running job"))
                }
            }
            Permit::Write(ArtifactRef { digest, size }) => {
                let work = self.work_of(&identity.name);
                let active = work.as_ref().and_then(|(job, _)| self.active.get_mut(job));
                let (Some((_, turn)), Some(active)) = (work, active) else {
                    return refused("no task of this site asks for an upload".into());
                };
                let most = match turn.work {
                    Work::Initialize => self.limits.artifact_bytes,
                    Work::Train => match (active.record.machine.state, codec(&active.job)) {
                        (Some(state), Some(codec)) => {
                            let layout = self.artifacts.layout(state).await?;
                            delta::wire_bytes_max(&layout, codec)
                        }
                        // An update has the layout of the state; only the header's padding may differ.
                        (Some(state), None) => state.size + (1 << 16),
                        (None, _) => 0,
                    },
                    Work::Evaluate => return refused("no task of this site asks for an upload".into()),
                };
                within(size, most)?;
                let (of, begun) = active.uploads.entry(identity.name.clone()).or_insert((turn, BTreeSet::new()));
                if *of != turn {
                    (*of, *begun) = (turn, BTreeSet::new());
                }
                if begun.len() >= UPLOADS_MAX && !begun.contains(&digest) {
                    return refused(format!("more than {UPLOADS_MAX} artifacts came for one task; expected one"));
                }
                begun.insert(digest);
                Ok(())
            }
        }
    }
}

/// How the updates of a job are encoded; `None` for not at all.
fn codec(job: &Job) -> Option<Codec> {
    // Every codec that a sound job can name is one.
    job.updates.codec().and_then(|name| name.parse().ok())
}

/// What an evaluation of a task counts.
fn form(task: &job::Task) -> Form {
    let labels = task.labels.len();
    match task.kind {
        TaskKind::TextClassification | TaskKind::ImageClassification | TaskKind::TableClassification => {
            Form::Classes(labels)
        }
        TaskKind::MultiLabelClassification => Form::Sets(labels),
        TaskKind::TextRegression | TaskKind::TableRegression => Form::Values,
        TaskKind::TokenClassification => Form::Tags(labels),
        TaskKind::CausalLm => Form::NextToken,
    }
}
