//! What came of all cases, as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use fedtune_config::job::Rule;

use crate::attack::Attack;
use crate::federation::Outcome;

/// How the training rows are dealt to sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Split {
    /// At random, in equal parts.
    Iid,
    /// With label skew, by a Dirichlet distribution of α = 0.5.
    Dirichlet,
}

impl Split {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Iid, Self::Dirichlet];

    /// Its name in a table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Iid => "IID",
            Self::Dirichlet => "Dirichlet 0.5",
        }
    }
}

/// A case; its outcomes are one for each seed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) split: Split,
    /// Whether updates were compared and left out.
    pub(crate) compared: bool,
    /// The rule's name.
    pub(crate) rule: String,
    pub(crate) attack: Attack,
}

/// The outcomes of each case.
#[derive(Debug, Default)]
pub(crate) struct Results(BTreeMap<Key, Vec<Outcome>>);

impl Results {
    pub(crate) fn add(&mut self, key: Key, outcome: Outcome) {
        self.0.entry(key).or_default().push(outcome);
    }

    /// Every case.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (&Key, &[Outcome])> {
        self.0.iter().map(|(key, outcomes)| (key, outcomes.as_slice()))
    }

    /// The mean accuracy over the seeds; NaN, which is below every threshold, for a case that was not run.
    pub(crate) fn accuracy(&self, split: Split, compared: bool, rule: Rule, attack: Attack) -> f64 {
        let outcomes = self.0.get(&Key { split, compared, rule: rule.to_string(), attack });
        let outcomes = outcomes.map_or(&[][..], Vec::as_slice);
        outcomes.iter().map(|outcome| outcome.accuracy).sum::<f64>() / outcomes.len() as f64
    }

    /// Mean accuracies, a line for each attack and a column for each rule.
    pub(crate) fn table(&self, split: Split, compared: bool, rules: &[Rule], attacks: &[Attack]) -> String {
        let how = if compared { "with the comparison of updates" } else { "without the comparison of updates" };
        let mut text = format!("{}, {how}\n{:<10}", split.title(), "");
        for rule in rules {
            let _ = write!(text, " {:>17}", rule.to_string());
        }
        for attack in attacks {
            let _ = write!(text, "\n{:<10}", format!("{attack:?}").to_lowercase());
            for rule in rules {
                let _ = write!(text, " {:>17.3}", self.accuracy(split, compared, *rule, *attack));
            }
        }
        text + "\n\n"
    }

    /// What a table does not show.
    pub(crate) fn notes(&self) -> String {
        let mut text = String::new();
        for (key, outcomes) in self.cases() {
            let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
            let (lost, short) = (sum(|outcome| outcome.lost), sum(|outcome| outcome.short));
            let honest = sum(|outcome| outcome.honest_refused + outcome.honest_left_out);
            let mut said = Vec::new();
            if lost > 0 {
                said.push(format!("{lost} rounds were lost"));
            }
            if short > 0 {
                said.push(format!(
                    "in {short} rounds there were too few updates for as many malicious; a job would have waited, and here \
                     fewer were assumed"
                ));
            }
            if honest > 0 {
                let verb = if key.compared { "did not count" } else { "were refused, or would be left out" };
                said.push(format!("{honest} honest updates {verb}"));
            }
            if !said.is_empty() {
                let (split, compared) = (key.split.title(), if key.compared { ", compared" } else { "" });
                let _ = writeln!(text, "{split}{compared}: {:?} against {}: {}", key.attack, key.rule, said.join("; "));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::default();
        let key = Key { split: Split::Iid, compared: false, rule: "mean".into(), attack: Attack::Nan };
        results.add(key.clone(), Outcome { accuracy: 0.5, lost: 1, ..Outcome::default() });
        results.add(key, Outcome { accuracy: 0.25, short: 2, ..Outcome::default() });
        results
    }

    #[test]
    fn a_cell_is_the_mean_of_its_seeds_and_one_that_was_not_run_is_below_everything() {
        let results = results();
        assert_eq!(results.accuracy(Split::Iid, false, Rule::Mean, Attack::Nan), 0.375);
        let absent = results.accuracy(Split::Iid, true, Rule::Mean, Attack::Nan);
        assert!(absent.is_nan());
        let table = results.table(Split::Iid, false, &[Rule::Mean], &[Attack::Nan]);
        assert!(table.ends_with("\nnan                    0.375\n\n"), "{table}");
    }

    #[test]
    fn lost_and_short_rounds_are_told() {
        let notes = results().notes();
        assert!(notes.starts_with("IID: Nan against mean: 1 rounds were lost; in 2 rounds"), "{notes}");
    }
}
