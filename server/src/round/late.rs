//! Work that belongs to no open round: of sites that a round closed without, and of those that go on ahead of the next.

use fedtune_proto::digest::ArtifactRef;
use serde::{Deserialize, Serialize};

use super::{Effect, Machine, NOT_NEEDED, Phase, SILENT, SiteShare, Stale, Trainee, Turn, Work, World};

/// A site's work outside the open round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// The work.
    pub turn: Turn,
    /// The round that was open when it began; its age is counted from there.
    pub began: u32,
    /// The state it started from.
    pub state: ArtifactRef,
    /// How far it is. An update that is done waits for the next round to open.
    pub answer: Trainee,
}

impl Late {
    /// What its update counts as in a round.
    fn share(&self, share: &SiteShare, round: u32) -> SiteShare {
        let stale =
            Stale { round: self.turn.round, attempt: self.turn.attempt, rounds: round.saturating_sub(self.began) };
        SiteShare { stale: Some(stale), ..share.clone() }
    }
}

/// Why late work is of no use any more.
pub(super) const TOO_OLD: &str = "the state it started from is more than rounds.staleness_max rounds behind";

/// Why the update of a site that goes on is not in a round.
const STILL_AT_WORK: &str = "is still at work; its update counts in a later round";

/// Why late work ends with its job's last round, or with a return to an earlier state.
pub(super) const NO_ROUND: &str = "no later round would count it";

impl Machine {
    /// Whether a site is at work outside the open round.
    pub(super) fn is_late(&self, site: &str) -> bool {
        self.late.get(site).is_some_and(|late| matches!(late.answer, Trainee::Working(_)))
    }

    pub(super) fn any_late(&self) -> bool {
        self.late.keys().any(|site| self.is_late(site))
    }

    /// Gives up late sites that are silent. They are asked again when a round opens.
    pub(super) fn settle_late(&mut self, world: &World, effects: &mut Vec<Effect>) {
        for (site, late) in &mut self.late {
            if matches!(late.answer, Trainee::Working(heard) if self.plan.silent(heard, world)) {
                effects.push(Effect::Withdraw(site.clone(), late.turn, SILENT.into()));
                late.answer = Trainee::Out(SILENT.into());
            }
        }
    }

    /// The updates that waited for this round. What has become too old for it is given up.
    pub(super) fn late_updates(&mut self, round: u32, effects: &mut Vec<Effect>) -> Vec<(String, SiteShare)> {
        let most = self.plan.staleness_max.unwrap_or(0);
        let mut updates = Vec::new();
        self.late.retain(|site, late| match &late.answer {
            Trainee::Out(_) => false,
            Trainee::Working(_) | Trainee::Done(_) if round.saturating_sub(late.began) > most => {
                effects.push(match late.answer {
                    Trainee::Done(_) => Effect::Notify(site.clone(), late.turn, TOO_OLD.into()),
                    _ => Effect::Withdraw(site.clone(), late.turn, TOO_OLD.into()),
                });
                false
            }
            Trainee::Working(_) => true,
            Trainee::Done(share) => {
                updates.push((site.clone(), late.share(share, round)));
                false
            }
        });
        updates
    }

    /// What becomes of a late site's answer: it counts in the open round, or waits for the next one.
    pub(super) fn late_updated(&mut self, site: &str, share: SiteShare) {
        let Some(late) = self.late.get_mut(site) else { return };
        match &mut self.phase {
            Phase::Training { round, sites, .. } if !sites.contains_key(site) => {
                sites.insert(site.to_owned(), Trainee::Done(late.share(&share, *round)));
                self.late.remove(site);
            }
            _ => late.answer = Trainee::Done(share),
        }
    }

    /// A site that a round closes without goes on, if a later one would count what it does. Says why it is not in this one.
    pub(super) fn keep_or_withdraw(
        &mut self,
        site: &str,
        turn: Turn,
        heard_ms: u64,
        effects: &mut Vec<Effect>,
    ) -> &'static str {
        let kept = self.plan.staleness_max.is_some() && turn.round < self.plan.rounds;
        let Some(state) = self.state.filter(|_| kept) else {
            effects.push(Effect::Withdraw(site.to_owned(), turn, NOT_NEEDED.to_owned()));
            return NOT_NEEDED;
        };
        let answer = Trainee::Working(heard_ms);
        self.late.insert(site.to_owned(), Late { turn, began: turn.round, state, answer });
        STILL_AT_WORK
    }

    /// Gives work to sites that have answered in the open round, or came after it opened, where nobody waits for the others.
    pub(super) fn go_ahead(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let (Phase::Training { round, attempt, sites, .. }, Some(state)) = (&mut self.phase, self.state) else {
            return;
        };
        let free = world.free().filter(|site| !self.refused.contains_key(*site) && !self.late.contains_key(*site));
        let free: Vec<&String> = free.collect();
        for site in free {
            let offer = match sites.get(site) {
                Some(Trainee::Done(share)) if *round < self.plan.rounds => {
                    // No attempt at that round has this number.
                    let turn = Turn { work: Work::Train, round: *round + 1, attempt: 0 };
                    // It has done that, and the round that it was begun in is tried again.
                    if share.made_for(*round, *attempt) == (turn.round, turn.attempt) {
                        continue;
                    }
                    let answer = Trainee::Working(world.now_ms);
                    self.late.insert(site.clone(), Late { turn, began: *round, state, answer });
                    turn
                }
                None => {
                    sites.insert(site.clone(), Trainee::Working(world.now_ms));
                    Turn { work: Work::Train, round: *round, attempt: *attempt }
                }
                _ => continue,
            };
            effects.push(Effect::Offer(site.clone(), offer));
        }
    }

    /// Ends all late work; no round will count it.
    pub(super) fn forget_late(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        for (site, late) in std::mem::take(&mut self.late) {
            match late.answer {
                Trainee::Working(_) => effects.push(Effect::Withdraw(site, late.turn, reason.to_owned())),
                Trainee::Done(_) => effects.push(Effect::Notify(site, late.turn, reason.to_owned())),
                Trainee::Out(_) => {}
            }
        }
    }
}
