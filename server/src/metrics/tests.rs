#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use fedtune_config::Job;
use fedtune_proto::digest::{ArtifactRef, Digest};

use super::*;
use crate::round::{After, Event, Fault, Plan, RoundRecord, Trainee, Turn, World};

/// The value of a line of the text form.
fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    let text = metrics.render();
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(|value| value.parse().unwrap())
}

fn training(attempt: u32) -> Machine {
    let mut machine = Machine::new(Plan::of(&Job::classify("n", "m".as_ref(), vec!["a".into(), "b".into()])));
    let sites = BTreeMap::from([("north".to_owned(), Trainee::Working(0))]);
    machine.phase = Phase::Training { round: 1, attempt, opened_ms: 0, sites };
    machine
}

#[test]
fn an_attempt_that_fails_is_counted_once_and_one_that_goes_on_is_not() {
    let metrics = Metrics::new();
    let machine = training(1);
    let world = World { trainers: ["north".to_owned()].into(), ..World::default() };
    let turn = Turn { work: Work::Train, round: 1, attempt: 1 };
    let (heard, effects) = machine.clone().step(Event::Progress("north".into(), turn), &world);
    metrics.transition(&machine, &heard, &effects);
    assert_eq!(value(&metrics, "fedtune_round_attempts_failed_total"), Some(0.0));
    let failed = Event::Failed { site: "north".into(), turn, reason: "no".into(), fault: Fault::Failed };
    let (next, effects) = machine.clone().step(failed, &world);
    metrics.transition(&machine, &next, &effects);
    assert_eq!(value(&metrics, "fedtune_round_attempts_failed_total"), Some(1.0));
    let (ended, effects) = next.clone().step(Event::Cancel, &world);
    metrics.transition(&next, &ended, &effects);
    assert_eq!(value(&metrics, "fedtune_round_attempts_failed_total"), Some(1.0), "cancelled is not failed");
    assert_eq!(value(&metrics, "fedtune_jobs_ended_total{status=\"cancelled\"}"), Some(1.0));
}

#[test]
fn a_round_is_counted_when_it_is_committed_and_not_again_with_its_scores() {
    let metrics = Metrics::new();
    let mut before = training(1);
    before.phase = Phase::Aggregating {
        round: 1,
        attempt: 1,
        opened_ms: 0,
        updates: BTreeMap::new(),
        problems: BTreeMap::new(),
        flags: BTreeMap::new(),
    };
    let state = ArtifactRef { digest: Digest::of(b"x"), size: 1 };
    let after = After { state, difference: None, moments: Vec::new(), shares: BTreeMap::new() };
    let event = Event::Aggregated { round: 1, attempt: 1, after, seconds: 2.0 };
    let world = World { evaluators: ["judge".to_owned()].into(), evaluator_enrolled: true, ..World::default() };
    let (after, effects) = before.clone().step(event, &world);
    metrics.transition(&before, &after, &effects);
    assert!(matches!(after.phase, Phase::Evaluating { .. }), "{after:?}");
    let again: Vec<Box<RoundRecord>> = effects
        .into_iter()
        .filter_map(|effect| if let Effect::Record(record) = effect { Some(record) } else { None })
        .collect();
    metrics.transition(&after, &after, &[Effect::Record(again[0].clone())]);
    assert_eq!(value(&metrics, "fedtune_rounds_committed_total"), Some(1.0));
    assert_eq!(value(&metrics, "fedtune_aggregation_seconds_sum"), Some(2.0));
    assert_eq!(value(&metrics, "fedtune_aggregation_seconds_count"), Some(1.0));
    assert_eq!(value(&metrics, "fedtune_round_attempts_failed_total"), Some(0.0));
}

#[test]
fn sites_are_those_enrolled_whatever_is_online() {
    let metrics = Metrics::new();
    let [north, south] = ["north", "south"].map(|name| Identity::new(Role::Site, name).unwrap());
    metrics.enrolled(vec![north.clone(), south]);
    metrics.overview(Overview { online: ["north".into(), "ghost".into()].into(), working: ["north".into()].into() });
    assert_eq!(value(&metrics, "fedtune_sites{state=\"enrolled\"}"), Some(2.0));
    assert_eq!(value(&metrics, "fedtune_sites{state=\"online\"}"), Some(1.0));
    assert_eq!(value(&metrics, "fedtune_site_working{role=\"site\",site=\"north\"}"), Some(1.0));
    assert_eq!(value(&metrics, "fedtune_site_online{role=\"site\",site=\"south\"}"), Some(0.0));
    metrics.moved(&north, Direction::Up, 7);
    metrics.moved(&Identity::new(Role::Operator, "somebody").unwrap(), Direction::Down, 9);
    let text = metrics.render();
    assert!(!text.contains("ghost") && !text.contains("somebody"), "{text}");
    let series = "fedtune_artifact_bytes_total{direction=\"up\",role=\"site\",site=\"north\"}";
    assert_eq!(value(&metrics, series), Some(7.0));
    assert!(value(&metrics, "process_resident_memory_bytes").unwrap() > 1e6);
    assert!(value(&metrics, "process_open_fds").unwrap() >= 3.0);
    assert_eq!(value(&metrics, concat!("fedtune_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")), Some(1.0));
    assert!(text.ends_with("# EOF\n"));
}
