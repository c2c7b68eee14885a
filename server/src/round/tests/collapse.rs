//! Models that have collapsed.

use super::*;

/// Sums of twenty examples, half of them of each label, of which so many of the second are right; the first all are.
fn halves(right: u64) -> Evaluation {
    Evaluation { examples: 20, loss_sum: 3.0, ..Evaluation::from(Counts::Confusion(vec![10, 0, 10 - right, right])) }
}

fn scored(drive: &mut Drive, state: &str, right: u64) {
    drive.update("a").update("b").update("c").aggregate(state);
    let turn = drive.turn("judge");
    drive.on(Event::Evaluated { site: "judge".into(), turn, sums: halves(right) });
}

#[test]
fn a_collapsed_model_is_taken_back_to_its_best_state_with_half_the_rate() {
    let mut drive = Drive::new(Plan { rounds: 20, ..plan() });
    drive.initialize();
    // At first nothing is known, which is no collapse.
    scored(&mut drive, "idle", 0);
    scored(&mut drive, "idle too", 0);
    assert_eq!(drive.machine.course.rolled_back, 0);
    scored(&mut drive, "best", 9);
    scored(&mut drive, "worse", 0);
    assert_eq!(drive.machine.state, Some(artifact("worse")), "one round may be an accident");
    scored(&mut drive, "lost", 0);
    assert_eq!(drive.machine.state, Some(artifact("best")));
    assert_eq!(drive.machine.difference, None, "not what the lost state was made of");
    assert_eq!(drive.machine.course.learning_rate_factor(), 0.5);
    scored(&mut drive, "next", 8);
    let record = drive.effects.iter().find_map(|effect| match effect {
        Effect::Record(record) => Some(record.clone()),
        _ => None,
    });
    let record = record.unwrap();
    assert_eq!((record.base, record.from), (Some(artifact("best")), Some(3)));
    assert_eq!((record.round, record.step()), (6, 4), "two rounds were taken back");
    for _ in 0..4 {
        scored(&mut drive, "lost", 0);
    }
    assert!(
        matches!(&drive.machine.phase, Phase::Ended(Outcome::Completed(reason)) if reason.contains("collapsed again")),
        "{:?}",
        drive.machine.phase
    );
}

#[test]
fn a_difference_belongs_to_the_state_before_and_a_machine_of_earlier_has_none() {
    let mut drive = Drive::new(plan());
    drive.initialize();
    assert_eq!(drive.machine.difference, None);
    drive.update("a").update("b").update("c").aggregate("one");
    let difference = Difference { artifact: artifact("difference to one"), before: artifact("state 0") };
    assert_eq!(drive.machine.difference, Some(difference));
    let Phase::Evaluating { record, .. } = &drive.machine.phase else { panic!("{:?}", drive.machine.phase) };
    assert_eq!(record.difference, Some(difference.artifact));
    let mut stored = serde_json::to_value(&drive.machine).unwrap();
    assert_eq!(serde_json::from_value::<Machine>(stored.clone()).unwrap(), drive.machine);
    stored.as_object_mut().unwrap().remove("difference");
    stored["phase"]["Evaluating"]["record"].as_object_mut().unwrap().remove("difference");
    let earlier: Machine = serde_json::from_value(stored).unwrap();
    let Phase::Evaluating { record, .. } = &earlier.phase else { panic!("{:?}", earlier.phase) };
    assert_eq!((earlier.difference, record.difference), (None, None));
    drive.evaluate(5).update("a").update("b").update("c");
    drive.on(Event::Aggregated {
        round: 2,
        attempt: 1,
        after: After { difference: None, ..after("two") },
        seconds: 0.1,
    });
    assert_eq!(drive.machine.difference, None, "none was made");
}

#[test]
fn a_collapse_pauses_the_job_where_it_says_so() {
    let mut drive = Drive::new(Plan { rounds: 20, on_collapse: OnCollapse::Pause, ..plan() });
    drive.initialize();
    scored(&mut drive, "best", 9);
    scored(&mut drive, "lost", 0);
    scored(&mut drive, "lost too", 0);
    assert!(drive.machine.rests());
    assert_eq!(drive.machine.state, Some(artifact("lost too")));
    let reason = drive.machine.paused.clone().unwrap();
    assert!(reason.contains("round 3") && reason.contains("of round 1"), "{reason}");
}
