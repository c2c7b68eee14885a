//! `[rounds]`: how many rounds, with whom, how long.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Strategy, range};
use crate::error::Problems;
use crate::units::Span;

/// Who is asked to take part in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cohort {
    /// Every training site that is online when the round opens.
    All,
    /// So many of them, drawn by the job's seed and the round.
    Count(usize),
    /// Such a share of them, rounded up, but the quorum at least; drawn likewise.
    Share(f64),
}

impl Serialize for Cohort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Count(count) => serializer.serialize_u64(*count as u64),
            Self::Share(share) => serializer.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for Cohort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Cohort;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("\"all\" or a number of sites, or a share of them above 0 and below 1")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cohort, E> {
                match text {
                    "all" => Ok(Cohort::All),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Cohort, E> {
                Ok(Cohort::Count(usize::try_from(count).unwrap_or(usize::MAX)))
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Cohort, E> {
                match u64::try_from(count) {
                    Ok(count) => self.visit_u64(count),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(count), &self)),
                }
            }
            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Cohort, E> {
                match share > 0.0 && share < 1.0 {
                    true => Ok(Cohort::Share(share)),
                    false => Err(E::invalid_value(de::Unexpected::Float(share), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What becomes of a job whose round stayed below quorum at every attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BelowQuorum {
    /// It fails.
    #[default]
    Fail,
    /// It is paused, until the operator resumes it.
    Pause,
}

/// What becomes of a site that is still at work when its round closes without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Late {
    /// It is told to stop.
    Drop,
    /// It goes on, and its update counts in a later round, the less the older the state is that it started from.
    Keep,
}

/// How many rounds, with whom, how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounds {
    /// Number of rounds.
    pub count: u32,
    /// Who is asked to take part.
    pub cohort: Cohort,
    /// A round starts when so many training sites (or the cohort, if that is a larger number) are online, and counts when
    /// so many updates are in.
    pub quorum: usize,
    /// A round closes as soon as so many updates are in; sites that are still at work are told to stop. Without it, all of
    /// the cohort are waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<usize>,
    /// How long a round waits for its updates once it is open. A site that is still moving bytes or taking steps
    /// is waited for; one that is silent is not.
    pub deadline: Span,
    /// A round that has its quorum closes when it has been open for so long, whoever is still at work; a site's first
    /// state, and its evaluations, are waited for no longer than that either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Span>,
    /// What becomes of sites that are still at work when a round closes. After reading it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
    /// An update that started from the state of more rounds before the one it would count in does not count. Goes with
    /// [`Late::Keep`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_max: Option<u32>,
    /// How often a round below quorum is tried.
    pub attempts: u32,
    /// What becomes of the job after these attempts.
    pub below_quorum: BelowQuorum,
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            count: 3,
            cohort: Cohort::All,
            quorum: 2,
            target: None,
            deadline: Span::seconds(2 * 3600),
            limit: None,
            late: None,
            staleness_max: None,
            attempts: 3,
            below_quorum: BelowQuorum::Fail,
        }
    }
}

impl Rounds {
    /// Writes the defaults of what is made use of.
    pub(super) fn complete(&mut self, strategy: Strategy) {
        let late = if strategy == Strategy::Fedbuff { Late::Keep } else { Late::Drop };
        if *self.late.get_or_insert(late) == Late::Keep {
            self.staleness_max.get_or_insert(10);
        }
    }

    /// Whether sites that are still at work when a round closes go on.
    pub fn keeps_late(&self) -> bool {
        self.late == Some(Late::Keep)
    }

    pub(super) fn validate(&self, p: &mut Problems, strategy: Strategy) {
        let Self { count, cohort, quorum, target, deadline, limit, late: _, staleness_max, attempts, below_quorum: _ } =
            self;
        let asynchronous = strategy == Strategy::Fedbuff;
        p.check(!asynchronous || self.keeps_late(), "rounds.late", || {
            format!(
                "found \"drop\" beside aggregation.strategy = \"{strategy}\", which lives on late updates; leave it out"
            )
        });
        p.check(!self.keeps_late() || asynchronous || target.is_some() || limit.is_some(), "rounds.late", || {
            "found \"keep\" without rounds.target or rounds.limit: a round then waits for all, and nobody is late; set \
             one of them, or leave this out"
                .into()
        });
        p.check(staleness_max.is_none() || self.keeps_late(), "rounds.staleness_max", || {
            "stands without rounds.late = \"keep\", which alone makes use of it; set that, or leave this out".into()
        });
        if let Some(most) = staleness_max {
            range(p, "rounds.staleness_max", *most, 1, 1_000);
        }
        range(p, "rounds.count", *count, 1, 100_000);
        range(p, "rounds.quorum", *quorum, 1, 100_000);
        range(p, "rounds.attempts", *attempts, 1, 1_000);
        for (field, span) in [("rounds.deadline", Some(deadline)), ("rounds.limit", limit.as_ref())] {
            let Some(span) = span else { continue };
            p.check(span.0.as_secs() >= 1, field, || format!("found {span}; expected at least \"1s\""));
        }
        if let Cohort::Count(cohort) = cohort {
            p.check(cohort >= quorum, "rounds.cohort", || {
                format!("found {cohort}; expected at least rounds.quorum, which is {quorum}")
            });
        }
        let Some(target) = target else { return };
        p.check(target >= quorum, "rounds.target", || {
            format!("found {target}; expected at least rounds.quorum, which is {quorum}")
        });
        if let Cohort::Count(cohort) = cohort {
            p.check(target <= cohort, "rounds.target", || {
                format!("found {target}; expected at most rounds.cohort, which is {cohort}")
            });
        }
    }
}
