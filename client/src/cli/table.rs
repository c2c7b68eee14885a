//! An evaluation as tables and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::finetune::{Evaluation, Scores};

/// More labels than this do not make a readable confusion matrix.
const MATRIX: usize = 20;

/// Tables for people: scores of each label, the confusion matrix, totals.
pub(super) fn text(evaluation: &Evaluation, scores: &Scores, labels: &[String]) -> String {
    let short: Vec<String> = labels.iter().map(|label| shorten(label, 32)).collect();
    let wide = short.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(5);
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{:wide$}  precision  recall      f1   AUROC  support", "label");
    for ((label, score), auroc) in short.iter().zip(evaluation.per_label()).zip(&scores.auroc) {
        let (precision, recall, f1, support) = (score.precision, score.recall, score.f1, score.support);
        let auroc = share(*auroc);
        let _ = writeln!(out, "{label:wide$}  {precision:9.4}  {recall:6.4}  {f1:6.4}  {auroc:>6}  {support:7}");
    }
    if labels.len() <= MATRIX {
        let cell = evaluation.confusion.iter().max().map_or(1, |most| most.to_string().len()).max(3);
        let _ = writeln!(out, "\nconfusion (row: true label; column: predicted, in the same order)");
        for (label, row) in short.iter().zip(evaluation.confusion.chunks(labels.len().max(1))) {
            let cells: Vec<String> = row.iter().map(|count| format!("{count:cell$}")).collect();
            let _ = writeln!(out, "{label:wide$}  {}", cells.join(" "));
        }
    }
    let (examples, accuracy) = (evaluation.examples, evaluation.accuracy());
    let (macro_f1, loss) = (evaluation.macro_f1(), evaluation.loss());
    let _ = writeln!(out, "\nexamples {examples}  accuracy {accuracy:.4}  macro F1 {macro_f1:.4}  loss {loss:.4}");
    let (auroc, calibration) = (share(scores.macro_auroc), scores.calibration_error);
    let _ =
        write!(out, "macro AUROC (one label against the rest) {auroc}  expected calibration error {calibration:.4}");
    out
}

/// Four digits, or a dash for what cannot be computed.
pub(super) fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.4}"))
}

/// The totals.
pub(super) fn totals(evaluation: &Evaluation, scores: &Scores) -> Value {
    let mut totals = counted(evaluation);
    totals["macro_auroc"] = json!(scores.macro_auroc);
    totals["calibration_error"] = json!(scores.calibration_error);
    totals
}

/// The totals that need no row's scores.
pub(super) fn counted(evaluation: &Evaluation) -> Value {
    json!({
        "accuracy": evaluation.accuracy(),
        "macro_f1": evaluation.macro_f1(),
        "loss": evaluation.loss(),
        "examples": evaluation.examples,
    })
}

/// Scores of each label.
pub(super) fn per_label(evaluation: &Evaluation, scores: &Scores, labels: &[String]) -> Value {
    let scores = labels.iter().zip(evaluation.per_label()).zip(&scores.auroc).map(|((label, score), auroc)| {
        json!({
            "label": label,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "auroc": auroc,
            "support": score.support,
        })
    });
    Value::Array(scores.collect())
}

/// The confusion matrix as rows.
pub(super) fn confusion(evaluation: &Evaluation) -> Value {
    json!(evaluation.confusion.chunks(evaluation.labels().max(1)).collect::<Vec<_>>())
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
