//! The training loop on a tiny model: it learns, repeats bit for bit, and stops when told.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::Device;
use fedtune_client::data::{self, Columns, LabelMap, Row};
use fedtune_client::finetune::{self, FinetuneError, Plan, Progress, Silent};
use fedtune_client::model::Classifier;
use fedtune_config::job::{Schedule, Training};

fn rows(count: usize) -> Vec<Row> {
    let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    std::fs::write(file.path(), tiny_model::csv(count)).unwrap();
    let columns = Columns { text: "text".into(), label: "label".into(), group: None };
    let labels = LabelMap::new(&tiny_model::labels(), &BTreeMap::new()).unwrap();
    data::read(file.path(), &columns, &labels).unwrap().0
}

fn classifier() -> Classifier {
    let folder = tiny_model::folder();
    Classifier::load(folder.path(), &tiny_model::spec(), &Device::Cpu).unwrap()
}

fn training() -> Training {
    Training { learning_rate: 3e-3, batch_size: 8, schedule: Schedule::Linear, ..Training::default() }
}

fn plan(steps: usize) -> Plan {
    Plan { first_step: 0, steps, total_steps: steps, round: 1 }
}

fn state(classifier: &Classifier) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    classifier.write_state(&folder.path().join("state")).unwrap();
    std::fs::read(folder.path().join("state")).unwrap()
}

#[test]
fn training_learns_what_the_first_word_says() {
    let (mut classifier, rows) = (classifier(), rows(90));
    let before = finetune::evaluate(&classifier, &rows, 16, &mut Silent).unwrap();
    let report = finetune::fit(&mut classifier, &rows, &training(), plan(120), &mut Silent).unwrap();
    assert_eq!((report.steps, report.examples), (120, 90));
    let after = finetune::evaluate(&classifier, &rows, 16, &mut Silent).unwrap();
    assert!(after.loss() < before.loss());
    assert!(after.accuracy() > 0.95, "accuracy {} before, {} after", before.accuracy(), after.accuracy());
    assert_eq!(after.examples, 90);
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    let rows = rows(40);
    let run = |threads, seed, round| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut classifier = classifier();
            let training = Training { seed, ..training() };
            finetune::fit(&mut classifier, &rows, &training, Plan { round, ..plan(7) }, &mut Silent).unwrap();
            state(&classifier)
        })
    };
    let first = run(1, 1, 1);
    assert!(first == run(1, 1, 1));
    assert!(first == run(3, 1, 1));
    assert!(first != run(1, 2, 1));
    assert!(first != run(1, 1, 2));
}

#[test]
fn fewer_steps_than_an_epoch_count_their_rows_only() {
    let (mut classifier, rows) = (classifier(), rows(30));
    let report = finetune::fit(&mut classifier, &rows, &training(), plan(2), &mut Silent).unwrap();
    assert_eq!(report.examples, 16);
}

#[test]
fn an_observer_sees_every_step_and_can_stop() {
    let (mut classifier, rows) = (classifier(), rows(30));
    let mut seen = Vec::new();
    let mut observer = |progress: Progress| {
        seen.push((progress.step, progress.steps));
        assert!(progress.loss.is_finite() && progress.examples_per_second > 0.0);
        if progress.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = finetune::fit(&mut classifier, &rows, &training(), plan(9), &mut observer).unwrap_err();
    assert!(matches!(error, FinetuneError::Cancelled { step: 3 }));
    assert_eq!(seen, [(1, 9), (2, 9), (3, 9)]);
}

#[test]
fn divergence_and_no_rows_are_errors_with_a_remedy() {
    let (mut classifier, rows) = (classifier(), rows(30));
    let wild = Training { learning_rate: 1e38, clip_norm: 0.0, warmup: 0.0, ..training() };
    let error = finetune::fit(&mut classifier, &rows, &wild, plan(50), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("lower training.learning_rate"), "{error}");
    let error = finetune::fit(&mut classifier, &[], &training(), plan(1), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("no row to train on"), "{error}");
    assert!(finetune::evaluate(&classifier, &[], 8, &mut Silent).is_err());
}

#[test]
fn a_zero_learning_rate_changes_nothing() {
    let (mut classifier, rows) = (classifier(), rows(20));
    let before = state(&classifier);
    // The first step of a warm-up has rate zero.
    let training = Training { warmup: 1.0, ..training() };
    let plan = Plan { total_steps: 10, ..plan(1) };
    finetune::fit(&mut classifier, &rows, &training, plan, &mut Silent).unwrap();
    assert!(before == state(&classifier));
}
