#![expect(clippy::unwrap_used, reason = "tests")]

mod collapse;
mod late;

use fedtune_config::job::{Admission, BelowQuorum, Evaluator, Metric, OnCollapse};
use fedtune_proto::digest::Digest;
use fedtune_proto::evaluation::{Counts, Evaluation};
use proptest::prelude::*;

use super::admission::LeftOut;
use super::*;

fn plan() -> Plan {
    Plan {
        rounds: 2,
        cohort: None,
        share: None,
        target: None,
        limit_ms: None,
        staleness_max: None,
        asynchronous: false,
        below_quorum: BelowQuorum::Fail,
        quorum: 2,
        deadline_ms: 1000,
        attempts: 2,
        admission: Admission::default(),
        by: Evaluator::Evaluator,
        metric: Metric::Accuracy,
        patience: 0,
        min_delta: 0.0,
        on_collapse: OnCollapse::RollBack,
        seed: 7,
    }
}

fn after(state: &str) -> After {
    let difference = Some(artifact(&format!("difference to {state}")));
    After { state: artifact(state), difference, moments: Vec::new(), shares: BTreeMap::new() }
}

fn artifact(name: &str) -> ArtifactRef {
    ArtifactRef { digest: Digest::of(name.as_bytes()), size: 100 }
}

fn share(name: &str) -> SiteShare {
    SiteShare { train_loss: 0.5, train_seconds: 1.0, bytes_up: 1, ..SiteShare::new(artifact(name), 10, 1.0) }
}

fn sums(right: u64) -> Evaluation {
    Evaluation { examples: 10, loss_sum: 3.0, ..Evaluation::from(Counts::Confusion(vec![right, 10 - right, 0, 0])) }
}

/// A machine with its world, driven as the coordinator drives it.
struct Drive {
    machine: Machine,
    world: World,
    effects: Vec<Effect>,
}

impl Drive {
    fn new(plan: Plan) -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let world = World {
            now_ms: 0,
            trainers: names(&["a", "b", "c"]),
            evaluators: names(&["judge"]),
            enrolled: BTreeSet::new(),
            evaluator_enrolled: true,
            busy: BTreeSet::new(),
        };
        Self { machine: Machine::new(plan), world, effects: Vec::new() }
    }

    fn on(&mut self, event: Event) -> &mut Self {
        let (machine, effects) = self.machine.clone().step(event, &self.world);
        self.machine = machine;
        self.effects = effects;
        self
    }

    fn turn(&self, site: &str) -> Turn {
        self.machine.work_of(site).unwrap_or_else(|| panic!("{site} has no work in {:?}", self.machine.phase))
    }

    fn initialize(&mut self) -> &mut Self {
        self.on(Event::Tick);
        let turn = self.turn("judge");
        self.on(Event::Initialized { site: "judge".into(), turn, state: artifact("state 0") })
    }

    fn update(&mut self, site: &str) -> &mut Self {
        let turn = self.turn(site);
        self.on(Event::Updated { site: site.into(), turn, share: share(site) })
    }

    fn fail(&mut self, site: &str, refused: bool) -> &mut Self {
        let turn = self.turn(site);
        let fault = if refused { Fault::Refused } else { Fault::Failed };
        self.on(Event::Failed { site: site.into(), turn, reason: "no data".into(), fault })
    }

    fn aggregate(&mut self, state: &str) -> &mut Self {
        let Phase::Aggregating { round, attempt, .. } = self.machine.phase else { panic!("{:?}", self.machine.phase) };
        self.on(Event::Aggregated { round, attempt, after: after(state), seconds: 0.1 })
    }

    fn evaluate(&mut self, right: u64) -> &mut Self {
        let turn = self.turn("judge");
        self.on(Event::Evaluated { site: "judge".into(), turn, sums: sums(right) })
    }

    fn round(&mut self, right: u64) -> &mut Self {
        self.update("a").update("b").update("c").aggregate("next").evaluate(right)
    }
}

fn working(drive: &Drive) -> Vec<String> {
    drive.machine.working().into_iter().collect()
}

#[test]
fn a_paused_job_finishes_what_was_begun_and_opens_no_round() {
    let mut drive = Drive::new(plan());
    drive.initialize().update("a");
    drive.on(Event::Pause);
    assert!(!drive.machine.rests() && drive.effects.is_empty());
    drive.update("b").update("c").aggregate("next").evaluate(5);
    assert!(drive.machine.rests());
    assert!(matches!(drive.machine.phase, Phase::Gathering { round: 2, attempt: 1 }));
    drive.on(Event::Tick);
    assert!(drive.effects.is_empty());
    drive.on(Event::Resume);
    assert!(matches!(drive.machine.phase, Phase::Training { round: 2, .. }));
    drive.on(Event::Pause);
    drive.on(Event::Cancel);
    assert_eq!(drive.machine.phase, Phase::Ended(Outcome::Cancelled));
}

#[test]
fn a_round_closes_at_its_target_and_tells_the_others_to_stop() {
    let mut drive = Drive::new(Plan { target: Some(2), ..plan() });
    drive.initialize().update("c").update("a");
    let turn = Turn { work: Work::Train, round: 1, attempt: 1 };
    assert_eq!(drive.effects, [Effect::Withdraw("b".into(), turn, NOT_NEEDED.into()), Effect::Aggregate]);
}

#[test]
fn sites_of_another_job_are_waited_for_by_a_job_of_all_and_passed_over_by_one_of_some() {
    let mut drive = Drive::new(plan());
    drive.world.busy.insert("b".into());
    drive.initialize();
    assert!(matches!(drive.machine.phase, Phase::Gathering { round: 1, .. }));
    assert_eq!(drive.machine.waits_for(&drive.world).len(), 3);
    drive.world.busy.clear();
    drive.on(Event::Tick);
    assert_eq!(working(&drive), ["a", "b", "c"]);
    let mut drive = Drive::new(Plan { cohort: Some(2), ..plan() });
    drive.world.busy.insert("b".into());
    drive.initialize();
    assert_eq!(working(&drive), ["a", "c"]);
    let mut drive = Drive::new(Plan { cohort: Some(3), ..plan() });
    drive.world.busy.insert("b".into());
    drive.initialize();
    assert!(matches!(drive.machine.phase, Phase::Gathering { round: 1, .. }), "three are asked for");
    // A busy evaluator is waited for, and so is one for the first state.
    let mut drive = Drive::new(plan());
    drive.initialize().update("a").update("b").update("c");
    drive.world.busy.insert("judge".into());
    drive.world.now_ms = 5000;
    drive.aggregate("state 1").on(Event::Tick);
    assert_eq!((working(&drive), drive.machine.waits_for(&drive.world).len()), (Vec::new(), 1));
    drive.world.busy.clear();
    drive.on(Event::Tick).evaluate(5);
    let mut drive = Drive::new(plan());
    drive.world.busy = drive.world.trainers.union(&drive.world.evaluators).cloned().collect();
    drive.on(Event::Tick);
    assert_eq!((working(&drive), &drive.machine.phase), (Vec::new(), &Machine::new(plan()).phase));
}

#[test]
fn a_round_over_its_limit_closes_with_its_quorum_and_not_below() {
    let mut drive = Drive::new(Plan { limit_ms: Some(500), deadline_ms: 10_000, ..plan() });
    drive.initialize().update("a");
    drive.world.now_ms = 600;
    drive.on(Event::Tick);
    assert!(drive.effects.is_empty(), "one update is below the quorum");
    drive.update("b");
    assert!(matches!(&drive.machine.phase, Phase::Aggregating { updates, .. } if updates.len() == 2));
}

#[test]
fn a_site_that_refuses_ends_no_job_that_others_may_come_to() {
    let mut drive = Drive::new(Plan { cohort: Some(3), ..plan() });
    drive.world.enrolled = drive.world.trainers.clone();
    drive.initialize().fail("c", true).update("a").update("b");
    drive.world.trainers.remove("b");
    drive.aggregate("next").evaluate(5);
    assert_eq!(drive.machine.phase, Phase::Gathering { round: 2, attempt: 1 }, "b is only away");
    drive.world.trainers.insert("b".into());
    drive.on(Event::Tick);
    assert_eq!(working(&drive), ["a", "b"], "a cohort of those that do not refuse");
    // The first state waits as well.
    let mut drive = Drive::new(plan());
    drive.world.enrolled = std::mem::take(&mut drive.world.trainers);
    drive.world.trainers.insert("c".into());
    drive.world.evaluators.clear();
    drive.world.evaluator_enrolled = false;
    drive.on(Event::Tick).fail("c", true);
    assert!(matches!(drive.machine.phase, Phase::Initializing { site: None, .. }), "{:?}", drive.machine.phase);
    drive.world.trainers.insert("a".into());
    drive.on(Event::Tick);
    assert_eq!(working(&drive), ["a"]);
}

#[test]
fn an_update_that_would_be_left_out_closes_no_round() {
    let mut drive = Drive::new(Plan { target: Some(2), ..plan() });
    drive.initialize();
    let turn = drive.turn("a");
    let idle = SiteShare { norm: 0.0, ..share("a") };
    drive.on(Event::Updated { site: "a".into(), turn, share: idle });
    drive.update("b");
    assert_eq!(working(&drive), ["c"], "one of the two does not count");
    drive.update("c");
    let Phase::Aggregating { updates, problems, .. } = &drive.machine.phase else {
        panic!("{:?}", drive.machine.phase)
    };
    assert_eq!(updates.keys().collect::<Vec<_>>(), ["b", "c"]);
    assert!(problems.contains_key("a"));
}

#[test]
fn the_first_state_is_not_waited_for_longer_than_the_limit() {
    let mut drive = Drive::new(Plan { limit_ms: Some(500), deadline_ms: 10_000, ..plan() });
    drive.on(Event::Tick);
    let turn = drive.turn("judge");
    drive.world.now_ms = 400;
    drive.on(Event::Progress("judge".into(), turn));
    drive.world.now_ms = 600;
    drive.on(Event::Progress("judge".into(), turn));
    assert_eq!(working(&drive), ["a"]);
}

#[test]
fn evaluations_are_not_waited_for_longer_than_the_limit() {
    let plan = Plan { limit_ms: Some(500), deadline_ms: 10_000, by: Evaluator::Sites, ..plan() };
    let mut drive = Drive::new(plan);
    drive.initialize().update("a").update("b").update("c");
    drive.world.now_ms = 1000;
    drive.aggregate("next");
    let turn = drive.turn("a");
    drive.on(Event::Evaluated { site: "a".into(), turn, sums: sums(6) });
    drive.world.now_ms = 1400;
    drive.on(Event::Resumed);
    drive.world.now_ms = 1600;
    drive.on(Event::Progress("b".into(), turn));
    assert_eq!(working(&drive), ["b", "c"], "they have their time anew");
    drive.world.now_ms = 1900;
    drive.on(Event::Tick);
    assert!(drive.effects.contains(&Effect::Withdraw("b".into(), turn, settling::OVERDUE.into())));
    assert_eq!(drive.machine.best.unwrap().score, Some(0.6), "of those that are in");
    assert_eq!(drive.turn("b"), Turn { work: Work::Train, round: 2, attempt: 1 });
}

#[test]
fn a_job_below_quorum_is_paused_where_it_says_so_and_has_its_attempts_anew() {
    let mut drive = Drive::new(Plan { below_quorum: BelowQuorum::Pause, ..plan() });
    drive.initialize();
    for attempt in 1..=4 {
        assert!(matches!(drive.machine.phase, Phase::Training { round: 1, attempt: found, .. } if found == attempt));
        drive.fail("a", false).fail("b", false).update("c");
        assert_eq!(drive.machine.rests(), attempt % 2 == 0, "after attempt {attempt}");
        if drive.machine.rests() {
            assert!(drive.machine.paused.as_ref().unwrap().contains("had 1 of 2 updates"));
            drive.on(Event::Resume);
        }
    }
}

#[test]
fn a_site_whose_updates_do_not_count_is_suspended() {
    let admission = Admission { strikes: 2, ..Admission::default() };
    let mut drive = Drive::new(Plan { rounds: 3, admission, ..plan() });
    drive.initialize();
    for round in 1..=2 {
        let turn = drive.turn("b");
        let idle = SiteShare { norm: 0.0, ..share("b") };
        drive.on(Event::Updated { site: "b".into(), turn, share: idle });
        drive.update("a").update("c");
        assert!(drive.effects.contains(&Effect::Notify(
            "b".into(),
            turn,
            "its update changes nothing, while others do".into()
        )));
        assert!(drive.effects.contains(&Effect::Count(LeftOut::Idle)));
        drive.aggregate("next").evaluate(5);
        assert_eq!(drive.machine.refused.contains_key("b"), round == 2);
    }
    assert!(matches!(&drive.machine.phase, Phase::Training { round: 3, sites, .. } if sites.len() == 2));
    assert!(drive.machine.refused["b"].contains("suspended after 2 updates"), "{:?}", drive.machine.refused);
}

#[test]
fn a_share_of_the_sites_is_asked_but_the_quorum_at_least() {
    let asked = |share, quorum| {
        let mut drive = Drive::new(Plan { share: Some(share), quorum, ..plan() });
        drive.initialize();
        drive.effects.iter().filter(|effect| matches!(effect, Effect::Offer(..))).count()
    };
    assert_eq!((asked(0.5, 1), asked(0.3, 1), asked(0.3, 2)), (2, 1, 2));
}

#[test]
fn a_job_goes_from_first_state_to_completed() {
    let mut drive = Drive::new(plan());
    drive.initialize();
    let offered: Vec<_> = drive.effects.iter().map(|effect| matches!(effect, Effect::Offer(..))).collect();
    assert_eq!(offered, [true; 3]);
    drive.update("b").update("a");
    assert!(matches!(drive.machine.phase, Phase::Training { .. }), "waits for c");
    drive.update("c");
    assert_eq!(drive.effects, [Effect::Aggregate]);
    drive.aggregate("state 1");
    assert_eq!(drive.machine.state, Some(artifact("state 1")));
    assert!(
        matches!(&drive.effects[0], Effect::Record(record) if record.sites.len() == 3 && record.base == Some(artifact("state 0")))
    );
    drive.evaluate(9);
    assert_eq!(drive.machine.best.unwrap().round, 1);
    drive.round(7);
    assert_eq!(drive.machine.best.unwrap(), Best { round: 1, score: Some(0.9) });
    assert!(matches!(drive.machine.phase, Phase::Ended(Outcome::Completed(_))));
}

#[test]
fn repeated_late_and_foreign_results_change_nothing() {
    let mut drive = Drive::new(plan());
    drive.initialize().update("a");
    let before = drive.machine.clone();
    let turn = Turn { work: Work::Train, round: 1, attempt: 1 };
    for (site, turn) in [
        ("a", turn),
        ("nobody", turn),
        ("b", Turn { round: 2, ..turn }),
        ("b", Turn { attempt: 2, ..turn }),
        ("b", Turn { work: Work::Evaluate, ..turn }),
    ] {
        drive.on(Event::Updated { site: site.into(), turn, share: share("other") });
        assert_eq!((&drive.machine, drive.effects.len()), (&before, 0), "{site} {turn:?}");
    }
}

#[test]
fn a_silent_site_is_given_up_and_one_that_moves_is_waited_for() {
    let mut drive = Drive::new(plan());
    drive.initialize().update("a").update("b");
    let turn = drive.turn("c");
    drive.world.now_ms = 900;
    drive.on(Event::Progress("c".into(), turn));
    drive.world.now_ms = 1800;
    drive.on(Event::Tick);
    assert!(matches!(drive.machine.phase, Phase::Training { .. }), "progress moved the deadline");
    drive.world.now_ms = 2000;
    drive.on(Event::Tick);
    assert!(matches!(&drive.effects[..], [Effect::Withdraw(site, ..), Effect::Aggregate] if site == "c"));
    drive.aggregate("next");
    assert!(matches!(&drive.effects[0], Effect::Record(record) if record.problems.contains_key("c")));
}

#[test]
fn below_quorum_the_round_is_tried_again_on_the_same_state_then_the_job_fails() {
    let mut drive = Drive::new(plan());
    drive.initialize().fail("a", false).fail("b", false).update("c");
    let Phase::Training { round: 1, attempt: 2, .. } = drive.machine.phase else { panic!("{:?}", drive.machine.phase) };
    assert_eq!(drive.machine.state, Some(artifact("state 0")));
    drive.fail("a", false).fail("b", false).update("c");
    assert!(
        matches!(&drive.machine.phase, Phase::Ended(Outcome::Failed(reason)) if reason.contains("1 of 2 updates") && reason.contains("no data"))
    );
}

#[test]
fn a_site_that_refuses_is_not_asked_again() {
    let mut drive = Drive::new(plan());
    drive.initialize().fail("c", true).update("a").update("b").aggregate("next").evaluate(5);
    assert_eq!(drive.machine.work_of("c"), None);
    assert!(drive.machine.work_of("a").is_some());
}

#[test]
fn another_site_makes_the_first_state_when_one_cannot() {
    let mut drive = Drive::new(plan());
    drive.on(Event::Tick).fail("judge", false);
    assert!(drive.machine.work_of("a").is_some());
    drive.fail("a", false);
    assert!(matches!(&drive.machine.phase, Phase::Ended(Outcome::Failed(reason)) if reason.contains("judge: no data")));
    // A single site gets all the attempts.
    let mut drive = Drive::new(plan());
    drive.world.trainers.retain(|site| site == "a");
    drive.world.evaluators.clear();
    drive.on(Event::Tick).fail("a", false);
    assert!(drive.machine.work_of("a").is_some());
    drive.fail("a", true);
    assert!(matches!(&drive.machine.phase, Phase::Ended(Outcome::Failed(_))));
}

#[test]
fn a_job_whose_sites_refuse_fails_with_their_reasons_instead_of_waiting() {
    let mut drive = Drive::new(plan());
    drive.initialize().fail("a", true).fail("b", true).update("c");
    assert!(
        matches!(&drive.machine.phase, Phase::Ended(Outcome::Failed(reason)) if reason.contains("a: no data; b: no data"))
    );
}

#[test]
fn a_site_that_cannot_score_still_trains() {
    let mut drive = Drive::new(Plan { by: Evaluator::Sites, ..plan() });
    drive.initialize().update("a").update("b").update("c").aggregate("next");
    drive.fail("a", true).fail("b", true).fail("c", true);
    assert!(drive.machine.work_of("a").is_some_and(|turn| turn.round == 2), "{:?}", drive.machine.phase);
}

#[test]
fn an_enrolled_evaluator_is_waited_for_and_a_missing_one_is_told() {
    let mut drive = Drive::new(plan());
    drive.initialize();
    drive.world.evaluators.clear();
    drive.update("a").update("b").update("c").aggregate("next");
    assert!(matches!(drive.machine.phase, Phase::Evaluating { .. }));
    drive.world.evaluators.insert("judge".into());
    drive.on(Event::Joined("judge".into())).evaluate(9);
    assert_eq!(drive.machine.best.unwrap().score, Some(0.9));
    drive.world.evaluators.clear();
    drive.world.evaluator_enrolled = false;
    drive.update("a").update("b").update("c").aggregate("next");
    assert!(matches!(&drive.effects[1], Effect::Record(record) if record.problems.contains_key("evaluation")));
}

#[test]
fn a_failed_pass_is_tried_again_with_the_same_state() {
    let mut drive = Drive::new(plan());
    drive.initialize().update("a").update("b").update("c").on(Event::AggregationFailed("disk full".into()));
    assert!(drive.turn("a") == Turn { work: Work::Train, round: 1, attempt: 2 });
    drive.update("a").update("b").update("c").on(Event::AggregationFailed("disk full".into()));
    assert!(matches!(&drive.machine.phase, Phase::Ended(Outcome::Failed(reason)) if reason.contains("disk full")));
}

#[test]
fn patience_stops_early_and_keeps_the_best() {
    let mut drive = Drive::new(Plan { rounds: 9, patience: 2, ..plan() });
    drive.initialize().round(8).round(8).round(7);
    assert!(
        matches!(&drive.machine.phase, Phase::Ended(Outcome::Completed(reason)) if reason.contains("stopped early"))
    );
    assert_eq!(drive.machine.best.unwrap().round, 1);
}

#[test]
fn a_job_without_evaluation_takes_the_last_state_and_one_by_sites_asks_them() {
    let mut drive = Drive::new(Plan { by: Evaluator::None, ..plan() });
    drive.initialize().update("a").update("b").update("c").aggregate("next");
    assert_eq!(drive.machine.best.unwrap().round, 1);
    let mut drive = Drive::new(Plan { by: Evaluator::Sites, ..plan() });
    drive.initialize().update("a").update("b").update("c").aggregate("next");
    for site in ["a", "b", "c"] {
        let turn = drive.turn(site);
        drive.on(Event::Evaluated { site: site.into(), turn, sums: sums(6) });
    }
    assert_eq!(drive.machine.best.unwrap().score, Some(0.6));
}

#[test]
fn cancelling_withdraws_the_work_in_progress() {
    let mut drive = Drive::new(plan());
    drive.initialize().update("a").on(Event::Cancel);
    let withdrawn = drive.effects.iter().filter(|effect| matches!(effect, Effect::Withdraw(..))).count();
    assert_eq!((withdrawn, drive.effects.last()), (2, Some(&Effect::End(Outcome::Cancelled))));
    let ended = drive.machine.clone();
    drive.on(Event::Cancel).on(Event::Tick);
    assert_eq!(drive.machine, ended);
}

#[test]
fn a_restart_offers_the_work_again_and_repeats_an_interrupted_pass() {
    let mut drive = Drive::new(plan());
    drive.initialize().update("a").update("b");
    drive.world.now_ms = 50_000;
    drive.on(Event::Resumed);
    assert!(drive.turn("c") == Turn { work: Work::Train, round: 1, attempt: 1 });
    drive.on(Event::Joined("c".into()));
    assert!(matches!(&drive.effects[..], [Effect::Offer(site, _)] if site == "c"));
    drive.update("c").on(Event::Resumed);
    assert_eq!(drive.effects, [Effect::Aggregate]);
}

#[test]
fn a_cohort_is_drawn_by_seed_and_differs_between_rounds() {
    let names: Vec<String> = (0..20).map(|i| format!("site-{i:02}")).collect();
    let names: Vec<&String> = names.iter().collect();
    let plan = Plan { cohort: Some(5), ..plan() };
    let drawn: Vec<_> = (1..6).map(|round| plan.draw_cohort(&names, round, 1)).collect();
    assert_eq!(drawn[0], plan.draw_cohort(&names, 1, 1));
    assert!(drawn.iter().all(|cohort| cohort.len() == 5 && cohort.is_sorted()));
    assert!(drawn.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn sums_give_the_reference_scores() {
    // algorithms: two sites with F1 .4 and .914286 have the pooled accuracy .8125.
    let site = |confusion: [u64; 4]| Evaluation {
        examples: confusion.iter().sum(),
        loss_sum: 1.0,
        ..Evaluation::from(Counts::Confusion(confusion.into()))
    };
    let mut record_of = Drive::new(plan());
    record_of.initialize().update("a").update("b").update("c").aggregate("next");
    let Effect::Record(mut record) = record_of.effects[0].clone() else { panic!() };
    record.evaluations = [("x".to_owned(), site([40, 10, 5, 5])), ("y".to_owned(), site([5, 1, 14, 80]))].into();
    let pooled = record.evaluation().unwrap();
    assert_eq!((pooled.examples, pooled.accuracy(), pooled.loss_sum), (160, Some(0.8125), 2.0));
    let f1_positive = 0.85;
    let f1_negative = 2.0 * 45.0 / (2.0 * 45.0 + 11.0 + 19.0);
    assert!((pooled.macro_f1().unwrap_or(f64::NAN) - (f1_positive + f1_negative) / 2.0).abs() < 1e-12);
}

fn any_event() -> impl Strategy<Value = Event> {
    let site = prop_oneof![Just("a"), Just("b"), Just("c"), Just("judge"), Just("stranger")].prop_map(str::to_owned);
    let turn = (0_u8..3, 0_u32..4, 0_u32..3).prop_map(|(work, round, attempt)| {
        let work = [Work::Initialize, Work::Train, Work::Evaluate][usize::from(work)];
        Turn { work, round, attempt }
    });
    let refused = any::<bool>();
    (0_u8..10, site, turn, refused, 0_u64..11).prop_map(|(kind, site, turn, refused, right)| match kind {
        0 => Event::Tick,
        1 => Event::Joined(site),
        2 => Event::Progress(site, turn),
        3 => Event::Failed {
            site,
            turn,
            reason: "r".into(),
            fault: if refused { Fault::Refused } else { Fault::Quarantined },
        },
        4 => Event::Initialized { site, turn, state: artifact("s") },
        5 | 6 => Event::Updated { share: share(&site), site, turn },
        7 => Event::Aggregated { round: turn.round, attempt: turn.attempt, after: after("t"), seconds: 0.0 },
        8 => Event::Evaluated { site, turn, sums: sums(right.min(10)) },
        _ => Event::Resumed,
    })
}

proptest! {
    /// Whatever comes in whatever order: rounds are recorded in order, each from at least a quorum of updates and on top
    /// of the state before; what is stored reads back; an ended job stays as it is.
    #[test]
    fn invariants_hold_under_any_events(events in proptest::collection::vec((any_event(), 0_u64..400), 0..200)) {
        let mut drive = Drive::new(plan());
        let mut rounds = 0;
        for (event, later) in events {
            drive.world.now_ms += later;
            let before = drive.machine.clone();
            drive.on(event);
            let text = serde_json::to_string(&drive.machine).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Machine>(&text).unwrap(), &drive.machine);
            for effect in &drive.effects {
                if let Effect::Record(record) = effect {
                    prop_assert!(record.round == rounds || record.round == rounds + 1);
                    prop_assert!(record.sites.len() >= 2);
                    if record.round == rounds + 1 {
                        prop_assert_eq!(record.base, before.state);
                    }
                    rounds = record.round;
                }
            }
            if matches!(before.phase, Phase::Ended(_)) {
                prop_assert_eq!(&drive.machine.phase, &before.phase);
                prop_assert!(drive.effects.is_empty());
            }
        }
    }
}
