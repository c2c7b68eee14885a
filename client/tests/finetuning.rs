//! The training loop on a tiny model: it learns, repeats bit for bit, and stops when told.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Device;
use fedtune_client::data::{self, Columns, DataError, Rows, Sampling, TargetReader};
use fedtune_client::finetune::{self, Checkpoints, EarlyStopping, FinetuneError, FitReport, Plan, Progress, Silent};
use fedtune_client::model::{Classifier, ModelSpec};
use fedtune_config::Job;
use fedtune_config::job::{
    ClassWeights, Eda, Metric, Optimizer, Precision, Schedule, Task, TaskKind, Trainable, Training,
};
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
        Training { eda: Some(Eda::default()), ..training.clone() },
        Training { probe: 0.5, ..training.clone() },
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
fn in_f16_the_loss_is_scaled_and_steps_that_overflow_are_tried_again() {
    let folder = tiny_model::folder();
    let run = |precision, weight| {
        let spec = ModelSpec { dropout: 0.0, precision, ..tiny_model::spec() };
        let mut classifier = loaded(folder.path(), spec);
        // The gradient of a row with a large weight, times the first scale, is beyond f16.
        let class_weights = Some(ClassWeights::List(vec![weight, 1.0, 1.0]));
        let training =
            Training { precision, class_weights, batch_size: 1, learning_rate: 1e-3, proximal: 0.1, ..plain() };
        let report = finetune::fit(&mut classifier, &rows(6), &training, plan(6), &mut Silent).unwrap();
        (report.train_loss, tensors(&classifier))
    };
    for weight in [1.0, 100.0] {
        let (exact_loss, exact) = run(Precision::F32, weight);
        let (loss, found) = run(Precision::F16, weight);
        assert!((loss - exact_loss).abs() < 1e-2 * exact_loss, "{loss} for {exact_loss}");
        assert_ne!(found, exact);
        for (name, exact) in &exact {
            assert_near(name, &found[name], exact, 1e-3);
        }
    }
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
fn while_probing_the_head_alone_moves_and_then_everything() {
    let head = |name: &str| name.starts_with("classifier") || name.contains("pooler");
    for training in [plain(), Training { proximal: 0.1, recompute: true, accumulate: 2, ..plain() }] {
        let probing = Training { probe: 0.5, ..training.clone() };
        let run = |training: &Training, first_step, steps| {
            let mut classifier = loaded(tiny_model::folder().path(), ModelSpec { dropout: 0.0, ..tiny_model::spec() });
            let plan = Plan { first_step, steps, total_steps: 8, round: 2 };
            finetune::fit(&mut classifier, &rows(30), training, plan, &mut Silent).unwrap();
            tensors(&classifier)
        };
        let (start, probed, whole) = (run(&probing, 0, 0), run(&probing, 0, 4), run(&probing, 0, 5));
        let plain = run(&training, 0, 1);
        for (name, before) in &start {
            // The state has them all, whether they move or not.
            assert_eq!(probed[name] != *before, head(name), "{name} after the probe");
            // What is added to every score of a row alike has no gradient but for rounding.
            assert!(&whole[name] != before || name.ends_with("key.bias"), "{name} one step later");
            // The head's first step is the one it takes with everything else.
            assert_eq!(
                run(&probing, 0, 1)[name],
                if head(name) { plain[name].clone() } else { before.clone() },
                "{name}"
            );
        }
        // Steps are those of the job: a later round begins behind the probe.
        assert_eq!(run(&probing, 4, 2), run(&training, 4, 2));
    }
}

#[test]
fn a_probe_needs_a_head_that_is_trained() {
    let trainable: Trainable = "bert.encoder.*".parse().unwrap();
    let folder = tiny_model::folder();
    let training = Training { probe: 0.1, trainable: trainable.clone(), ..plain() };
    // The base model has the classifier already, so it may stay as it is.
    let mut classifier = loaded(folder.path(), ModelSpec { trainable, ..tiny_model::spec() });
    let error = finetune::fit(&mut classifier, &rows(30), &training, plan(1), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("\"bert.encoder.*\" names no tensor of it"), "{error}");
}

#[test]
fn patterns_choose_what_is_trained() {
    let folder = tiny_model::folder();
    let load = |patterns: &str| {
        let trainable = patterns.parse().unwrap();
        Classifier::load(folder.path(), &ModelSpec { trainable, ..tiny_model::spec() }, &Device::Cpu)
    };
    let mut classifier = load("bert.encoder.layer.1.*, *pooler*,classifier.*").unwrap();
    let names: Vec<String> = classifier.state_tensors().into_iter().map(|(name, _)| name).collect();
    let last = loaded(folder.path(), ModelSpec { trainable: Trainable::Last(1), ..tiny_model::spec() });
    assert_eq!(names, last.state_tensors().into_iter().map(|(name, _)| name).collect::<Vec<_>>());

    // Single tensors, and none of the norms and biases around them.
    let mut some = load("bert.embeddings.position*,*.query.weight,bert.pooler.dense.[wb]*,classifier.*").unwrap();
    let before = tensors(&some);
    assert_eq!(before.len(), 1 + 2 + 2 + 2);
    finetune::fit(&mut some, &rows(30), &plain(), plan(2), &mut Silent).unwrap();
    tensors(&some).iter().for_each(|(name, after)| assert_ne!(&before[name], after, "{name}"));
    finetune::fit(&mut classifier, &rows(30), &plain(), plan(2), &mut Silent).unwrap();

    let error = load("bert.encoder.layr.1.*,classifier.*").map(drop).unwrap_err().to_string();
    assert!(error.contains("\"bert.encoder.layr.1.*\"") && error.contains("bert.encoder.layer."), "{error}");
    let error = load("encoder.layer.1.*.wieght").map(drop).unwrap_err().to_string();
    assert!(error.contains("the nearest are bert.encoder.layer.1."), "{error}");
    // For other labels the classifier is new.
    let labels = ["one", "other"].map(String::from).to_vec();
    let spec = ModelSpec { labels, trainable: "bert.encoder.*".parse().unwrap(), ..tiny_model::spec() };
    let error = Classifier::load(folder.path(), &spec, &Device::Cpu).map(drop).unwrap_err().to_string();
    assert!(error.contains("begins at random") && error.contains("training.trainable"), "{error}");
}

#[test]
fn layers_computed_again_train_to_the_same_bits() {
    let run = |recompute| {
        let mut classifier = classifier();
        let training = Training { recompute, ..training() };
        finetune::fit(&mut classifier, &rows(30), &training, plan(6), &mut Silent).unwrap();
        state(&classifier)
    };
    assert!(run(true) == run(false));
}

/// The steps of a run that is checkpointed in a folder and told to stop behind one of them; 0 is never.
fn checkpointed(
    folder: &Path,
    job: &Job,
    model: &Path,
    rows: &Rows,
    stop: usize,
) -> Result<(Vec<u8>, FitReport), FinetuneError> {
    let checkpoints = Checkpoints::new(folder, 2, job, model, rows, None)?;
    let mut classifier = Classifier::load(model, &ModelSpec::from(job), &Device::Cpu).unwrap();
    let mut observer = |progress: Progress| match progress.step == stop {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let report = finetune::fit_saved(&mut classifier, rows, &job.training, plan(9), None, &checkpoints, &mut observer)?;
    Ok((state(&classifier), report))
}

fn job(model: &Path, training: Training) -> Job {
    let mut job = Job::classify("tiny", model, tiny_model::labels());
    (job.task.max_length, job.training) = (16, training);
    job
}

#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_bits() {
    let (model, rows) = (tiny_model::folder(), rows(30));
    let every = Training { proximal: 0.1, l2_sp: 0.01, eda: Some(Eda::default()), token_dropout: 0.1, ..training() };
    let sgd = Training { optimizer: Optimizer::Sgd, probe: 0.5, accumulate: 2, ..training() };
    let scaled = Training { precision: Precision::F16, batch_size: 1, ..training() };
    for training in [every, Training { momentum: 0.9, ..sgd.clone() }, sgd, scaled] {
        let job = job(model.path(), training);
        let run = |folder: &Path, stop| checkpointed(folder, &job, model.path(), &rows, stop);
        let (whole, report) = run(tempfile::tempdir().unwrap().path(), 0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // Behind a checkpoint; between two, so that a step is done again; and before another one is due.
        for (stop, from) in [(2, 0), (5, 2), (5, 4)] {
            let error = run(folder.path(), stop).unwrap_err();
            assert!(matches!(error, FinetuneError::Cancelled { .. }), "{error} from {from}");
        }
        let (resumed, later) = run(folder.path(), 0).unwrap();
        assert_eq!((later.steps, later.resumed_steps, later.examples), (9, 4, report.examples));
        assert_eq!(later.train_loss.to_bits(), report.train_loss.to_bits());
        assert!(resumed == whole, "{:?}", job.training);
        // Nothing is left to do behind the last one.
        assert_eq!(run(folder.path(), 0).unwrap().1.resumed_steps, 8);
    }
}

#[test]
fn early_stopping_goes_on_from_a_checkpoint_too() {
    let (model, rows, validation) = (tiny_model::folder(), rows(30), rows(12));
    let job = job(model.path(), training());
    // No epoch is better than the first by ten, so the run ends behind the third, at step 12, a checkpoint.
    for (min_delta, last) in [(0.0, 20), (10.0, 12)] {
        let run = |folder: &Path, stop, patience| {
            let stopping = EarlyStopping::new(&validation, 8, patience, (Metric::Loss, min_delta)).unwrap();
            let checkpoints = Checkpoints::new(folder, 2, &job, model.path(), &rows, Some(&stopping))?;
            let mut classifier = Classifier::load(model.path(), &ModelSpec::from(&job), &Device::Cpu).unwrap();
            let mut observer = |progress: Progress| match progress.step == stop {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            let (training, stopping) = (&job.training, Some(stopping));
            let report =
                finetune::fit_saved(&mut classifier, &rows, training, plan(20), stopping, &checkpoints, &mut observer)?;
            Ok::<_, FinetuneError>((state(&classifier), report.steps, report.validation))
        };
        let whole = run(tempfile::tempdir().unwrap().path(), 0, 2).unwrap();
        assert_eq!(whole.1, last);
        let folder = tempfile::tempdir().unwrap();
        // Behind an epoch that was scored, between two, and where the run ended.
        for stop in [4, 7, last] {
            assert!(matches!(run(folder.path(), stop, 2), Err(FinetuneError::Cancelled { .. })), "{stop}");
        }
        assert!(run(folder.path(), 0, 2).unwrap() == whole, "{last}");
        let error = run(folder.path(), 0, 3).unwrap_err().to_string();
        assert!(error.contains("another patience"), "{error}");
    }
}

#[test]
fn a_checkpoint_of_another_run_or_a_damaged_one_is_refused() {
    let (model, folder, rows) = (tiny_model::folder(), tempfile::tempdir().unwrap(), rows(30));
    let first = job(model.path(), training());
    checkpointed(folder.path(), &first, model.path(), &rows, 4).unwrap_err();
    let file = folder.path().join("checkpoint.safetensors");
    let refused = |job: &Job, model: &Path, rows: &Rows, words: &str| {
        let error = checkpointed(folder.path(), job, model, rows, 0).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("remove it"), "{error}");
    };
    refused(&job(model.path(), Training { seed: 9, ..training() }), model.path(), &rows, "another job");
    refused(&first, model.path(), &self::rows(31), "other training rows");
    let other = tiny_model::folder();
    tiny_model::edit_tensors(&other.path().join("model.safetensors"), |tensors| {
        tensors.values_mut().for_each(|tensor| *tensor = (&*tensor * 2.0).unwrap());
    });
    refused(&first, other.path(), &rows, "another base model");
    // The same model in another place is the same run.
    let copy = tiny_model::folder();
    checkpointed(folder.path(), &first, copy.path(), &rows, 5).unwrap_err();

    let whole = std::fs::read(&file).unwrap();
    for damaged in [&whole[..whole.len() - 1], &whole[..5], b"", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"] {
        std::fs::write(&file, damaged).unwrap();
        refused(&first, model.path(), &rows, "no whole checkpoint");
    }
    std::fs::write(&file, &whole).unwrap();
    tiny_model::edit_tensors(&file, |tensors| drop(tensors.remove("state.classifier.bias")));
    refused(&first, model.path(), &rows, "no whole checkpoint");
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
