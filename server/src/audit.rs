//! Recomputes what a job made, from its records and artifacts: each state must follow from the one before it and the updates
//! that the round names.

use std::collections::BTreeMap;

use fedtune_config::Job;
use fedtune_proto::digest::ArtifactRef;

use crate::aggregate::{self, AggregateError, Before, Keep, Weighted};
use crate::round::RoundRecord;
use crate::store::records::JobRecord;
use crate::store::{Artifacts, StoreError};

/// What the audit of a round found.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// The same state, bit for bit.
    Sound,
    /// Something is not here any more, so nothing can be said.
    Incomplete(String),
    /// It does not follow.
    Wrong(String),
}

/// Audits the rounds of a job, in order.
///
/// # Errors
/// The job cannot be read, or storage failed.
pub async fn verify(
    artifacts: &Artifacts,
    record: &JobRecord,
    rounds: &[RoundRecord],
    mut seen: impl FnMut(&RoundRecord, &Finding),
) -> Result<Vec<Finding>, AuditError> {
    let job: Job = fedtune_config::parse(record.id.as_ref(), &record.text, std::iter::empty())?;
    let mut findings = Vec::with_capacity(rounds.len());
    for (i, round) in rounds.iter().enumerate() {
        // A job that was taken back goes on from an earlier state.
        let before = match round.from {
            Some(from) => rounds[..i].iter().find(|before| before.round == from),
            None => i.checked_sub(1).map(|before| &rounds[before]),
        };
        let finding = audit(artifacts, &job, before, round).await?;
        seen(round, &finding);
        findings.push(finding);
    }
    Ok(findings)
}

/// An audit could not be done.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The job's text.
    #[error("the job cannot be read: {0}")]
    Job(#[from] fedtune_config::ConfigError),
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

async fn audit(
    artifacts: &Artifacts,
    job: &Job,
    before: Option<&RoundRecord>,
    round: &RoundRecord,
) -> Result<Finding, AuditError> {
    let Some(base) = round.base else { return Ok(Finding::Wrong("it names no state that it started from".into())) };
    if let Some(before) = before.filter(|before| before.state.digest != base.digest) {
        let reason =
            format!("it started from {}, but round {} made {}", base.digest, before.round, before.state.digest);
        return Ok(Finding::Wrong(reason));
    }
    let moments = before.map_or(&[][..], |before| &before.moments);
    let updates = round.sites.iter().map(|(site, share)| (format!("the update of {site}"), share.update));
    let named = [("the state before it".to_owned(), base), ("the state it made".to_owned(), round.state)];
    for (what, artifact) in named.into_iter().chain(updates) {
        match artifacts.digest(artifact.digest).await? {
            None => return Ok(Finding::Incomplete(format!("{what} ({}) is not stored any more", artifact.digest))),
            Some(found) if found != artifact.digest => {
                return Ok(Finding::Wrong(format!(
                    "{what} should have the digest {}, but has {found}",
                    artifact.digest
                )));
            }
            Some(_) => {}
        }
    }
    let examples = round.sites.iter().map(|(site, share)| (site.clone(), share.examples)).collect();
    let weights = aggregate::weights(&job.aggregation, &examples);
    let weighted: BTreeMap<String, Weighted> = round
        .sites
        .iter()
        .zip(weights.values())
        .map(|((site, share), weight)| {
            (site.clone(), Weighted { update: share.update, weight: *weight, scale: share.staleness_weight() })
        })
        .collect();
    let before = Before { state: base, moments: moments.to_vec(), step: round.step() };
    let after = match aggregate::aggregate(artifacts, &job.aggregation, &before, &weighted, Keep::Nothing).await {
        Ok(after) => after,
        Err(AggregateError::Store(error @ StoreError::Unsound { .. })) => return Ok(Finding::Wrong(error.to_string())),
        Err(AggregateError::Store(error)) => return Err(error.into()),
        Err(AggregateError::Rule(reason)) => return Ok(Finding::Wrong(reason)),
    };
    let of = |artifacts: &[ArtifactRef]| artifacts.iter().map(|artifact| artifact.digest).collect::<Vec<_>>();
    Ok(if after.state.digest != round.state.digest {
        let (found, recorded) = (after.state.digest, round.state.digest);
        Finding::Wrong(format!("its updates make the state {found}; the record says {recorded}"))
    } else if of(&after.moments) != of(&round.moments) {
        Finding::Wrong("its updates make other moments of the server's optimiser than the record says".into())
    } else {
        Finding::Sound
    })
}
