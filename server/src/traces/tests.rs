#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::*;

/// Notes what begins and ends.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Notes {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map_or("nothing", |parent| parent.name());
        self.0.lock().unwrap().push(format!("{} in {parent}", span.name()));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.lock().unwrap().push(format!("{} ends", context.span(&id).unwrap().name()));
    }
}

fn training(round: u32, attempt: u32) -> Phase {
    Phase::Training { round, attempt, opened_ms: 0, sites: BTreeMap::new() }
}

fn aggregating(round: u32, attempt: u32) -> Phase {
    let (updates, problems, flags) = Default::default();
    Phase::Aggregating { round, attempt, opened_ms: 0, updates, problems, flags }
}

#[test]
fn an_attempt_at_a_round_is_one_span_with_its_pass_in_it() {
    let notes = Notes::default();
    tracing::subscriber::with_default(Registry::default().with(notes.clone()), || {
        let mut rounds = Rounds::default();
        rounds.transition("j", &Phase::Gathering { round: 1, attempt: 1 });
        rounds.transition("j", &training(1, 1));
        rounds.transition("j", &training(1, 1));
        rounds.transition("other", &training(1, 1));
        rounds.transition("other", &Phase::Ended(crate::round::Outcome::Cancelled));
        rounds.transition("j", &aggregating(1, 1));
        drop(rounds.aggregation("j", 1, 1));
        // It failed, and was tried again at once.
        rounds.transition("j", &training(1, 2));
        rounds.transition("j", &Phase::Gathering { round: 2, attempt: 1 });
    });
    let round = ["round in nothing", "round ends"];
    let pass = ["aggregation in round", "aggregation ends"];
    let expected = [&round[..1], &round, &pass, &["round in nothing", "round ends", "round ends"]].concat();
    let mut found = notes.0.lock().unwrap().clone();
    // The old one may end before or after the new one begins.
    found[5..].sort();
    let mut expected: Vec<String> = expected.into_iter().map(String::from).collect();
    expected[5..].sort();
    assert_eq!(found, expected);
}
