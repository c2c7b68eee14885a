//! What is counted of a network's answers. The sums and their measures are [`fedtune_proto::evaluation`]'s, so that
//! evaluations of several sites add up.

pub use fedtune_proto::evaluation::{Counts, Evaluation, Form, LabelScore, Probabilities};

use super::entities::entities;
use crate::data::TargetRef;
use crate::model::network::Foreseen;
use crate::model::ops::row_loss;
use crate::model::{Classifier, Objective};

/// What is counted of a model's answers.
pub fn form(classifier: &Classifier) -> Form {
    let labels = classifier.labels().len();
    match classifier.network().objective() {
        Objective::Class => Form::Classes(labels),
        Objective::Sets => Form::Sets(labels),
        Objective::Value => Form::Values,
        Objective::Tokens => Form::Tags(labels),
        Objective::NextToken => Form::NextToken,
    }
}

/// Counts a row's outputs; a target or a number of outputs that does not fit is passed over.
pub(super) fn add(evaluation: &mut Evaluation, logits: &[f32], target: TargetRef<'_>) {
    let loss = match (&mut evaluation.counts, target) {
        (Counts::Confusion(confusion), TargetRef::Class(label)) => {
            let labels = confusion.len().isqrt();
            if label >= labels || logits.len() != labels {
                return;
            }
            let best = predicted(logits);
            confusion[label * labels + best] += 1;
            if let Some(sums) = &mut evaluation.probabilities {
                sums.add(&probabilities(logits), best, label);
            }
            row_loss(logits, label)
        }
        (Counts::Sets(sets), TargetRef::Set(truth)) => {
            if logits.len() != sets.right.len() || logits.is_empty() {
                return;
            }
            let (mut exact, mut loss) = (true, 0.0);
            for (label, logit) in logits.iter().enumerate() {
                let (has, says) = (truth.iter().any(|has| usize::from(*has) == label), applies(*logit));
                sets.right[label] += u64::from(has && says);
                sets.predicted[label] += u64::from(says);
                sets.actual[label] += u64::from(has);
                exact &= has == says;
                let x = f64::from(*logit);
                // Binary cross-entropy on the logit: log(1 + exp(x)) − x where the label applies.
                loss += x.max(0.0) + (-x.abs()).exp().ln_1p() - if has { x } else { 0.0 };
            }
            sets.exact += u64::from(exact);
            loss / logits.len() as f64
        }
        (Counts::Values(values), TargetRef::Value(value)) => {
            let [output] = logits else { return };
            let (y, p) = (f64::from(value), f64::from(*output));
            values.add(y, p);
            (y - p).powi(2)
        }
        _ => return,
    };
    evaluation.examples += 1;
    evaluation.loss_sum += loss;
}

/// Counts the words of a row that are not cut off: for each its label and its outputs.
pub(super) fn add_words<'a>(
    evaluation: &mut Evaluation,
    names: &[String],
    words: impl Iterator<Item = (usize, &'a [f32])>,
) {
    let Counts::Tags(tags) = &mut evaluation.counts else { return };
    let labels = tags.confusion.len().isqrt();
    let (mut truth, mut said) = (Vec::new(), Vec::new());
    for (label, logits) in words.filter(|(label, logits)| *label < labels && logits.len() == labels) {
        let best = predicted(logits);
        tags.confusion[label * labels + best] += 1;
        evaluation.loss_sum += row_loss(logits, label);
        truth.push(label);
        said.push(best);
    }
    let of = |labels: &[usize]| {
        let found = entities(labels.iter().map(|label| names.get(*label).map_or("O", String::as_str)));
        found.into_iter().map(|(start, end, kind)| (start, end, kind.to_owned())).collect::<Vec<_>>()
    };
    let (truth, said) = (of(&truth), of(&said));
    tags.entities_right += said.iter().filter(|entity| truth.contains(entity)).count() as u64;
    tags.entities_predicted += said.len() as u64;
    tags.entities_actual += truth.len() as u64;
    evaluation.examples += 1;
}

/// Counts the tokens of so many rows that count.
pub(super) fn add_foreseen(evaluation: &mut Evaluation, rows: usize, tokens: &[Foreseen]) {
    let Counts::Tokens(sums) = &mut evaluation.counts else { return };
    sums.counted += tokens.len() as u64;
    sums.right += tokens.iter().filter(|token| token.first).count() as u64;
    evaluation.loss_sum += tokens.iter().map(|token| token.loss).sum::<f64>();
    evaluation.examples += rows as u64;
}

/// The index of the largest logit, the first among equals.
pub fn predicted(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

/// Whether a label of a set is said to apply: its probability is above a half.
pub fn applies(logit: f32) -> bool {
    logit > 0.0
}

/// The logistic function of a logit.
pub fn probability(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}

/// Softmax of a row of logits.
pub fn probabilities(logits: &[f32]) -> Vec<f64> {
    (0..logits.len()).map(|label| (-row_loss(logits, label)).exp()).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_by_their_largest_logit() {
        let mut evaluation = Evaluation::new(Form::Classes(3));
        for (truth, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (2, 0)] {
            let mut logits = [0.0; 3];
            logits[predicted] = 1.0;
            add(&mut evaluation, &logits, TargetRef::Class(truth));
        }
        assert_eq!(evaluation.confusion().unwrap(), [2, 1, 0, 0, 2, 0, 1, 0, 0]);
        add(&mut evaluation, &[0.0; 3], TargetRef::Class(3));
        add(&mut evaluation, &[0.0; 3], TargetRef::Value(1.0));
        assert_eq!(evaluation.examples, 6);
    }

    #[test]
    fn labels_of_a_set_are_decided_one_by_one() {
        let mut evaluation = Evaluation::new(Form::Sets(2));
        add(&mut evaluation, &[2.0, -1.0], TargetRef::Set(&[0]));
        add(&mut evaluation, &[2.0, 0.5], TargetRef::Set(&[1]));
        let Counts::Sets(sets) = &evaluation.counts else { panic!("sets stay sets") };
        assert_eq!(
            (sets.exact, &sets.right[..], &sets.predicted[..], &sets.actual[..]),
            (1, &[1, 1][..], &[2, 1][..], &[1, 1][..])
        );
        // torch.nn.BCEWithLogitsLoss()(tensor([[2, -1], [2, 0.5]]), tensor([[1., 0], [0, 1]]))
        let softplus = |x: f64| x.exp().ln_1p();
        let expected = (softplus(-2.0) + softplus(-1.0) + softplus(2.0) + softplus(-0.5)) / 4.0;
        assert!((evaluation.loss() - expected).abs() < 1e-9, "{}", evaluation.loss());
    }

    #[test]
    fn words_count_one_by_one_and_entities_whole() {
        let names = ["O", "B-X", "I-X"].map(String::from);
        let mut evaluation = Evaluation::new(Form::Tags(3));
        let hot = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let words = |truth: &[usize], said: &[usize]| -> Vec<(usize, [f32; 3])> {
            truth.iter().zip(said).map(|(truth, said)| (*truth, hot[*said])).collect()
        };
        for row in [words(&[0, 1, 2], &[0, 1, 2]), words(&[1, 2, 0, 1], &[1, 0, 0, 1])] {
            add_words(&mut evaluation, &names, row.iter().map(|(label, logits)| (*label, &logits[..])));
        }
        assert_eq!((evaluation.examples, evaluation.counted()), (2, 7));
        assert!((evaluation.accuracy().unwrap() - 6.0 / 7.0).abs() < 1e-12);
        // Two of three entities are found whole, and three are claimed.
        assert!((evaluation.measure("entity_f1").unwrap() - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn probabilities_add_up_even_for_extreme_logits() {
        for logits in [[1.0, 2.0, 3.0], [1e4, -1e4, 0.0]] {
            assert!((probabilities(&logits).iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }
}
