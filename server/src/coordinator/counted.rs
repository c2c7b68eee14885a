//! The updates that counted in a job, so that none counts again.

use std::collections::HashMap;

use fedtune_proto::digest::Digest;

use crate::round::RoundRecord;

/// What counted, by its digest: in which round, and whose it was. Made of the records and kept beside them, since each
/// update is looked up here.
#[derive(Debug, Default)]
pub(super) struct Counted(HashMap<Digest, (u32, String)>);

impl Counted {
    /// What counted in these rounds.
    pub(super) fn of(rounds: &[RoundRecord]) -> Self {
        let mut counted = Self::default();
        rounds.iter().for_each(|round| counted.add(round));
        counted
    }

    fn add(&mut self, round: &RoundRecord) {
        for (site, share) in &round.sites {
            self.0.entry(share.update.digest).or_insert_with(|| (round.round, site.clone()));
        }
    }

    /// Takes in a round that was recorded; what it was recorded as before is forgotten.
    pub(super) fn record(&mut self, round: &RoundRecord) {
        self.0.retain(|_, (earlier, _)| *earlier != round.round);
        self.add(round);
    }

    /// The round in which an update counted, and its site.
    pub(super) fn find(&self, update: Digest) -> Option<(u32, &str)> {
        self.0.get(&update).map(|(round, site)| (*round, site.as_str()))
    }
}
