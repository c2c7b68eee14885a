//! Which of a round's updates count, once all are in: what only a comparison shows.

use std::collections::BTreeMap;

use fedtune_config::job::{Admission, Copies};
use fedtune_proto::digest::Digest;

use super::SiteShare;

/// An update whose norm is less than this share of the median of its round is flagged.
const IDLE: f64 = 1e-3;

/// The fewest updates whose median norm says something of one of them.
const COMPARABLE: usize = 3;

/// Why an update is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// It changes nothing, while others do.
    Idle,
    /// It is another's, byte for byte.
    Copied,
    /// Its norm is far beyond those of the others.
    TooLarge,
}

impl LeftOut {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Copied => "copied",
            Self::TooLarge => "too-large",
        }
    }
}

/// What a comparison of a round's updates shows.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// Sites whose updates are left out, with the kind of reason and the reason in words.
    pub left_out: BTreeMap<String, (LeftOut, String)>,
    /// Sites whose updates count, but are remarkable.
    pub flags: BTreeMap<String, String>,
}

/// Compares the updates of a round, keyed by site, by what the job's `[admission]` says.
pub fn compare(admission: &Admission, updates: &BTreeMap<String, SiteShare>) -> Verdict {
    let mut verdict = Verdict::default();
    // Where nothing moved anywhere, as in a first step of a warm-up, nobody hides.
    if updates.values().any(|share| share.norm > 0.0) {
        for (site, _) in updates.iter().filter(|(_, share)| share.norm == 0.0) {
            let reason = "its update changes nothing, while others do";
            verdict.left_out.insert(site.clone(), (LeftOut::Idle, reason.into()));
        }
    }
    let mut first: BTreeMap<Digest, &String> = BTreeMap::new();
    let mut moving: Vec<_> = updates.iter().filter(|(_, share)| share.norm != 0.0).collect();
    // Who copies comes later.
    moving.sort_by_key(|(_, share)| share.received_ms);
    for (site, share) in moving {
        let Some(other) = first.insert(share.update.digest, site) else { continue };
        let reason = format!("its update is the same as that of {other}, byte for byte");
        first.insert(share.update.digest, other);
        match admission.copies {
            Copies::LeaveOut => drop(verdict.left_out.insert(site.clone(), (LeftOut::Copied, reason))),
            Copies::Count => drop(verdict.flags.insert(site.clone(), reason)),
        }
    }
    let left = |verdict: &Verdict| -> Vec<(String, f64)> {
        let known = updates.iter().filter(|(_, share)| share.norm >= 0.0);
        let counts = known.filter(|(site, _)| !verdict.left_out.contains_key(*site));
        counts.map(|(site, share)| (site.clone(), share.norm)).collect()
    };
    let compared = left(&verdict);
    if compared.len() < COMPARABLE {
        return verdict;
    }
    let mut norms: Vec<f64> = compared.iter().map(|(_, norm)| *norm).collect();
    norms.sort_unstable_by(f64::total_cmp);
    // The lower one of two: a few large norms must not hide each other.
    let median = norms[(norms.len() - 1) / 2];
    let most = admission.norm_ratio_max;
    for (site, norm) in compared {
        if most > 0.0 && norm > most * median {
            let reason = format!(
                "its update has the norm {norm:.3e}, {:.0} times the median of the round; expected at most {most} times \
                 (admission.norm_ratio_max)",
                norm / median
            );
            verdict.left_out.insert(site, (LeftOut::TooLarge, reason));
        } else if norm < IDLE * median {
            let reason = format!("its update has the norm {norm:.3e}, hardly anything beside the median {median:.3e}");
            verdict.flags.insert(site, reason);
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use fedtune_proto::digest::ArtifactRef;

    use super::*;

    fn updates(norms: &[(&str, &str, f64)]) -> BTreeMap<String, SiteShare> {
        let share =
            |name: &str, norm| SiteShare::new(ArtifactRef { digest: Digest::of(name.as_bytes()), size: 1 }, 1, norm);
        norms.iter().map(|(site, update, norm)| ((*site).to_owned(), share(update, *norm))).collect()
    }

    fn left_out(admission: &Admission, norms: &[(&str, &str, f64)]) -> Vec<(String, LeftOut)> {
        compare(admission, &updates(norms)).left_out.into_iter().map(|(site, (kind, _))| (site, kind)).collect()
    }

    fn all(kind: LeftOut, sites: &[&str]) -> Vec<(String, LeftOut)> {
        sites.iter().map(|site| ((*site).to_owned(), kind)).collect()
    }

    #[test]
    fn idle_copied_and_scaled_updates_are_left_out() {
        let admission = Admission::default();
        assert!(left_out(&admission, &[("a", "1", 1.0), ("b", "2", 2.0), ("c", "3", 40.0)]).is_empty());
        assert_eq!(
            left_out(&admission, &[("a", "1", 1.0), ("b", "2", 0.0), ("c", "3", 1.0)]),
            all(LeftOut::Idle, &["b"])
        );
        assert_eq!(
            left_out(&admission, &[("a", "1", 1.0), ("b", "2", 1.0), ("c", "1", 1.0), ("d", "1", 1.0)]),
            all(LeftOut::Copied, &["c", "d"])
        );
        assert_eq!(
            left_out(&admission, &[("a", "1", 1.0), ("b", "2", 1.1), ("c", "3", 100.0)]),
            all(LeftOut::TooLarge, &["c"])
        );
        assert_eq!(
            left_out(&admission, &[("a", "1", 1.0), ("b", "2", 100.0), ("c", "3", 1.0), ("d", "4", 90.0)]),
            all(LeftOut::TooLarge, &["b", "d"])
        );
        // Two cannot say which of them is wrong.
        assert!(left_out(&admission, &[("a", "1", 1.0), ("b", "2", 1000.0)]).is_empty());
    }

    #[test]
    fn of_copies_the_first_one_counts() {
        let mut updates = updates(&[("a", "1", 1.0), ("b", "1", 1.0), ("c", "2", 1.0)]);
        updates.values_mut().zip([7, 3, 1]).for_each(|(share, at)| share.received_ms = at);
        let left_out = compare(&Admission::default(), &updates).left_out;
        assert_eq!(left_out.into_keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_round_in_which_nothing_moves_counts() {
        let norms = [("a", "1", 0.0), ("b", "1", 0.0), ("c", "1", 0.0)];
        assert_eq!(compare(&Admission::default(), &updates(&norms)), Verdict::default());
    }

    #[test]
    fn copies_count_and_ratios_are_off_where_the_job_says_so() {
        let admission = Admission { copies: Copies::Count, norm_ratio_max: 0.0, ..Admission::default() };
        let verdict =
            compare(&admission, &updates(&[("a", "1", 1.0), ("b", "1", 1.0), ("c", "2", 1e9), ("d", "3", 1e-9)]));
        assert!(verdict.left_out.is_empty());
        assert_eq!(verdict.flags.keys().collect::<Vec<_>>(), ["b", "d"]);
        assert!(verdict.flags["b"].contains("same as that of a"), "{verdict:?}");
    }
}
