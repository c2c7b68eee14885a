//! Whether a model has collapsed: whether it predicts hardly anything but one label, as federated training of a pre-trained
//! model sometimes comes to do all at once.

use fedtune_config::job::OnCollapse;
use fedtune_proto::evaluation::Evaluation;

use super::{Effect, Machine, RoundRecord, late};

/// Rounds in a row without knowledge that make a collapse.
const COLLAPSE_ROUNDS: u32 = 2;

/// How often a collapsed job is taken back to its best state.
pub(super) const ROLL_BACKS: u32 = 2;

/// Entropy of the predicted labels, in nats, below which one label is nearly all that is predicted.
const ENTROPY_MIN: f64 = 0.1;

/// Standard deviations above the share of the most frequent label within which an accuracy says nothing.
const DEVIATIONS: f64 = 2.0;

/// What an evaluation shows of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It knows more than which label is most frequent.
    Learnt,
    /// It knows no more than that.
    Idle,
    /// It predicts one label, while there are several.
    OneLabel,
}

/// What sums over one label for each example show; `None` for other tasks.
pub(super) fn sign(sums: &Evaluation) -> Option<Sign> {
    // As f64: sums of what sites claim may be larger than an integer.
    let confusion: Vec<f64> = sums.confusion()?.iter().map(|count| *count as f64).collect();
    let labels = confusion.len().isqrt();
    let total: f64 = confusion.iter().sum();
    if total == 0.0 || labels < 2 {
        return None;
    }
    let share = |count: f64| count / total;
    let actual: Vec<f64> = confusion.chunks(labels).map(|row| share(row.iter().sum())).collect();
    let predicted: Vec<f64> = (0..labels).map(|p| share(confusion.iter().skip(p).step_by(labels).sum())).collect();
    if entropy(&predicted) < ENTROPY_MIN && entropy(&actual) >= ENTROPY_MIN {
        return Some(Sign::OneLabel);
    }
    let right: f64 = (0..labels).map(|label| share(confusion[label * labels + label])).sum();
    let frequent = actual.into_iter().fold(0.0, f64::max);
    let deviation = (frequent * (1.0 - frequent) / total).sqrt();
    Some(if right > frequent + DEVIATIONS * deviation { Sign::Learnt } else { Sign::Idle })
}

fn entropy(shares: &[f64]) -> f64 {
    shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum()
}

impl Machine {
    /// Whether a classifier that had learnt something has come to predict one label, in this round and the one before.
    pub(super) fn collapsed(&mut self, record: &RoundRecord) -> bool {
        match record.evaluation().and_then(|sums| sign(&sums)) {
            Some(Sign::Learnt) => (self.course.learnt, self.course.idle) = (true, 0),
            Some(Sign::Idle | Sign::OneLabel) if self.course.learnt => self.course.idle += 1,
            _ => {}
        }
        self.course.idle >= COLLAPSE_ROUNDS
    }

    pub(super) fn take_back(&mut self, round: u32, effects: &mut Vec<Effect>) {
        let Some((best, state, moments)) = self.course.best.clone() else { return };
        match self.plan.on_collapse {
            OnCollapse::RollBack => {
                self.forget_late(late::NO_ROUND, effects);
                (self.state, self.moments) = (Some(state), moments);
                self.difference = None;
                self.course.from = Some(best);
                self.course.undone = self.course.best_undone + (round - best);
                self.course.rolled_back += 1;
                self.course.idle = 0;
            }
            OnCollapse::Pause => {
                self.course.idle = 0;
                let reason = format!("the model collapsed in round {round}; its best state is that of round {best}");
                self.paused = Some(reason);
            }
            OnCollapse::GoOn => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use fedtune_proto::evaluation::Counts;

    use super::*;

    fn of(confusion: [u64; 4]) -> Option<Sign> {
        let examples = confusion.iter().sum();
        sign(&Evaluation { examples, loss_sum: 1.0, ..Evaluation::from(Counts::Confusion(confusion.to_vec())) })
    }

    #[test]
    fn a_model_that_knows_something_is_told_from_one_that_does_not() {
        assert_eq!(of([50, 10, 10, 30]), Some(Sign::Learnt));
        // 60 of 100 are of the first label: 63 right may be luck, 75 is not.
        assert_eq!(of([50, 10, 27, 13]), Some(Sign::Idle));
        assert_eq!(of([50, 10, 15, 25]), Some(Sign::Learnt));
        assert_eq!(of([60, 0, 39, 1]), Some(Sign::OneLabel));
        assert_eq!(of([0, 60, 0, 40]), Some(Sign::OneLabel));
        // One label is all there is.
        assert_eq!(of([100, 0, 0, 0]), Some(Sign::Idle));
        assert_eq!(of([0; 4]), None);
    }
}
