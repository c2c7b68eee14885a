//! Every document: its example parses, defaults are what the examples say, and each fault is named with its place.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use fedtune_config::job::{Eda, Lora};
use fedtune_config::{ConfigError, Document, Job, ServerConfig, SiteConfig, examples, parse};
use proptest::prelude::*;

fn read<T: Document>(text: &str) -> Result<T, ConfigError> {
    parse(Path::new("file.toml"), text, std::iter::empty())
}

fn job_with(section: &str, line: &str) -> String {
    let marker = format!("[{section}]\n");
    let empty = "name = \"n\"\n[model]\npath = \"m\"\n[task]\nkind = \"text-classification\"\nlabels = [\"a\", \"b\"]\n\
                 [training]\n[rounds]\n[aggregation]\n[evaluation]\n";
    let empty = if section == "updates" { format!("{empty}[updates]\n") } else { empty.to_owned() };
    empty.replace(&marker, &format!("{marker}{line}\n"))
}

/// The example with its commented defaults switched on.
fn uncommented(text: &str, skip: &[&str]) -> String {
    text.lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
                    && !skip.iter().any(|s| rest.starts_with(s)) =>
            {
                rest
            }
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn examples_parse_and_state_the_true_defaults() {
    let job: Job = read(examples::JOB).unwrap();
    assert_eq!(
        job,
        read(&uncommented(
            examples::JOB,
            &[
                "steps",
                "label_shares",
                "class_weights",
                "eda",
                "augmentation",
                "lora",
                "pair",
                "label_sep",
                "tokens",
                "prompt",
                "response",
                "template",
                "image",
                "examples_cap",
                "malicious",
                "trim",
                "norm_bound",
                "norm_max",
                "target",
                "top_k",
                "error_feedback",
                "limit",
                "staleness_max",
                "exclude",
                "momentum = 0.9",
                "second_momentum",
                "tau",
                "bias_correction"
            ]
        ))
        .unwrap()
    );
    let adapters = examples::JOB.lines().find_map(|line| line.strip_prefix("# lora = ")).unwrap();
    let job: Job = read(&job_with("training", &format!("trainable = \"lora\"\nlora = {adapters}"))).unwrap();
    assert_eq!(job.training.lora, Some(Lora::default()));
    let eda = examples::JOB.lines().find_map(|line| line.strip_prefix("# eda = ")).unwrap();
    let job: Job = read(&job_with("training", &format!("eda = {eda}"))).unwrap();
    assert_eq!(job.training.eda, Some(Eda::default()));
    let patterns = "trainable = [\"bert.encoder.layer.5.*\", \"classifier.*\"]";
    let job: Job = read(&job_with("training", patterns)).unwrap();
    assert_eq!(job.training.trainable, "bert.encoder.layer.5.*,classifier.*".parse().unwrap());
    assert_eq!(job, read(&job.to_toml()).unwrap());
    let site: SiteConfig = read(examples::SITE).unwrap();
    assert_eq!(
        site,
        read(&uncommented(
            examples::SITE,
            &[
                "test",
                "text_column",
                "label_column",
                "pair",
                "tokens",
                "prompt",
                "response",
                "image",
                "group_column",
                "per_label"
            ]
        ))
        .unwrap()
    );
    let server: ServerConfig = read(examples::SERVER).unwrap();
    assert_eq!(server, read(&uncommented(examples::SERVER, &["otlp"])).unwrap());
}

#[test]
fn the_canonical_text_of_a_job_gives_the_same_job() {
    let job: Job = read(examples::JOB).unwrap();
    assert_eq!(job, read(&job.to_toml()).unwrap());
    for line in ["class_weights = \"balanced\"", "class_weights = [1, 2.5]", "optimizer = \"sgd\"\nmomentum = 0.9"] {
        let job: Job = read(&job_with("training", line)).unwrap();
        assert_eq!(job, read(&job.to_toml()).unwrap(), "{line}");
    }
}

fn job_of(kind: &str, lines: &str, rest: &str) -> String {
    format!("name = \"n\"\n[model]\npath = \"m\"\n[task]\nkind = \"{kind}\"\n{lines}\n{rest}\n")
}

#[test]
fn every_kind_of_task_has_its_columns_and_metric() {
    for (kind, lines, written, metric) in [
        (
            "text-classification",
            "labels = [\"a\", \"b\"]",
            "text_column = \"text\"\nlabel_column = \"label\"",
            "accuracy",
        ),
        (
            "multi-label-classification",
            "labels = [\"a\"]\npair_column = \"second\"",
            "text_column = \"text\"\npair_column = \"second\"\nlabel_column = \"labels\"\nlabel_separator = \"|\"",
            "micro_f1",
        ),
        ("text-regression", "", "text_column = \"text\"\nlabel_column = \"label\"", "mse"),
        (
            "token-classification",
            "labels = [\"O\", \"B-X\"]",
            "tokens_column = \"tokens\"\nlabel_column = \"labels\"",
            "macro_f1",
        ),
        (
            "causal-lm",
            "",
            "prompt_column = \"prompt\"\nresponse_column = \"response\"\ntemplate = \"\"\"\n{prompt}\n{response}\"\"\"",
            "loss",
        ),
        (
            "image-classification",
            "labels = [\"a\", \"b\"]",
            "label_column = \"label\"\nimage_column = \"image\"",
            "accuracy",
        ),
        ("table-classification", "labels = [\"a\", \"b\"]", "label_column = \"label\"", "accuracy"),
        ("table-regression", "label_column = \"dose\"", "label_column = \"dose\"", "mse"),
    ] {
        let job: Job = read(&job_of(kind, lines, "")).unwrap();
        let text = job.to_toml();
        assert!(
            text.contains(&format!("kind = \"{kind}\"")) && text.contains(&format!("{written}\nmax_length")),
            "{text}"
        );
        assert!(text.contains(&format!("metric = \"{metric}\"")), "{text}");
        assert_eq!(job, read(&text).unwrap());
    }
}

#[test]
fn what_a_kind_of_task_makes_no_use_of_is_refused() {
    let labels = "labels = [\"a\", \"b\"]";
    for (kind, lines, rest, expected) in [
        ("text-classification", "", "", vec!["task.labels", "found 0 labels"]),
        (
            "text-classification",
            "labels = [\"a\", \"b\"]\nprompt_column = \"p\"",
            "",
            vec!["task.prompt_column", "no use"],
        ),
        ("text-regression", labels, "", vec!["task.labels", "text-regression", "no use"]),
        (
            "text-regression",
            "",
            "[evaluation]\nmetric = \"accuracy\"",
            vec!["evaluation.metric", "expected one of mse"],
        ),
        ("text-regression", "", "[training]\nlabel_smoothing = 0.1", vec!["training.label_smoothing", "no use"]),
        ("text-regression", "", "[training]\nclass_weights = \"balanced\"", vec!["training.class_weights", "no use"]),
        ("multi-label-classification", labels, "[training]\nfocal_gamma = 2.0", vec!["training.focal_gamma", "no use"]),
        (
            "multi-label-classification",
            "labels = [\"a;b\"]\nlabel_separator = \";\"",
            "",
            vec!["task.label_separator", "in the label \"a;b\""],
        ),
        (
            "multi-label-classification",
            "labels = [\"a\"]\nlabel_separator = \"x\"",
            "",
            vec!["task.label_separator", "\";\""],
        ),
        ("token-classification", labels, "[evaluation]\nmetric = \"entity_f1\"", vec!["evaluation.metric", "B-"]),
        ("token-classification", labels, "[training]\ntoken_dropout = 0.1", vec!["training.token_dropout", "no use"]),
        (
            "token-classification",
            labels,
            "[training]\nlogit_adjustment = 1.0",
            vec!["training.logit_adjustment", "no use"],
        ),
        ("text-regression", "", "[training]\neda = {}", vec!["training.eda", "no use"]),
        ("causal-lm", "", "[training]\nprobe = 0.1", vec!["training.probe", "no use"]),
        ("causal-lm", "label_column = \"label\"", "", vec!["task.label_column", "no use"]),
        ("causal-lm", "template = \"{response} {prompt}\"", "", vec!["task.template", "{response} once after it"]),
        ("causal-lm", "response_column = \"prompt\"", "", vec!["task.response_column", "task.prompt_column too"]),
        (
            "text-classification",
            labels,
            "[training]\naugmentation = { flip = true }",
            vec!["training.augmentation", "no use"],
        ),
        (
            "text-classification",
            labels,
            "[training]\nfreeze_batch_norm = true",
            vec!["training.freeze_batch_norm", "no use"],
        ),
        (
            "image-classification",
            labels,
            "[training]\naugmentation = { crop = 0.0, rotate = 90.0 }",
            vec!["training.augmentation.crop", "found 0", "training.augmentation.rotate", "found 90"],
        ),
        ("image-classification", labels, "[training]\naugmentation = { turn = 1.0 }", vec!["turn", "rotate"]),
        ("image-classification", labels, "[training]\ntoken_dropout = 0.1", vec!["training.token_dropout", "no use"]),
        (
            "image-classification",
            "labels = [\"a\", \"b\"]\ntext_column = \"text\"",
            "",
            vec!["task.text_column", "no use"],
        ),
        ("table-classification", "", "", vec!["task.labels", "found 0 labels"]),
        (
            "table-classification",
            "labels = [\"a\", \"b\"]\ntext_column = \"text\"",
            "",
            vec!["task.text_column", "table-classification", "no use"],
        ),
        (
            "table-classification",
            labels,
            "[training]\nlength_grouped = true",
            vec!["training.length_grouped", "no use"],
        ),
        ("table-regression", labels, "", vec!["task.labels", "no use"]),
        ("table-regression", "", "[training]\nlogit_adjustment = 1.0", vec!["training.logit_adjustment", "no use"]),
        ("text-ranking", "", "", vec!["task.kind", "text-ranking", "causal-lm"]),
    ] {
        let error = read::<Job>(&job_of(kind, lines, rest)).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{kind} {lines} {rest}: {error:?} lacks {part:?}");
        }
    }
}

/// Each row: the fault, the line it must be reported on, and what the message must hold.
#[test]
fn every_fault_of_a_job_names_line_field_found_and_allowed() {
    for (section, line, at, expected) in [
        ("training", "learning_rte = 1.0", 8, vec!["training.learning_rte", "did you mean `learning_rate`"]),
        ("training", "learning_rate = \"fast\"", 8, vec!["training.learning_rate", "\"fast\"", "expected f64"]),
        ("training", "learning_rate = -1.0", 8, vec!["training.learning_rate", "found -1", "more than 0"]),
        ("training", "learning_rate = nan", 8, vec!["training.learning_rate", "NaN"]),
        ("training", "trainable = \"last-0\"", 8, vec!["training.trainable", "last-N"]),
        ("training", "lora = { rank = 4 }", 8, vec!["training.lora", "\"lora\""]),
        ("training", "trainable = \"lora\"\nlora = { rank = 0 }", 9, vec!["training.lora.rank", "found 0"]),
        ("training", "trainable = \"lora\"\nlora = { alpha = -1.0 }", 9, vec!["training.lora.alpha", "found -1"]),
        ("training", "trainable = []", 8, vec!["training.trainable", "found 0 patterns"]),
        ("training", "trainable = [\"a.[\"]", 8, vec!["training.trainable", "\"a.[\"", "expected a name"]),
        ("training", "trainable = [\"\"]", 8, vec!["training.trainable", "empty"]),
        ("training", "trainable = 3", 8, vec!["training.trainable", "a list of patterns"]),
        ("training", "probe = 1.0", 8, vec!["training.probe", "less than 1"]),
        ("training", "trainable = \"head\"\nprobe = 0.2", 9, vec!["training.probe", "\"head\""]),
        ("training", "recompute = 1", 8, vec!["training.recompute", "boolean"]),
        ("training", "eda = { probability = 1.5 }", 8, vec!["training.eda.probability", "0 to 1"]),
        ("training", "eda = { probability = 0.0 }", 8, vec!["training.eda.probability", "leave training.eda out"]),
        ("training", "eda = { share = 1.0 }", 8, vec!["training.eda.share", "less than 1"]),
        ("training", "eda = { operations = [] }", 8, vec!["training.eda.operations", "each once"]),
        ("training", "eda = { operations = [\"swop\"] }", 8, vec!["training.eda.operations", "`swap`"]),
        ("training", "optimizer = \"adam\"", 8, vec!["training.optimizer", "did you mean `adamw`"]),
        ("training", "momentum = 0.9", 8, vec!["training.momentum", "training.optimizer = \"sgd\""]),
        ("training", "optimizer = \"sgd\"\nmomentum = 1.0", 9, vec!["training.momentum", "less than 1"]),
        ("training", "layer_decay = 0.0", 8, vec!["training.layer_decay", "found 0", "at most 1"]),
        ("training", "batch_size = 4\naccumulate = 5", 9, vec!["training.accumulate", "found 5", "which is 4"]),
        ("training", "length_grouped = 1", 8, vec!["training.length_grouped", "boolean"]),
        ("training", "proximal = -1.0", 8, vec!["training.proximal", "found -1", "0 (off) or more"]),
        ("training", "l2_sp = nan", 8, vec!["training.l2_sp", "NaN"]),
        ("training", "label_smoothing = 1.0", 8, vec!["training.label_smoothing", "less than 1"]),
        ("training", "focal_gamma = inf", 8, vec!["training.focal_gamma", "inf"]),
        (
            "training",
            "class_weights = \"even\"",
            8,
            vec!["training.class_weights", "\"even\"", "\"balanced\" or a list"],
        ),
        ("training", "class_weights = [1.0]", 8, vec!["training.class_weights", "found 1 numbers", "the 2 labels"]),
        ("training", "class_weights = [1.0, 0.0]", 8, vec!["training.class_weights", "above 0"]),
        (
            "training",
            "logit_adjustment = 1.0\nclass_weights = \"balanced\"",
            9,
            vec!["training.class_weights", "one of the two"],
        ),
        ("training", "schedule = \"step\"", 8, vec!["training.schedule", "`step`", "cosine"]),
        ("training", "batch_size = 0", 8, vec!["training.batch_size", "found 0", "from 1 to"]),
        ("training", "batch_size = -3", 8, vec!["training.batch_size", "-3"]),
        ("training", "dropout = 1.0", 8, vec!["training.dropout", "less than 1"]),
        ("training", "logit_adjustment = 2.0", 8, vec!["training.logit_adjustment", "0 to 1"]),
        ("training", "label_shares = [1.0, 2.0]", 8, vec!["training.label_shares", "logit_adjustment"]),
        (
            "training",
            "logit_adjustment = 1.0\nlabel_shares = [1.0]",
            9,
            vec!["training.label_shares", "found 1 numbers"],
        ),
        ("training", "logit_adjustment = 1.0\nlabel_shares = [1.0, 0.0]", 9, vec!["training.label_shares", "above 0"]),
        ("training", "warmup = 1.5", 8, vec!["training.warmup", "1.5"]),
        ("training", "weight_decay = -0.1", 8, vec!["training.weight_decay"]),
        ("training", "clip_norm = -1.0", 8, vec!["training.clip_norm"]),
        ("training", "epochs = 2\nsteps = 3", 9, vec!["training.steps", "one of the two"]),
        ("training", "epochs = 0", 8, vec!["training.epochs"]),
        ("task", "max_length = 2", 5, vec!["task.max_length", "from 4"]),
        ("task", "label_column = \"text\"", 5, vec!["task.label_column", "task.text_column too"]),
        ("rounds", "count = 0", 9, vec!["rounds.count"]),
        ("rounds", "quorum = 0", 9, vec!["rounds.quorum"]),
        ("rounds", "cohort = \"some\"", 9, vec!["rounds.cohort", "\"all\" or a number"]),
        ("rounds", "cohort = 1", 9, vec!["rounds.cohort", "rounds.quorum"]),
        ("rounds", "deadline = \"soon\"", 9, vec!["rounds.deadline", "\"soon\"", "2h"]),
        ("rounds", "deadline = 30", 9, vec!["rounds.deadline", "30"]),
        ("rounds", "cohort = 1.5", 9, vec!["rounds.cohort", "a share"]),
        ("rounds", "target = 1", 9, vec!["rounds.target", "rounds.quorum"]),
        ("rounds", "target = 5\ncohort = 4", 9, vec!["rounds.target", "at most rounds.cohort"]),
        ("rounds", "limit = \"0s\"", 9, vec!["rounds.limit"]),
        ("rounds", "below_quorum = \"wait\"", 9, vec!["rounds.below_quorum", "pause"]),
        ("rounds", "attempts = 0", 9, vec!["rounds.attempts"]),
        ("aggregation", "strategy = \"fedagv\"", 10, vec!["aggregation.strategy", "fedavg"]),
        ("aggregation", "weighting = \"size\"", 10, vec!["aggregation.weighting", "uniform"]),
        ("updates", "compression = \"int7\"", 12, vec!["updates.compression", "int8"]),
        ("updates", "top_k = 0.1", 12, vec!["updates.top_k", "\"f16\""]),
        ("updates", "compression = \"top-k\"\ntop_k = 1.5", 13, vec!["updates.top_k", "at most 1"]),
        ("updates", "download = \"delta\"", 12, vec!["updates.download", "difference", "whole"]),
        ("updates", "error_feedback = true", 12, vec!["updates.error_feedback", "no use"]),
        (
            "aggregation",
            "rule = \"median\"\n[updates]\ncompression = \"top-k\"",
            12,
            vec!["updates.compression", "each value"],
        ),
        ("aggregation", "momentum = 0.9", 10, vec!["aggregation.momentum", "strategy = \"fedavg\"", "no use"]),
        ("aggregation", "strategy = \"fedavgm\"\ntau = 0.1", 11, vec!["aggregation.tau", "\"fedavgm\""]),
        (
            "aggregation",
            "strategy = \"fedadam\"\nlearning_rate = 0.1",
            11,
            vec!["aggregation.learning_rate", "100 times as large", "at most 1.000e-2", "max_amplification"],
        ),
        ("aggregation", "learning_rate = 0.0", 10, vec!["aggregation.learning_rate", "more than 0"]),
        ("aggregation", "strategy = \"fedavgm\"\nmomentum = 1.0", 11, vec!["aggregation.momentum"]),
        ("aggregation", "rule = \"median\"\nweighting = \"examples\"", 11, vec!["aggregation.weighting", "\"median\""]),
        ("aggregation", "rule = \"trimmed-mean\"\ntrim = 0.5", 11, vec!["aggregation.trim", "less than 0.5"]),
        ("aggregation", "malicious = 1", 10, vec!["aggregation.malicious", "rule = \"mean\""]),
        ("aggregation", "examples_cap = 5", 10, vec!["aggregation.examples_cap", "\"capped\""]),
        ("aggregation", "rule = \"norm-clipping\"\nnorm_bound = 0.0", 11, vec!["aggregation.norm_bound"]),
        ("rounds", "staleness_max = 2", 9, vec!["rounds.staleness_max", "rounds.late = \"keep\""]),
        ("rounds", "late = \"keep\"", 9, vec!["rounds.late", "rounds.target or rounds.limit"]),
        ("rounds", "target = 3\nlate = \"keep\"\nstaleness_max = 0", 11, vec!["rounds.staleness_max", "from 1"]),
        ("aggregation", "exclude = [\"\"]", 10, vec!["aggregation.exclude", "which is empty"]),
        ("aggregation", "strategy = \"fedbuff\"\nmomentum = 0.9", 11, vec!["aggregation.momentum", "\"fedbuff\""]),
        ("evaluation", "by = \"me\"", 11, vec!["evaluation.by", "evaluator"]),
        ("evaluation", "on_collapse = \"stop\"", 11, vec!["evaluation.on_collapse", "roll-back"]),
        ("evaluation", "metric = \"f1\"", 11, vec!["evaluation.metric", "macro_f1"]),
        ("evaluation", "min_delta = -1.0", 11, vec!["evaluation.min_delta"]),
    ] {
        let error = read::<Job>(&job_with(section, line)).expect_err(line);
        let text = error.to_string();
        assert_eq!(error.problems[0].line, Some(at), "{line}: {text}");
        for part in expected {
            assert!(text.contains(part), "{line}: {text:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_job_says_in_full_how_it_aggregates_and_its_quorum_fits_the_rule() {
    for (lines, quorum) in [
        ("strategy = \"fedavgm\"", 2),
        ("strategy = \"fedadam\"\nlearning_rate = 0.1\nmax_amplification = 100.0", 2),
        ("strategy = \"fedyogi\"\nbias_correction = false", 2),
        ("strategy = \"fedadagrad\"\nweighting = \"capped\"\nexamples_cap = 100", 2),
        ("strategy = \"fedbuff\"", 2),
        ("strategy = \"fedbuff\"\nrule = \"median\"", 2),
        ("rule = \"krum\"", 5),
        ("rule = \"bulyan\"\nmalicious = 2", 11),
        ("rule = \"trimmed-mean\"", 2),
        ("rule = \"geometric-median\"\nweighting = \"uniform\"", 2),
        ("rule = \"centered-clipping\"\nstrategy = \"fedadam\"", 2),
    ] {
        let text = job_with("aggregation", lines).replace("[rounds]\n", &format!("[rounds]\nquorum = {quorum}\n"));
        let job: Job = read(&text).unwrap();
        assert_eq!(job, read(&job.to_toml()).unwrap(), "{lines}");
        assert!(job.to_toml().contains("learning_rate"), "{lines}");
        let error = read::<Job>(
            &text.replace("quorum", "cohort = \"all\"\nquorum").replace(&format!("quorum = {quorum}"), "quorum = 1"),
        );
        assert_eq!(error.is_err(), quorum > 2, "{lines}");
    }
    let error = read::<Job>(&job_with("aggregation", "rule = \"krum\"")).unwrap_err().to_string();
    assert!(error.contains("rounds.quorum: found 2; expected at least 5"), "{error}");
}

#[test]
fn what_does_not_go_together_is_refused_with_a_reason() {
    for (section, line, aggregation, expected) in [
        ("rounds", "late = \"drop\"", "strategy = \"fedbuff\"", "rounds.late: found \"drop\""),
        ("evaluation", "by = \"sites\"", "strategy = \"fedbuff\"", "whose sites are always training"),
        ("evaluation", "by = \"evaluator\"", "exclude = [\"classifier.*\"]", "has none of the tensors that sites keep"),
    ] {
        let fits = job_with("aggregation", aggregation);
        let text = fits.replace(&format!("[{section}]\n"), &format!("[{section}]\n{line}\n"));
        let error = read::<Job>(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn labels_are_checked_one_by_one() {
    let two = job_with("task", "").replace("[\"a\", \"b\"]", "[\"a\",\n\"a\",\n\" \"]");
    let error = read::<Job>(&two).unwrap_err();
    let places: Vec<_> = error.problems.iter().map(|p| (p.field.as_str(), p.line)).collect();
    assert_eq!(places, [("task.labels[1]", Some(8)), ("task.labels[2]", Some(9))]);
    let one = job_with("task", "").replace("[\"a\", \"b\"]", "[\"a\"]");
    assert!(read::<Job>(&one).unwrap_err().to_string().contains("found 1 labels"));
}

#[test]
fn a_missing_field_and_broken_toml_are_named() {
    let error = read::<Job>("name = \"x\"\n[model]\n").unwrap_err();
    assert_eq!(error.to_string(), "file.toml:2: model.path: is missing and has no default; add it");
    let error = read::<Job>("name = \"x\"\n[model\n").unwrap_err();
    assert_eq!(error.problems[0].line, Some(2), "{error}");
    assert!(error.to_string().contains("not valid TOML"));
}

#[test]
fn every_fault_of_a_site_is_named() {
    let good = "[aggregator]\naddress = \"https://a:1\"\nbundle = \"b\"\n[data]\ntrain = \"t.csv\"\n";
    read::<SiteConfig>(good).unwrap();
    for (from, to, expected) in [
        ("https://", "http://", "no plaintext"),
        ("train =", "trian =", "did you mean `train`"),
        ("train = \"t.csv\"", "", "neither `train` nor `test`"),
        ("train = \"t.csv\"", "train = \"t.csv\"\nvalidation_fraction = 0.95", "less than 0.9"),
        ("train = \"t.csv\"", "train = \"t.csv\"\nduplicates = \"drop\"", "allowed: keep, remove"),
        ("train = \"t.csv\"", "train = \"t.csv\"\ngroup_column = \"\"", "data.group_column: is empty"),
        ("train = \"t.csv\"", "test = \"t.csv\"\ngroup_column = \"who\"", "without data.train"),
        ("train = \"t.csv\"", "train = \"t.csv\"\nper_label = 0", "data.per_label: found 0"),
        ("train = \"t.csv\"", "train = \"t.csv\"\noversample = 0.5", "data.oversample: found 0.5"),
        ("[data]", "[device]\nkind = \"gpu\"\n[data]", "allowed: cpu, cuda"),
        ("[data]", "[device]\nthreads = 5000\n[data]", "to 1024"),
        ("bundle = \"b\"", "", "aggregator.bundle: is missing"),
    ] {
        let error = read::<SiteConfig>(&good.replace(from, to)).expect_err(to).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn every_fault_of_a_server_is_named() {
    let good = "[tls]\nca = \"c\"\ncertificate = \"d\"\nkey = \"k\"\n[storage]\ndata = \"x\"\n";
    read::<ServerConfig>(good).unwrap();
    for (line, expected) in [
        ("[listen]\naddress = \"here\"", "listen.address"),
        ("[sessions]\nheartbeat = \"1ms\"", "at least \"100ms\""),
        ("[sessions]\ntimeout = \"11s\"", "twice sessions.heartbeat"),
        ("[listen]\nhttp = \"127.0.0.1:7443\"", "port of its own"),
        ("[listen]\nhttp = \"localhost\"", "listen.http"),
        ("[limits]\nartifact_bytes = 5", "at least 1048576"),
        ("[limits]\nexamples_per_update = 0", "at least 1"),
        ("retention = \"1h\"", "at least \"1d\""),
        ("retention = \"some days\"", "or \"forever\""),
        ("[limits]\nstreams_per_site = 1", "at least 4"),
        ("[limits]\nbytes_per_second = 10", "at least 65536"),
        ("[limits]\nrunning_jobs = 0", "1 to 64"),
        ("[limits]\ncalls_per_second = -1", "limits.calls_per_second"),
        ("[log]\nformat = \"xml\"", "allowed: text, json"),
        ("[log]\nlevel = \"\"", "log.level"),
        ("[telemetry]", "unknown key `telemetry`"),
    ] {
        let error = read::<ServerConfig>(&format!("{good}{line}\n")).expect_err(line).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn the_environment_overrides_by_the_type_of_the_field() {
    let good = "[aggregator]\naddress = \"https://a:1\"\nbundle = \"b\"\n[data]\ntrain = \"t.csv\"\n";
    let set = |name: &str, value: &str| {
        let variable = (format!("FEDTUNE_SITE__{name}"), value.to_owned());
        parse::<SiteConfig>(Path::new("site.toml"), good, std::iter::once(variable))
    };
    assert_eq!(set("DEVICE__THREADS", "8").unwrap().device.threads, 8);
    assert_eq!(set("DATA__TEXT_COLUMN", "123").unwrap().data.text_column.unwrap(), "123");
    assert!(set("POLICY__SHARE_LABEL_COUNTS", "true").unwrap().policy.share_label_counts);
    let error = set("DEVICE__THREADS", "many").unwrap_err().to_string();
    assert!(error.contains("device.threads") && error.contains("FEDTUNE_SITE__DEVICE__THREADS"), "{error}");
    let error = set("DEVICE__THREDS", "1").unwrap_err().to_string();
    assert!(error.contains("did you mean `threads`") && error.contains("FEDTUNE_SITE__DEVICE__THREDS"), "{error}");
}

#[test]
fn files_that_are_absent_huge_or_not_text_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    assert!(fedtune_config::load::<Job>(&path).unwrap_err().to_string().contains("cannot be read"));
    std::fs::write(&path, b"name = \"x\"\n\xff\xfe").unwrap();
    let error = fedtune_config::load::<Job>(&path).unwrap_err();
    assert!(error.problems[0].line == Some(2) && error.to_string().contains("UTF-8"), "{error}");
    std::fs::write(&path, vec![b'#'; 5 << 20]).unwrap();
    assert!(fedtune_config::load::<Job>(&path).unwrap_err().to_string().contains("at most"));
}

/// A job's text comes from the network too: one of a few megabytes took hours, or a gigabyte.
#[test]
fn faults_without_number_and_names_without_end_are_told_shortly() {
    let labels = "\"\", ".repeat(100_000);
    let text = job_with("training", "").replace("[\"a\", \"b\"]", &format!("[\n{labels}]"));
    let error = read::<Job>(&text).unwrap_err();
    assert_eq!(error.problems.len(), 1 + 1000 + 999, "their number, 1000 that are empty, 999 that stand twice");
    assert!(error.problems.iter().skip(1).all(|problem| problem.line == Some(7)), "{:?}", error.problems[1]);

    let name = "seed".repeat(1 << 19);
    let error = read::<Job>(&job_with("training", &format!("{name} = 1"))).unwrap_err().to_string();
    assert!(error.contains("seedseed...`; allowed: ") && error.len() < name.len() + 2000, "{} bytes", error.len());
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in "\\PC{0,200}") {
        let _ = read::<Job>(&text);
        let _ = read::<SiteConfig>(&text);
    }

    #[test]
    fn no_value_makes_the_loader_panic(value in "[-0-9a-z\"\\[\\]{}.]{0,20}") {
        for field in ["batch_size", "trainable", "seed", "dropout"] {
            let _ = read::<Job>(&job_with("training", &format!("{field} = {value}")));
        }
    }
}

/// What a model folder is for is told by its config.json alone.
#[test]
fn a_job_without_wishes_suits_its_model() {
    let folder = tempfile::tempdir().unwrap();
    let found = |config: &str| {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let kind = fedtune_config::job::suggested_kind(folder.path());
        let job = Job::new("n", folder.path(), fedtune_config::job::Task::new(kind, Vec::new()));
        (kind.name(), job.training.learning_rate, job.training.epochs)
    };
    let table = |rest: &str| format!("{{\"model_type\": \"fedtune-table\"{rest}}}");
    for (config, expected) in [
        ("{\"hidden_size\": 384}".to_owned(), ("text-classification", 1e-4, None)),
        ("{\"hidden_size\": 768}".to_owned(), ("text-classification", 5e-5, None)),
        ("no JSON".to_owned(), ("text-classification", 5e-5, None)),
        (table(", \"hidden_sizes\": []"), ("table-classification", 1e-2, Some(7))),
        (table(", \"hidden_sizes\": [8], \"problem_type\": \"regression\""), ("table-regression", 1e-3, Some(7))),
    ] {
        assert_eq!(found(&config), expected, "{config}");
    }
}
