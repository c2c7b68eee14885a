//! The training loop on a tiny model: it learns, repeats bit for bit, and stops when told.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Device;
use fedtune_client::data::{self, Columns, DataError, Rows, Sampling, TargetReader};
use fedtune_client::finetune::{self, EarlyStopping, FinetuneError, Plan, Progress, Silent};
use fedtune_client::model::{Classifier, ModelSpec};
use fedtune_config::job::{ClassWeights, Metric, Optimizer, Schedule, Task, TaskKind, Trainable, Training};
use tempfile::NamedTempFile;

fn rows(count: usize) -> Rows {
    let file = file(count);
    read(file.path(), data::HELD_TEXT)
}

fn file(count: usize) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    std::fs::write(file.path(), tiny_model::csv(count)).unwrap();
    file
}

fn read(path: &Path, held: usize) -> Rows {
    read_labels(path, held, &tiny_model::labels())
}

fn read_labels(path: &Path, held: usize, labels: &[String]) -> Rows {
    let columns = Columns::labelled("text", "label");
    let task = Task::new(TaskKind::TextClassification, labels.to_vec());
    let targets = TargetReader::new(&task, &BTreeMap::new()).unwrap();
    data::read_holding(path, &columns, &targets, held).unwrap().0
}

fn classifier() -> Classifier {
    loaded(tiny_model::folder().path(), tiny_model::spec())
}

/// The folder must last as long as l2_sp is to find it.
fn loaded(folder: &Path, spec: ModelSpec) -> Classifier {
    Classifier::load(folder, &spec, &Device::Cpu).unwrap()
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
    assert!(after.accuracy() > Some(0.95), "accuracy {:?} before, {:?} after", before.accuracy(), after.accuracy());
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
fn rows_in_their_file_train_to_the_same_bits_as_rows_in_memory() {
    let (file, folder) = (file(40), tiny_model::folder());
    let sampling = Sampling { per_label: Some(10), oversample: 2.0 };
    for training in [
        training(),
        Training {
            length_grouped: true,
            accumulate: 2,
            token_dropout: 0.2,
            class_weights: Some(ClassWeights::Balanced),
            logit_adjustment: 1.0,
            ..training()
        },
    ] {
        let run = |held| {
            let (rows, validation) = data::split(read(file.path(), held), 0.25);
            let rows = sampling.apply(rows, 3).unwrap();
            assert_eq!((rows.held(), validation.held()), (held > 0, held > 0));
            let mut classifier = loaded(folder.path(), tiny_model::spec());
            let criteria = (Metric::Accuracy, 0.0);
            let stopping = EarlyStopping::new(&validation, 8, 2, criteria).unwrap();
            let report =
                finetune::fit_best(&mut classifier, &rows, &training, plan(12), stopping, &mut Silent).unwrap();
            let scores = finetune::evaluate_scores(&classifier, &rows, 8, &mut Silent).unwrap();
            (state(&classifier), report.train_loss.to_bits(), report.examples, report.validation, scores)
        };
        let (held, in_file) = (run(data::HELD_TEXT), run(0));
        assert!(held.0 == in_file.0, "{training:?}");
        assert_eq!((held.1, held.2, held.3, held.4), (in_file.1, in_file.2, in_file.3, in_file.4));
    }
}

#[test]
fn a_file_that_changes_in_training_ends_it() {
    let file = file(40);
    let rows = read(file.path(), 0);
    let mut classifier = classifier();
    let mut observer = |_: Progress| {
        std::fs::write(file.path(), tiny_model::csv(41)).unwrap();
        ControlFlow::Continue(())
    };
    let error = finetune::fit(&mut classifier, &rows, &training(), plan(90), &mut observer).unwrap_err();
    let FinetuneError::Data(error) = error else { panic!("{error}") };
    assert!(matches!(*error, DataError::Changed { .. }), "{error}");
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
    let more = [tiny_model::labels(), vec!["more".into()]].concat();
    let file = file(0);
    std::fs::write(file.path(), "text,label\nw5,more\n").unwrap();
    let unknown = read_labels(file.path(), data::HELD_TEXT, &more);
    let error = finetune::fit(&mut classifier, &unknown, &training(), plan(1), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("do not fit"), "{error}");
    let error = finetune::fit(&mut classifier, &Rows::default(), &training(), plan(1), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("no row to train on"), "{error}");
    assert!(finetune::evaluate(&classifier, &Rows::default(), 8, &mut Silent).is_err());
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

/// Plain gradient descent at a constant rate of 0.1, so that what a setting adds to the gradient can be read off a step.
fn plain() -> Training {
    Training {
        optimizer: Optimizer::Sgd,
        learning_rate: 0.1,
        schedule: Schedule::Constant,
        warmup: 0.0,
        weight_decay: 0.0,
        clip_norm: 0.0,
        batch_size: 8,
        ..Training::default()
    }
}

fn tensors(classifier: &Classifier) -> BTreeMap<String, Vec<f32>> {
    let trained = classifier.network().parameters().iter().filter(|(_, parameter)| parameter.trained);
    trained
        .map(|(name, p)| (name.clone(), p.var.as_detached_tensor().flatten_all().unwrap().to_vec1().unwrap()))
        .collect()
}

/// The trained tensors after so many steps; from the state in the file, or else from the base model.
fn stepped(training: &Training, steps: usize, from: Option<&Path>) -> BTreeMap<String, Vec<f32>> {
    let folder = tiny_model::folder();
    let mut classifier = loaded(folder.path(), ModelSpec { dropout: 0.0, ..tiny_model::spec() });
    if let Some(path) = from {
        classifier.load_state(path).unwrap();
    }
    finetune::fit(&mut classifier, &rows(30), training, plan(steps), &mut Silent).unwrap();
    tensors(&classifier)
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], allowed: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= allowed, "{what}: {found} for {expected}");
    }
}

#[test]
fn every_setting_changes_what_is_learnt_and_repeats_bit_for_bit() {
    let folder = tiny_model::folder();
    let run = |training: &Training| {
        let mut classifier = loaded(folder.path(), tiny_model::spec());
        finetune::fit(&mut classifier, &rows(30), training, plan(6), &mut Silent).unwrap();
        state(&classifier)
    };
    let training = training();
    let first = run(&training);
    let sgd = Training { optimizer: Optimizer::Sgd, ..training.clone() };
    let plain = run(&sgd);
    assert!(run(&Training { momentum: 0.9, ..sgd }) != plain);
    for changed in [
        Training { optimizer: Optimizer::Sgd, ..training.clone() },
        Training { layer_decay: 0.9, ..training.clone() },
        Training { length_grouped: true, ..training.clone() },
        Training { accumulate: 2, ..training.clone() },
        Training { proximal: 0.1, ..training.clone() },
        Training { l2_sp: 0.1, ..training.clone() },
        Training { label_smoothing: 0.1, ..training.clone() },
        Training { focal_gamma: 2.0, ..training.clone() },
        Training { class_weights: Some(ClassWeights::List(vec![1.0, 2.0, 3.0])), ..training.clone() },
    ] {
        let found = run(&changed);
        assert!(found != first, "{changed:?}");
        assert!(found == run(&changed), "{changed:?}");
    }
}

#[test]
fn descent_with_momentum_and_every_term_learns() {
    let folder = tiny_model::folder();
    let (mut classifier, rows) = (loaded(folder.path(), tiny_model::spec()), rows(90));
    let training = Training {
        momentum: 0.9,
        clip_norm: 1.0,
        accumulate: 2,
        length_grouped: true,
        proximal: 1e-3,
        l2_sp: 1e-4,
        label_smoothing: 0.1,
        focal_gamma: 1.0,
        class_weights: Some(ClassWeights::Balanced),
        layer_decay: 0.9,
        ..plain()
    };
    finetune::fit(&mut classifier, &rows, &training, plan(150), &mut Silent).unwrap();
    let after = finetune::evaluate(&classifier, &rows, 16, &mut Silent).unwrap();
    assert!(after.accuracy() > Some(0.95), "accuracy {:?}", after.accuracy());
}

#[test]
fn parts_of_a_batch_add_up_to_its_gradient() {
    let weighted = Training { class_weights: Some(ClassWeights::List(vec![1.0, 5.0, 0.5])), ..plain() };
    for training in [plain(), weighted] {
        // 30 rows, so the fourth batch is smaller.
        let whole = stepped(&training, 4, None);
        for accumulate in [2, 3, 8] {
            let parts = stepped(&Training { accumulate, ..training.clone() }, 4, None);
            for (name, whole) in &whole {
                assert_near(name, &parts[name], whole, 2e-5);
            }
        }
    }
    assert_ne!(stepped(&plain(), 4, None), stepped(&plain(), 0, None));
}

#[test]
fn the_proximal_term_pulls_towards_where_the_round_began() {
    let (start, once) = (stepped(&plain(), 0, None), stepped(&plain(), 1, None));
    let (free, held) = (stepped(&plain(), 2, None), stepped(&Training { proximal: 0.5, ..plain() }, 2, None));
    for (name, free) in &free {
        let moved = once[name].iter().zip(&start[name]).map(|(w, start)| w - start);
        let expected: Vec<f32> = free.iter().zip(moved).map(|(free, moved)| free - 0.1 * 0.5 * moved).collect();
        assert_near(name, &held[name], &expected, 1e-6);
    }
    assert_ne!(free, held);
}

#[test]
fn l2_sp_pulls_towards_the_base_model_from_wherever_a_round_begins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut other = classifier();
    finetune::fit(&mut other, &rows(30), &plain(), plan(5), &mut Silent).unwrap();
    other.write_state(&path).unwrap();
    let base = stepped(&plain(), 0, None);
    let start = stepped(&plain(), 0, Some(&path));
    let (free, held) =
        (stepped(&plain(), 1, Some(&path)), stepped(&Training { l2_sp: 0.5, ..plain() }, 1, Some(&path)));
    for (name, free) in &free {
        let strength = if name.starts_with("classifier") { 0.0 } else { 0.1 * 0.5 };
        let away = start[name].iter().zip(&base[name]).map(|(w, base)| w - base);
        let expected: Vec<f32> = free.iter().zip(away).map(|(free, away)| free - strength * away).collect();
        assert_near(name, &held[name], &expected, 1e-6);
    }
    assert_ne!(free, held);
}

#[test]
fn lower_layers_move_less_with_layer_decay() {
    let (start, full) = (stepped(&plain(), 0, None), stepped(&plain(), 1, None));
    let found = stepped(&Training { layer_decay: 0.5, ..plain() }, 1, None);
    let layers = classifier().network().config().layers();
    for (name, full) in &full {
        let depth = match name.split('.').nth(3).and_then(|index| index.parse::<usize>().ok()) {
            _ if name.starts_with("classifier") || name.contains("pooler") => 0,
            Some(index) => layers - index,
            None => layers + 1,
        };
        let rate = 0.5f32.powi(depth as i32);
        let expected: Vec<f32> = full.iter().zip(&start[name]).map(|(w, start)| start + rate * (w - start)).collect();
        assert_near(name, &found[name], &expected, 1e-6);
    }
}

#[test]
fn l2_sp_without_anything_pretrained_says_so() {
    let folder = tiny_model::folder();
    tiny_model::edit_tensors(&folder.path().join("model.safetensors"), |tensors| {
        tensors.retain(|name, _| !name.contains("pooler"));
    });
    let mut classifier = loaded(folder.path(), ModelSpec { trainable: Trainable::Head, ..tiny_model::spec() });
    let training = Training { l2_sp: 0.1, trainable: Trainable::Head, ..plain() };
    let error = finetune::fit(&mut classifier, &rows(30), &training, plan(1), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("training.trainable = \"head\""), "{error}");
}

#[test]
fn early_stopping_ends_in_time_and_keeps_the_best_epoch() {
    let (rows, validation) = (rows(32), rows(12));
    let training = training();
    let plan = plan(20);
    let best = |patience, criteria| {
        let mut classifier = classifier();
        let stopping = EarlyStopping::new(&validation, 8, patience, criteria).unwrap();
        let report = finetune::fit_best(&mut classifier, &rows, &training, plan, stopping, &mut Silent).unwrap();
        let scores = report.validation.clone().unwrap();
        let now = finetune::evaluate(&classifier, &validation, 8, &mut Silent).unwrap();
        assert_eq!(Some(&now), scores.best());
        (report, scores, state(&classifier))
    };
    // No improvement is large enough: the first of 5 epochs stays the best.
    let (report, scores, found) = best(2, (Metric::Accuracy, 10.0));
    assert_eq!((report.steps, scores.epochs.len(), scores.best_epoch), (12, 3, 1));
    let mut one_epoch = classifier();
    finetune::fit(&mut one_epoch, &rows, &training, Plan { steps: 4, ..plan }, &mut Silent).unwrap();
    assert!(found == state(&one_epoch));

    let criteria = (Metric::Loss, 0.0);
    let (report, scores, _) = best(0, criteria);
    assert_eq!((report.steps, scores.epochs.len()), (20, 5));
    assert!(scores.epochs.iter().all(|epoch| epoch.loss() >= scores.best().unwrap().loss()));
    assert!(EarlyStopping::new(&Rows::default(), 8, 1, criteria).is_err());
}
