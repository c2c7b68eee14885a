//! What must be left after the attacks.

use std::fmt;

use fedtune_config::job::Rule;

use crate::attack::Attack;
use crate::results::{Results, Split};

/// A requirement, and whether it holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    /// Its number and what it asks.
    pub(crate) name: String,
    pub(crate) passed: bool,
    /// What was found.
    pub(crate) found: String,
}

impl fmt::Display for Check {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}", if self.passed { "pass" } else { "FAIL" }, self.name, self.found)
    }
}

/// Attacks that destroy what an undefended mean has learnt.
const DESTRUCTIVE: [Attack; 4] = [Attack::Sign5, Attack::Huge, Attack::Scale, Attack::Ipm];

/// Attacks in which malicious sites send the same, so that all but one are left out.
const COPIES: [Attack; 3] = [Attack::Scale, Attack::Alie, Attack::Ipm];

/// What an undefended mean may be left with, so that the attack is live.
const DESTROYED: f64 = 0.2;

/// What a rule may lose on sites with label skew.
const LOSS_BY_SKEW: [(Rule, f64); 3] =
    [(Rule::MultiKrum, 0.05), (Rule::CenteredClipping, 0.06), (Rule::NormClipping, 0.12)];

/// All checks of accuracies and of who was left out.
pub(crate) fn all(results: &Results, rules: &[Rule], attacks: &[Attack]) -> Vec<Check> {
    let mut checks = Vec::new();
    for split in Split::ALL {
        checks.push(live(results, split));
    }
    for compared in [false, true] {
        let defences: Vec<(Rule, f64)> = rules
            .iter()
            .filter(|rule| **rule != Rule::Mean)
            .map(|rule| (*rule, if *rule == Rule::Krum { 0.04 } else { 0.03 }))
            .collect();
        checks.push(kept("(ii)", results, Split::Iid, compared, &defences, attacks));
        checks.push(kept("(iii)", results, Split::Dirichlet, compared, &LOSS_BY_SKEW, attacks));
    }
    checks.extend(counted(results));
    checks
}

/// (i): undefended, the attacks destroy.
fn live(results: &Results, split: Split) -> Check {
    let found: Vec<(Attack, f64)> =
        DESTRUCTIVE.map(|attack| (attack, results.accuracy(split, false, Rule::Mean, attack))).into();
    Check {
        name: format!("(i) {}: undefended, at most {DESTROYED} is left of accuracy", split.title()),
        passed: found.iter().all(|(_, accuracy)| *accuracy <= DESTROYED),
        found: found
            .iter()
            .map(|(attack, accuracy)| format!("{attack:?} {accuracy:.3}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// (ii), (iii): a defence loses no more than so much of what the mean reaches without an attack.
fn kept(
    number: &str,
    results: &Results,
    split: Split,
    compared: bool,
    defences: &[(Rule, f64)],
    attacks: &[Attack],
) -> Check {
    let clean = results.accuracy(split, false, Rule::Mean, Attack::None);
    let (mut missed, mut worst) = (Vec::new(), Vec::new());
    for (rule, loss) in defences {
        let mut least = (f64::INFINITY, Attack::None);
        for attack in attacks {
            let accuracy = results.accuracy(split, compared, *rule, *attack);
            // What was not run is a miss.
            if accuracy.is_nan() || clean.is_nan() || accuracy < clean - loss {
                missed.push(format!("{rule} under {attack:?} {accuracy:.3}, expected {:.3}", clean - loss));
            }
            if accuracy < least.0 {
                least = (accuracy, *attack);
            }
        }
        worst.push(format!("{rule} {:.3} ({:?})", least.0, least.1));
    }
    let how = if compared { "with comparison" } else { "without comparison" };
    Check {
        name: format!("{number} {}, {how}: defences lose little of {clean:.3}", split.title()),
        passed: missed.is_empty(),
        found: if missed.is_empty() { format!("at least {}", worst.join(", ")) } else { missed.join("; ") },
    }
}

/// (iv), (vii): who does not count.
fn counted(results: &Results) -> [Check; 4] {
    let (mut forged, mut refused, mut lost, mut short) = (0, 0, 0, 0);
    let (mut idle, mut idle_out) = (0, 0);
    let (mut copied, mut copied_out) = (0, 0);
    let mut honest_out = Vec::new();
    for (key, outcomes) in results.cases() {
        for outcome in outcomes {
            if key.attack == Attack::Nan {
                forged += outcome.forged;
                refused += outcome.forged_refused;
                lost += outcome.lost;
                short += outcome.short;
            }
            // What an undefended mean makes of an attack may be anything.
            let defended = key.rule != Rule::Mean.to_string();
            if key.compared && defended {
                if key.attack == Attack::Free {
                    idle += outcome.forged;
                    idle_out += outcome.forged_left_out;
                }
                if COPIES.contains(&key.attack) {
                    copied += 1;
                    copied_out += usize::from(outcome.forged_left_out > 0);
                }
                if outcome.honest_refused + outcome.honest_left_out > 0 {
                    honest_out.push(format!("{:?} against {}", key.attack, key.rule));
                }
            }
        }
    }
    let check = |name: &str, passed, found| Check { name: name.into(), passed, found };
    [
        check(
            "(iv) every update with NaN is refused, and no round lost",
            forged > 0 && refused == forged && lost == 0,
            format!(
                "{refused} of {forged} refused, {lost} rounds lost; in {short}, fewer malicious were assumed than a job would, \
                 which would have waited for more updates"
            ),
        ),
        check("(vii) every update of zero is left out", idle > 0 && idle_out == idle, format!("{idle_out} of {idle}")),
        check(
            "(vii) of equal updates one counts",
            copied > 0 && copied_out == copied,
            format!("in {copied_out} of {copied} federations"),
        ),
        check(
            "no honest update is refused or left out under a defence",
            honest_out.is_empty(),
            if honest_out.is_empty() { "none".into() } else { honest_out.join("; ") },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::RULES;
    use crate::federation::Outcome;
    use crate::results::Key;

    type Change<'a> = &'a dyn Fn(&Key, &mut Outcome);

    /// Results that are as they should be, but for what `change` makes of them.
    fn checked(change: impl Fn(&Key, &mut Outcome)) -> Vec<String> {
        let mut results = Results::default();
        for split in Split::ALL {
            for compared in [false, true] {
                for rule in RULES {
                    for attack in Attack::value_variants() {
                        let key = Key { split, compared, rule: rule.to_string(), attack: *attack };
                        let live = rule == Rule::Mean && DESTRUCTIVE.contains(attack);
                        let mut outcome = Outcome {
                            accuracy: if live { 0.1 } else { 0.94 },
                            forged: 2,
                            forged_refused: if *attack == Attack::Nan { 2 } else { 0 },
                            forged_left_out: match attack {
                                Attack::Free => 2,
                                attack if COPIES.contains(attack) => 1,
                                _ => 0,
                            },
                            ..Outcome::default()
                        };
                        change(&key, &mut outcome);
                        results.add(key, outcome);
                    }
                }
            }
        }
        let checks = all(&results, &RULES, Attack::value_variants());
        checks.iter().filter(|check| !check.passed).map(ToString::to_string).collect()
    }

    #[test]
    fn each_requirement_is_missed_by_what_breaks_it_alone() {
        assert!(checked(|_, _| {}).is_empty());
        let is = |key: &Key, split, rule: Rule, attack| {
            key.split == split && !key.compared && key.rule == rule.to_string() && key.attack == attack
        };
        let cases: [(Change<'_>, &str); 9] = [
            (&|k, o| o.accuracy += if is(k, Split::Iid, Rule::Mean, Attack::Ipm) { 0.11 } else { 0.0 }, "(i) IID"),
            (&|k, o| o.accuracy -= if is(k, Split::Iid, Rule::Median, Attack::Alie) { 0.031 } else { 0.0 }, "(ii) IID"),
            (&|k, o| o.accuracy -= if is(k, Split::Iid, Rule::Krum, Attack::Alie) { 0.041 } else { 0.0 }, "(ii) IID"),
            (
                &|k, o| o.accuracy -= if is(k, Split::Dirichlet, Rule::MultiKrum, Attack::Sign) { 0.051 } else { 0.0 },
                "(iii) Dirichlet 0.5, without comparison",
            ),
            (&|k, o| o.forged_refused -= usize::from(k.attack == Attack::Nan), "(iv)"),
            (&|k, o| o.lost += usize::from(k.attack == Attack::Nan), "(iv)"),
            (&|k, o| o.forged_left_out -= usize::from(k.attack == Attack::Free), "(vii) every"),
            (
                &|k, o| o.forged_left_out = if k.attack == Attack::Alie { 0 } else { o.forged_left_out },
                "(vii) of equal",
            ),
            (&|k, o| o.honest_left_out += usize::from(k.attack == Attack::Noise), "no honest"),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            let missed = checked(change);
            assert!(missed.len() == 1 && missed[0].contains(expected), "{number}: {missed:?}");
        }
        assert!(
            checked(|k, o| o.accuracy -= if is(k, Split::Iid, Rule::Krum, Attack::Alie) { 0.039 } else { 0.0 })
                .is_empty()
        );
    }

    #[test]
    fn what_was_not_run_is_missed() {
        let checks = all(&Results::default(), &RULES, Attack::value_variants());
        let passed: Vec<&Check> = checks.iter().filter(|check| check.passed).collect();
        assert!(passed.len() == 1 && passed[0].name.starts_with("no honest"), "{passed:?}");
    }
}
