//! Updates of a round that has closed, and work ahead of the next.

use super::*;

fn training(drive: &Drive) -> (u32, BTreeMap<String, Trainee>) {
    match &drive.machine.phase {
        Phase::Training { round, sites, .. } => (*round, sites.clone()),
        other => panic!("{other:?}"),
    }
}

fn stale_of(trainee: &Trainee) -> Option<u32> {
    match trainee {
        Trainee::Done(share) => share.stale.map(|stale| stale.rounds),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_late_update_is_kept_for_the_round_that_is_open_when_it_comes() {
    let mut drive = Drive::new(Plan { rounds: 9, target: Some(2), staleness_max: Some(2), ..plan() });
    drive.initialize().update("a").update("b");
    assert_eq!(drive.effects, [Effect::Aggregate], "c is not told to stop");
    drive.aggregate("state 1").evaluate(5);
    assert_eq!(working(&drive), ["a", "b", "c"]);
    assert_eq!(training(&drive).1.len(), 2, "who is at work is not asked");
    assert_eq!(drive.machine.state_for("c"), Some(artifact("state 0")));
    assert_eq!(drive.machine.state_for("a"), Some(artifact("state 1")));
    assert_eq!(drive.machine.difference_for("c"), None, "the one there is makes another state");
    assert_eq!(drive.machine.difference_for("a").map(|difference| difference.before), Some(artifact("state 0")));
    let late = drive.turn("c");
    assert_eq!((late.round, late.attempt), (1, 1));
    drive.on(Event::Joined("c".into()));
    assert_eq!(drive.effects, [Effect::Offer("c".into(), late)]);
    drive.update("c");
    assert_eq!(stale_of(&training(&drive).1["c"]), Some(1));
    assert_eq!(drive.machine.answer_to("c", late), Some(Ok(())));
    drive.update("b");
    let Phase::Aggregating { updates, problems, .. } = drive.machine.phase.clone() else { panic!() };
    assert_eq!(updates.keys().collect::<Vec<_>>(), ["b", "c"]);
    assert!((updates["c"].staleness_weight() - 0.5_f64.sqrt()).abs() < 1e-15 && updates["b"].staleness_weight() == 1.0);
    assert!(problems["a"].contains("counts in a later round"), "{problems:?}");
    // One that comes while no round is open waits for the next.
    drive.update("a");
    assert_eq!(working(&drive), Vec::<String>::new());
    drive.aggregate("state 2").evaluate(6);
    let (round, sites) = training(&drive);
    assert_eq!((round, sites.len(), stale_of(&sites["a"])), (3, 3, Some(1)));
}

#[test]
fn what_is_too_old_or_comes_after_the_last_round_does_not_count() {
    let mut drive = Drive::new(Plan { rounds: 3, target: Some(2), staleness_max: Some(1), ..plan() });
    drive.initialize().update("a").update("b").aggregate("state 1").evaluate(5);
    let late = drive.turn("c");
    drive.update("a").update("b").aggregate("state 2").evaluate(5);
    assert!(
        drive.effects.contains(&Effect::Withdraw("c".into(), late, crate::round::late::TOO_OLD.into())),
        "{:?}",
        drive.effects
    );
    assert_eq!(drive.turn("c"), Turn { work: Work::Train, round: 3, attempt: 1 });
    let last = drive.turn("c");
    drive.update("a").update("b");
    assert!(drive.effects.contains(&Effect::Withdraw("c".into(), last, NOT_NEEDED.into())), "{:?}", drive.effects);
    assert_eq!(working(&drive), Vec::<String>::new());
}

#[test]
fn an_asynchronous_job_gives_work_at_once_and_never_the_same_turn_twice() {
    let mut drive = Drive::new(Plan { rounds: 9, quorum: 1, asynchronous: true, staleness_max: Some(10), ..plan() });
    let d = "d".to_owned();
    drive.initialize().update("a");
    let ahead = Turn { work: Work::Train, round: 2, attempt: 0 };
    assert_eq!(drive.effects, [Effect::Offer("a".into(), ahead)], "two of three are needed");
    drive.world.trainers.insert(d.clone());
    drive.on(Event::Joined(d.clone()));
    assert_eq!(drive.effects, [Effect::Offer(d.clone(), Turn { work: Work::Train, round: 1, attempt: 1 })]);
    // A failure ahead is not repeated in this round.
    drive.on(Event::Failed { site: "a".into(), turn: ahead, reason: "no memory".into(), fault: Fault::Failed });
    assert_eq!(drive.effects, []);
    drive.update("b");
    assert_eq!(drive.effects, [Effect::Offer("b".into(), ahead), Effect::Aggregate]);
    assert_eq!(working(&drive), ["b", "c", "d"]);
    drive.update("c").aggregate("state 1").evaluate(5);
    let (round, sites) = training(&drive);
    assert_eq!((round, stale_of(&sites["c"])), (2, Some(1)));
    assert_eq!(drive.turn("a"), Turn { work: Work::Train, round: 2, attempt: 1 }, "asked anew");
    assert_eq!((drive.turn("b"), drive.turn("c")), (ahead, Turn { round: 3, ..ahead }));
    drive.on(Event::Pause);
    drive.update("b");
    let Phase::Aggregating { updates, .. } = &drive.machine.phase else { panic!("{:?}", drive.machine.phase) };
    assert_eq!(updates["b"].stale.unwrap(), Stale { round: 2, attempt: 0, rounds: 1 });
    drive.aggregate("state 2").evaluate(5);
    assert_eq!(working(&drive), ["a", "b", "c", "d"]);
    assert!(!drive.machine.rests(), "they are still at work");
    drive.update("a").update("b").update("c").update("d");
    assert!(drive.machine.rests());
    drive.on(Event::Resume);
    assert!(matches!(&drive.machine.phase, Phase::Aggregating { round: 3, updates, .. } if updates.len() == 4));
    assert_eq!(working(&drive), ["a", "b", "c", "d"]);
    drive.on(Event::Cancel);
    assert_eq!(working(&drive), Vec::<String>::new());
}

#[test]
fn work_ahead_that_is_done_is_not_given_again_when_the_round_is_tried_again() {
    let mut drive = Drive::new(Plan { rounds: 9, quorum: 1, asynchronous: true, staleness_max: Some(10), ..plan() });
    drive.initialize().update("a");
    let ahead = drive.turn("a");
    drive.update("a").update("b").on(Event::AggregationFailed("no space".into()));
    let (round, sites) = training(&drive);
    assert!(round == 1 && matches!(&sites["a"], Trainee::Done(share) if share.made_for(1, 2) == (2, 0)), "{sites:?}");
    assert!(!drive.effects.contains(&Effect::Offer("a".into(), ahead)), "{:?}", drive.effects);
    assert_eq!(drive.machine.answer_to("a", ahead), Some(Ok(())));
    let held = |site, update| drive.machine.holds(site, artifact(update).digest);
    assert!(held("a", "a") && !held("b", "b"), "b trains again");
}

#[test]
fn a_silent_late_site_is_given_up_and_asked_again() {
    let mut drive = Drive::new(Plan { rounds: 9, target: Some(2), staleness_max: Some(5), ..plan() });
    drive.initialize().update("a").update("b").aggregate("state 1").evaluate(5);
    let late = drive.turn("c");
    drive.world.now_ms = 900;
    for site in ["a", "b"] {
        let turn = drive.turn(site);
        drive.on(Event::Progress(site.into(), turn));
    }
    drive.world.now_ms = 1500;
    drive.on(Event::Tick);
    assert_eq!(drive.effects, [Effect::Withdraw("c".into(), late, SILENT.into())]);
    assert_eq!(drive.machine.answer_to("c", late), Some(Err(SILENT.into())));
    drive.update("a").update("b").aggregate("state 2").evaluate(5);
    assert_eq!(drive.turn("c"), Turn { round: 3, ..late });
}
