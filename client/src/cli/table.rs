//! An evaluation as tables and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::finetune::Evaluation;

/// More labels than this do not make a readable confusion matrix.
const MATRIX: usize = 20;

/// Tables for people: scores of each label, the confusion matrix, totals.
pub(super) fn text(evaluation: &Evaluation, labels: &[String]) -> String {
    let short: Vec<String> = labels.iter().map(|label| shorten(label, 32)).collect();
    let wide = short.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(5);
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{:wide$}  precision  recall      f1  support", "label");
    for (label, score) in short.iter().zip(evaluation.per_label()) {
        let (precision, recall, f1, support) = (score.precision, score.recall, score.f1, score.support);
        let _ = writeln!(out, "{label:wide$}  {precision:9.4}  {recall:6.4}  {f1:6.4}  {support:7}");
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
    let _ = write!(out, "\nexamples {examples}  accuracy {accuracy:.4}  macro F1 {macro_f1:.4}  loss {loss:.4}");
    out
}

/// The totals.
pub(super) fn totals(evaluation: &Evaluation) -> Value {
    json!({
        "accuracy": evaluation.accuracy(),
        "macro_f1": evaluation.macro_f1(),
        "loss": evaluation.loss(),
        "examples": evaluation.examples,
    })
}

/// Scores of each label.
pub(super) fn per_label(evaluation: &Evaluation, labels: &[String]) -> Value {
    let scores = labels.iter().zip(evaluation.per_label()).map(|(label, score)| {
        json!({
            "label": label,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "support": score.support,
        })
    });
    Value::Array(scores.collect())
}

/// The confusion matrix as rows.
pub(super) fn confusion(evaluation: &Evaluation) -> Value {
    json!(evaluation.confusion.chunks(evaluation.labels().max(1)).collect::<Vec<_>>())
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}
