//! An evaluation as tables and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::finetune::metrics::Counts;
use crate::finetune::{Evaluation, Scores};

/// More labels than this do not make a readable confusion matrix.
const MATRIX: usize = 20;

/// Tables for people: scores of each label, the confusion matrix, totals.
pub(super) fn text(evaluation: &Evaluation, scores: &Scores, labels: &[String]) -> String {
    let short: Vec<String> = labels.iter().map(|label| shorten(label, 32)).collect();
    let wide = short.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(5);
    let mut out = String::new();
    // Writing to a string does not fail.
    let per_label = evaluation.per_label();
    if !per_label.is_empty() {
        let _ = writeln!(out, "{:wide$}  precision  recall      f1   AUROC  support", "label");
    }
    for (place, (label, score)) in short.iter().zip(per_label).enumerate() {
        let (precision, recall, f1, support) = (score.precision, score.recall, score.f1, score.support);
        let auroc = share(scores.auroc.get(place).copied().flatten());
        let _ = writeln!(out, "{label:wide$}  {precision:9.4}  {recall:6.4}  {f1:6.4}  {auroc:>6}  {support:7}");
    }
    if let (Some(confusion), true) = (evaluation.confusion(), labels.len() <= MATRIX) {
        let cell = confusion.iter().max().map_or(1, |most| most.to_string().len()).max(3);
        let _ = writeln!(out, "\nconfusion (row: true label; column: predicted, in the same order)");
        for (label, row) in short.iter().zip(confusion.chunks(labels.len().max(1))) {
            let cells: Vec<String> = row.iter().map(|count| format!("{count:cell$}")).collect();
            let _ = writeln!(out, "{label:wide$}  {}", cells.join(" "));
        }
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let _ = write!(out, "examples {}", evaluation.examples);
    match &evaluation.counts {
        Counts::Tags(_) => drop(write!(out, "  words {}", evaluation.counted())),
        Counts::Tokens(_) => drop(write!(out, "  tokens {}", evaluation.counted())),
        Counts::Confusion(_) | Counts::Sets(_) | Counts::Values(_) => {}
    }
    let _ = write!(out, "  {}", measures(evaluation));
    if !scores.measures.is_empty() {
        let named = scores.measures.iter().map(|(name, value)| format!("{} {}", long_title(name), share(*value)));
        let _ = write!(out, "\n{}", named.collect::<Vec<_>>().join("  "));
    }
    out
}

/// What a measure is called where there is room.
fn long_title(name: &str) -> &str {
    match name {
        "macro_auroc" => "macro AUROC (one label against the rest)",
        "calibration_error" => "expected calibration error",
        "spearman" => "Spearman's correlation",
        other => title(other),
    }
}

/// What a measure is called in a table.
pub(super) fn title(name: &str) -> &str {
    match name {
        "macro_f1" => "macro F1",
        "micro_f1" => "micro F1",
        "entity_f1" => "entity F1",
        "exact_match" => "exact match",
        "macro_auroc" => "AUROC",
        "calibration_error" => "ECE",
        "mse" => "MSE",
        "mae" => "MAE",
        "pearson" => "Pearson",
        "spearman" => "Spearman",
        "r2" => "R2",
        other => other,
    }
}

/// The measures of the sums in one line.
pub(super) fn measures(evaluation: &Evaluation) -> String {
    let named = evaluation.measures().into_iter().map(|(name, value)| format!("{} {value:.4}", title(name)));
    named.collect::<Vec<_>>().join("  ")
}

/// Four digits, or a dash for what cannot be computed.
pub(super) fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.4}"))
}

/// The totals.
pub(super) fn totals(evaluation: &Evaluation, scores: &Scores) -> Value {
    let mut totals = counted(evaluation);
    for (name, value) in &scores.measures {
        totals[*name] = json!(value);
    }
    totals
}

/// The totals that need no row's scores.
pub(super) fn counted(evaluation: &Evaluation) -> Value {
    let measures = evaluation.measures().into_iter().map(|(name, value)| (name.to_owned(), json!(value)));
    let mut totals: Map<String, Value> = measures.collect();
    totals.insert("examples".into(), json!(evaluation.examples));
    if evaluation.counted() != evaluation.examples {
        totals.insert("counted".into(), json!(evaluation.counted()));
    }
    Value::Object(totals)
}

/// Scores of each label.
pub(super) fn per_label(evaluation: &Evaluation, scores: &Scores, labels: &[String]) -> Value {
    let scores = labels.iter().zip(evaluation.per_label()).enumerate().map(|(place, (label, score))| {
        json!({
            "label": label,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "auroc": scores.auroc.get(place),
            "support": score.support,
        })
    });
    Value::Array(scores.collect())
}

/// The confusion matrix as rows; null where there is none.
pub(super) fn confusion(evaluation: &Evaluation) -> Value {
    match evaluation.confusion() {
        Some(confusion) => json!(confusion.chunks(confusion.len().isqrt().max(1)).collect::<Vec<_>>()),
        None => Value::Null,
    }
}

/// At most so many characters and an ellipsis, with control characters escaped: labels come from files.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars().take(most) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if text.chars().nth(most).is_some() {
        out.push_str("...");
    }
    out
}
