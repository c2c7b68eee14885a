//! What an evaluation counts and sums up, and the measures that follow. Sums of several sites add up to those of all their
//! rows together, so the measures of a federation are those of its rows and not means of means.

use serde::{Deserialize, Serialize};

use crate::v1;
pub use probabilities::Probabilities;

mod probabilities;

/// Most words or tokens that one example may have.
const ROW_MAX: u64 = 1 << 16;

/// A mean loss above this, in nats, is past anything that a logit in f32 gives on purpose.
const LOSS_MAX: f64 = 1e6;

/// What is counted, by what is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One of so many labels for each row.
    Classes(usize),
    /// Any of so many labels for each row.
    Sets(usize),
    /// A number for each row.
    Values,
    /// One of so many labels for each word.
    Tags(usize),
    /// The next token.
    NextToken,
}

/// Sums over rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Rows.
    pub examples: u64,
    /// Sum of what is minimised: for each row its cross-entropy, the mean of its labels' binary cross-entropies, its squared
    /// error, or the sum of its words' or tokens' cross-entropies; in nats.
    pub loss_sum: f64,
    /// The rest.
    #[serde(flatten)]
    pub counts: Counts,
    /// How sure the model is, where it predicts one label for each row and was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probabilities: Option<Probabilities>,
}

impl From<Counts> for Evaluation {
    /// These counts of no rows.
    fn from(counts: Counts) -> Self {
        Self { examples: 0, loss_sum: 0.0, counts, probabilities: None }
    }
}

/// What only one kind of task counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// `labels × labels`, row by row: the row is the true label, the column the predicted one.
    Confusion(Vec<u64>),
    /// Decisions on sets of labels.
    Sets(Sets),
    /// Numbers and predictions.
    Values(Values),
    /// Labels of words.
    Tags(Tags),
    /// Tokens that follow.
    Tokens(Tokens),
}

/// Decisions on sets of labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets {
    /// Rows with exactly the right set.
    pub exact: u64,
    /// For each label the rows that have it and are predicted to.
    pub right: Vec<u64>,
    /// Rows that are predicted to have it.
    pub predicted: Vec<u64>,
    /// Rows that have it.
    pub actual: Vec<u64>,
}

/// Sums over numbers y and predictions p.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// Σ y
    pub y: f64,
    /// Σ y²
    pub yy: f64,
    /// Σ p
    pub p: f64,
    /// Σ p²
    pub pp: f64,
    /// Σ y·p
    pub yp: f64,
    /// Σ |y − p|
    pub absolute: f64,
}

/// Labels of words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// As [`Counts::Confusion`], of words.
    pub confusion: Vec<u64>,
    /// Entities that are predicted with the right words and the right type.
    pub entities_right: u64,
    /// Entities that are predicted.
    pub entities_predicted: u64,
    /// Entities that there are.
    pub entities_actual: u64,
}

/// Tokens that follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Tokens that count.
    pub counted: u64,
    /// Those of them that were predicted.
    pub right: u64,
}

/// Scores of one label; a quotient with denominator 0 counts as 0, as in scikit-learn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelScore {
    /// Share of what is predicted as this label that has it.
    pub precision: f64,
    /// Share of what has this label that is predicted so.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// How many have it.
    pub support: u64,
}

impl LabelScore {
    fn of(right: u64, predicted: u64, actual: u64) -> Self {
        Self {
            precision: ratio(right, predicted),
            recall: ratio(right, actual),
            f1: f1(right, predicted, actual),
            support: actual,
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn f1(right: u64, predicted: u64, actual: u64) -> f64 {
    let both = predicted.saturating_add(actual);
    if both == 0 { 0.0 } else { 2.0 * right as f64 / both as f64 }
}

fn add_all(sums: &mut [u64], more: &[u64]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(*more));
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

impl Evaluation {
    /// No rows yet.
    pub fn new(form: Form) -> Self {
        let counts = match form {
            Form::Classes(labels) => Counts::Confusion(vec![0; labels * labels]),
            Form::Sets(labels) => {
                let none = vec![0; labels];
                Counts::Sets(Sets { exact: 0, right: none.clone(), predicted: none.clone(), actual: none })
            }
            Form::Values => Counts::Values(Values::default()),
            Form::Tags(labels) => Counts::Tags(Tags { confusion: vec![0; labels * labels], ..Tags::default() }),
            Form::NextToken => Counts::Tokens(Tokens::default()),
        };
        counts.into()
    }

    /// Adds another evaluation; one of another form is refused and gives `false`.
    #[must_use]
    pub fn merge(&mut self, other: &Self) -> bool {
        match (&mut self.counts, &other.counts) {
            (Counts::Confusion(sums), Counts::Confusion(more)) if sums.len() == more.len() => add_all(sums, more),
            (Counts::Sets(sums), Counts::Sets(more)) if sums.right.len() == more.right.len() => {
                sums.exact = sums.exact.saturating_add(more.exact);
                add_all(&mut sums.right, &more.right);
                add_all(&mut sums.predicted, &more.predicted);
                add_all(&mut sums.actual, &more.actual);
            }
            (Counts::Values(sums), Counts::Values(more)) => {
                sums.y += more.y;
                sums.yy += more.yy;
                sums.p += more.p;
                sums.pp += more.pp;
                sums.yp += more.yp;
                sums.absolute += more.absolute;
            }
            (Counts::Tags(sums), Counts::Tags(more)) if sums.confusion.len() == more.confusion.len() => {
                add_all(&mut sums.confusion, &more.confusion);
                sums.entities_right = sums.entities_right.saturating_add(more.entities_right);
                sums.entities_predicted = sums.entities_predicted.saturating_add(more.entities_predicted);
                sums.entities_actual = sums.entities_actual.saturating_add(more.entities_actual);
            }
            (Counts::Tokens(sums), Counts::Tokens(more)) => {
                sums.counted = sums.counted.saturating_add(more.counted);
                sums.right = sums.right.saturating_add(more.right);
            }
            _ => return false,
        }
        // Of rows without them nothing is known.
        self.probabilities = match (self.probabilities.take(), &other.probabilities) {
            (Some(mut sums), Some(more)) => sums.merge(more).then_some(sums),
            _ => None,
        };
        self.examples = self.examples.saturating_add(other.examples);
        self.loss_sum += other.loss_sum;
        true
    }

    /// The confusion matrix of rows or words, where one label is predicted for each.
    pub fn confusion(&self) -> Option<&[u64]> {
        match &self.counts {
            Counts::Confusion(confusion) => Some(confusion),
            Counts::Tags(tags) => Some(&tags.confusion),
            Counts::Sets(_) | Counts::Values(_) | Counts::Tokens(_) => None,
        }
    }

    /// What `loss_sum` is divided by for the mean: rows, words or tokens.
    pub fn counted(&self) -> u64 {
        match &self.counts {
            Counts::Confusion(_) | Counts::Sets(_) | Counts::Values(_) => self.examples,
            Counts::Tags(tags) => total(&tags.confusion),
            Counts::Tokens(tokens) => tokens.counted,
        }
    }

    /// The mean loss; 0 of nothing.
    pub fn loss(&self) -> f64 {
        let counted = self.counted();
        if counted == 0 { 0.0 } else { self.loss_sum / counted as f64 }
    }

    /// Share of rows, words or tokens predicted rightly; `None` where nothing is right or wrong.
    pub fn accuracy(&self) -> Option<f64> {
        if let Counts::Tokens(tokens) = &self.counts {
            return Some(ratio(tokens.right, tokens.counted));
        }
        let confusion = self.confusion()?;
        let labels = confusion.len().isqrt();
        let right: Vec<u64> = (0..labels).map(|label| confusion[label * labels + label]).collect();
        Some(ratio(total(&right), total(confusion)))
    }

    /// Scores of every label, in order; none where there are no labels.
    pub fn per_label(&self) -> Vec<LabelScore> {
        if let Counts::Sets(Sets { right, predicted, actual, .. }) = &self.counts {
            let labels = right.iter().zip(predicted).zip(actual);
            return labels.map(|((right, predicted), actual)| LabelScore::of(*right, *predicted, *actual)).collect();
        }
        let Some(confusion) = self.confusion() else { return Vec::new() };
        let labels = confusion.len().isqrt();
        let count = |truth: usize, predicted: usize| confusion[truth * labels + predicted];
        let sum = |counts: Vec<u64>| total(&counts);
        let score = |label: usize| {
            let actual = sum((0..labels).map(|predicted| count(label, predicted)).collect());
            let predicted = sum((0..labels).map(|truth| count(truth, label)).collect());
            LabelScore::of(count(label, label), predicted, actual)
        };
        (0..labels).map(score).collect()
    }

    /// Unweighted mean of the labels' F1 (scikit-learn's `f1_score(average="macro", zero_division=0)` over all labels).
    pub fn macro_f1(&self) -> Option<f64> {
        let scores = self.per_label();
        (!scores.is_empty()).then(|| scores.iter().map(|score| score.f1).sum::<f64>() / scores.len() as f64)
    }

    /// Every measure, by the name that jobs and reports have for it, in the order in which tables show them. What cannot be
    /// computed, such as a correlation with what is always the same, is left out.
    pub fn measures(&self) -> Vec<(&'static str, f64)> {
        let loss = ("loss", Some(self.loss()));
        let found = match &self.counts {
            Counts::Confusion(_) => {
                let sure = self.probabilities.as_ref();
                vec![
                    ("accuracy", self.accuracy()),
                    ("macro_f1", self.macro_f1()),
                    loss,
                    ("macro_auroc", sure.and_then(Probabilities::macro_auroc)),
                    ("calibration_error", sure.map(|sums| sums.calibration_error(self.examples))),
                ]
            }
            Counts::Sets(sets) => vec![
                ("micro_f1", Some(f1(total(&sets.right), total(&sets.predicted), total(&sets.actual)))),
                ("macro_f1", self.macro_f1()),
                ("exact_match", Some(ratio(sets.exact, self.examples))),
                loss,
            ],
            Counts::Values(values) => vec![
                ("mse", Some(self.loss())),
                ("mae", Some(values.absolute / self.examples.max(1) as f64)),
                ("pearson", values.pearson(self.examples)),
                ("r2", values.r2(self.examples, self.loss_sum)),
                loss,
            ],
            Counts::Tags(tags) => {
                let entities = tags.entities_actual.saturating_add(tags.entities_predicted) > 0;
                let f1 = f1(tags.entities_right, tags.entities_predicted, tags.entities_actual);
                vec![
                    ("macro_f1", self.macro_f1()),
                    ("entity_f1", entities.then_some(f1)),
                    ("accuracy", self.accuracy()),
                    loss,
                ]
            }
            Counts::Tokens(_) => {
                vec![loss, ("perplexity", Some(self.loss().exp())), ("accuracy", self.accuracy())]
            }
        };
        found.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| value.is_finite())?))).collect()
    }

    /// The measure of a name, if there is one.
    pub fn measure(&self, name: &str) -> Option<f64> {
        self.measures().into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// The sums that a site sent, if they are consistent.
    ///
    /// # Errors
    /// They are not of this form, do not add up, or claim no examples or more than `examples_max`.
    pub fn checked(wire: v1::Evaluation, form: Form, examples_max: u64) -> Result<Self, String> {
        let v1::Evaluation { examples, loss_sum, confusion, sets, values, tags, tokens, probabilities } = wire;
        if examples == 0 || examples > examples_max {
            return Err(format!("the evaluation claims {examples} examples; expected 1 to {examples_max}"));
        }
        let matrix = |confusion: &[u64], labels: usize| {
            if confusion.len() == labels * labels {
                return Ok(confusion.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count)));
            }
            Err(format!("the confusion matrix has {} counts; expected {labels} x {labels}", confusion.len()))
        };
        let absent = |what: &str| format!("the evaluation has no sums of {what}, which the job's kind of task needs");
        let mut sure = None;
        let counts = match form {
            Form::Classes(labels) => {
                if matrix(&confusion, labels)? != Some(examples) {
                    return Err(format!("the confusion counts do not add up to the {examples} examples claimed"));
                }
                let sums = probabilities.map(|sums| Probabilities::checked(sums, &confusion, examples));
                sure = sums.transpose()?;
                Counts::Confusion(confusion)
            }
            Form::Sets(labels) => {
                let v1::SetSums { exact, right, predicted, actual } = sets.ok_or_else(|| absent("sets"))?;
                let all = [&right, &predicted, &actual];
                if all.iter().any(|counts| counts.len() != labels) {
                    return Err(format!("the sums of sets are not of {labels} labels each"));
                }
                let fits = (0..labels)
                    .all(|i| right[i] <= predicted[i].min(actual[i]) && predicted[i].max(actual[i]) <= examples);
                if !fits || exact > examples {
                    return Err(format!("the sums of sets do not go together with {examples} examples"));
                }
                Counts::Sets(Sets { exact, right, predicted, actual })
            }
            Form::Values => {
                let v1::ValueSums { y, yy, p, pp, yp, absolute } = values.ok_or_else(|| absent("numbers"))?;
                let all = [y, yy, p, pp, yp, absolute];
                if all.iter().any(|sum| !sum.is_finite()) || yy < 0.0 || pp < 0.0 || absolute < 0.0 {
                    return Err("the sums of numbers are not finite, or squares are negative".into());
                }
                Counts::Values(Values { y, yy, p, pp, yp, absolute })
            }
            Form::Tags(labels) => {
                let v1::TagSums { confusion, entities_right, entities_predicted, entities_actual } =
                    tags.ok_or_else(|| absent("words"))?;
                let words = matrix(&confusion, labels)?.ok_or("the confusion counts are absurdly large")?;
                if words > examples.saturating_mul(ROW_MAX) {
                    return Err(format!(
                        "{words} words are counted in {examples} examples; expected at most {ROW_MAX} in each"
                    ));
                }
                if entities_right > entities_predicted.min(entities_actual)
                    || entities_predicted.max(entities_actual) > words
                {
                    return Err(format!("the counts of entities do not go together with {words} words"));
                }
                Counts::Tags(Tags { confusion, entities_right, entities_predicted, entities_actual })
            }
            Form::NextToken => {
                let v1::TokenSums { counted, right } = tokens.ok_or_else(|| absent("tokens"))?;
                if counted > examples.saturating_mul(ROW_MAX) {
                    return Err(format!(
                        "{counted} tokens are counted in {examples} examples; expected at most {ROW_MAX} in each"
                    ));
                }
                if right > counted {
                    return Err(format!("{right} of {counted} tokens are said to be right"));
                }
                Counts::Tokens(Tokens { counted, right })
            }
        };
        let found = Self { examples, loss_sum, counts, probabilities: sure };
        // Squared errors have the unit of the numbers, which may be large.
        let most = if form == Form::Values { f64::MAX } else { LOSS_MAX * found.counted() as f64 };
        if !(0.0..=most).contains(&loss_sum) {
            return Err(format!("the sum of losses is {loss_sum}; expected 0 to a million for each example"));
        }
        Ok(found)
    }
}

impl Values {
    /// Counts a number and what was predicted for it.
    pub fn add(&mut self, y: f64, p: f64) {
        self.y += y;
        self.yy += y * y;
        self.p += p;
        self.pp += p * p;
        self.yp += y * p;
        self.absolute += (y - p).abs();
    }

    fn pearson(&self, examples: u64) -> Option<f64> {
        let n = examples as f64;
        let (y, p) = (n * self.yy - self.y * self.y, n * self.pp - self.p * self.p);
        // Of equal numbers these are 0 but for rounding.
        let varies = y > 1e-12 * n * self.yy && p > 1e-12 * n * self.pp;
        varies.then(|| ((n * self.yp - self.y * self.p) / (y.sqrt() * p.sqrt())).clamp(-1.0, 1.0))
    }

    /// 1 − Σ (y − p)² / Σ (y − ȳ)²
    fn r2(&self, examples: u64, squared_errors: f64) -> Option<f64> {
        let spread = self.yy - self.y * self.y / examples.max(1) as f64;
        (spread > 1e-12 * self.yy).then(|| 1.0 - squared_errors / spread)
    }
}

impl From<Evaluation> for v1::Evaluation {
    fn from(evaluation: Evaluation) -> Self {
        let Evaluation { examples, loss_sum, counts, probabilities } = evaluation;
        let mut wire = Self { examples, loss_sum, probabilities: probabilities.map(Into::into), ..Self::default() };
        match counts {
            Counts::Confusion(confusion) => wire.confusion = confusion,
            Counts::Sets(Sets { exact, right, predicted, actual }) => {
                wire.sets = Some(v1::SetSums { exact, right, predicted, actual });
            }
            Counts::Values(Values { y, yy, p, pp, yp, absolute }) => {
                wire.values = Some(v1::ValueSums { y, yy, p, pp, yp, absolute });
            }
            Counts::Tags(Tags { confusion, entities_right, entities_predicted, entities_actual }) => {
                wire.tags = Some(v1::TagSums { confusion, entities_right, entities_predicted, entities_actual });
            }
            Counts::Tokens(Tokens { counted, right }) => wire.tokens = Some(v1::TokenSums { counted, right }),
        }
        wire
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-9)
    }

    #[test]
    fn scores_of_classes_agree_with_scikit_learn() {
        // y_true = [0,0,0,1,1,2], y_pred = [0,0,1,1,1,0]: f1 = [2/3, 0.8, 0].
        let counts = Counts::Confusion(vec![2, 1, 0, 0, 2, 0, 1, 0, 0]);
        let found = Evaluation { examples: 6, loss_sum: 3.0, ..Evaluation::from(counts) };
        assert!(near(found.accuracy(), 4.0 / 6.0) && near(found.macro_f1(), (2.0 / 3.0 + 0.8) / 3.0));
        let third = found.per_label()[2];
        assert_eq!((third.precision, third.recall, third.f1, third.support), (0.0, 0.0, 0.0, 1));
        assert_eq!(found.measure("loss"), Some(0.5));
        assert_eq!(found.measure("mse"), None);
    }

    #[test]
    fn scores_of_sets_agree_with_scikit_learn() {
        // y_true = [[1,0,1],[0,1,0],[1,1,0],[0,0,0]], y_pred = [[1,0,0],[0,1,0],[1,0,1],[0,0,0]]:
        // f1_score micro 2·3/(4+5) = 2/3, macro (1 + 2/3 + 0)/3, accuracy_score 1/2.
        let sets = Sets { exact: 2, right: vec![2, 1, 0], predicted: vec![2, 1, 1], actual: vec![2, 2, 1] };
        let found = Evaluation { examples: 4, loss_sum: 2.0, ..Evaluation::from(Counts::Sets(sets)) };
        assert!(near(found.measure("micro_f1"), 2.0 / 3.0) && near(found.measure("macro_f1"), (1.0 + 2.0 / 3.0) / 3.0));
        assert!(near(found.measure("exact_match"), 0.5) && near(found.measure("loss"), 0.5));
    }

    fn regression(rows: &[(f64, f64)]) -> Evaluation {
        let mut values = Values::default();
        rows.iter().for_each(|(y, p)| values.add(*y, *p));
        let loss_sum = rows.iter().map(|(y, p)| (y - p).powi(2)).sum();
        Evaluation { examples: rows.len() as u64, loss_sum, ..Evaluation::from(Counts::Values(values)) }
    }

    #[test]
    fn scores_of_numbers_agree_with_numpy() {
        // numpy.corrcoef([1, 2, 3, 4], [1, 3, 2, 5])[0, 1] and scikit-learn's r2_score.
        let found = regression(&[(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 5.0)]);
        assert!(near(found.measure("mse"), 0.75) && near(found.measure("mae"), 0.75));
        assert!(near(found.measure("pearson"), 5.5 / (5.0_f64 * 8.75).sqrt()), "{:?}", found.measures());
        assert!(near(found.measure("r2"), 0.4));
        assert_eq!(regression(&[(0.1, 1.0), (0.1, 2.0), (0.1, 0.7)]).measure("pearson"), None);
        assert_eq!(regression(&[(0.1, 1.0), (0.1, 2.0), (0.1, 0.7)]).measure("r2"), None);
    }

    #[test]
    fn words_and_tokens_have_means_over_words_and_tokens() {
        let tags = Tags { confusion: vec![3, 1, 0, 4], entities_right: 2, entities_predicted: 3, entities_actual: 5 };
        let found = Evaluation { examples: 2, loss_sum: 4.0, ..Evaluation::from(Counts::Tags(tags)) };
        assert!(near(found.measure("loss"), 0.5) && near(found.measure("accuracy"), 7.0 / 8.0));
        assert!(near(found.measure("entity_f1"), 0.5));
        let tokens = Counts::Tokens(Tokens { counted: 10, right: 4 });
        let found = Evaluation { examples: 2, loss_sum: 20.0, ..Evaluation::from(tokens) };
        assert!(near(found.measure("perplexity"), 2.0_f64.exp()) && near(found.measure("accuracy"), 0.4));
    }

    #[test]
    fn sums_that_do_not_add_up_are_named() {
        let classes = |examples, loss_sum, confusion: &[u64]| v1::Evaluation {
            examples,
            loss_sum,
            confusion: confusion.into(),
            ..v1::Evaluation::default()
        };
        assert!(Evaluation::checked(classes(4, 1.5, &[1, 1, 0, 2]), Form::Classes(2), 10).is_ok());
        for (wrong, expected) in [
            (classes(4, 1.5, &[1, 1, 2]), "expected 2 x 2"),
            (classes(5, 1.5, &[1, 1, 0, 2]), "add up to the 5 examples"),
            (classes(0, 0.0, &[0, 0, 0, 0]), "claims 0 examples"),
            (classes(4, f64::NAN, &[1, 1, 0, 2]), "sum of losses"),
            (classes(4, -1.0, &[1, 1, 0, 2]), "sum of losses"),
            (classes(1, 1.0, &[u64::MAX, 2, 0, 0]), "add up"),
            (classes(11, 1.0, &[11, 0, 0, 0]), "1 to 10"),
            (classes(4, 1e9, &[1, 1, 0, 2]), "sum of losses"),
        ] {
            let reason = Evaluation::checked(wrong, Form::Classes(2), 10).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
        for form in [Form::Sets(2), Form::Values, Form::Tags(2), Form::NextToken] {
            let reason = Evaluation::checked(classes(4, 1.5, &[1, 1, 0, 2]), form, 10).unwrap_err();
            assert!(reason.contains("the evaluation has no sums of"), "{reason}");
        }
        let empty = v1::Evaluation { examples: 4, loss_sum: 1.0, ..v1::Evaluation::default() };
        let sets = |exact, right: u64| {
            let sums = v1::SetSums { exact, right: vec![right], predicted: vec![2], actual: vec![3] };
            v1::Evaluation { sets: Some(sums), ..empty.clone() }
        };
        assert!(Evaluation::checked(sets(4, 2), Form::Sets(1), 10).is_ok());
        assert!(Evaluation::checked(sets(5, 2), Form::Sets(1), 10).unwrap_err().contains("go together"));
        assert!(Evaluation::checked(sets(4, 3), Form::Sets(1), 10).unwrap_err().contains("go together"));
        assert!(Evaluation::checked(sets(4, 2), Form::Sets(2), 10).unwrap_err().contains("2 labels"));
        let values = |yy| {
            let sums = v1::ValueSums { yy, ..v1::ValueSums::default() };
            v1::Evaluation { values: Some(sums), ..empty.clone() }
        };
        assert!(Evaluation::checked(values(1.0), Form::Values, 10).is_ok());
        assert!(Evaluation::checked(values(f64::INFINITY), Form::Values, 10).unwrap_err().contains("finite"));
        let tokens = v1::Evaluation { tokens: Some(v1::TokenSums { counted: 3, right: 4 }), ..empty.clone() };
        assert!(Evaluation::checked(tokens, Form::NextToken, 10).unwrap_err().contains("4 of 3 tokens"));
        let tags = v1::TagSums { confusion: vec![1, 0, 0, 1], entities_right: 3, ..v1::TagSums::default() };
        let tags = v1::Evaluation { tags: Some(tags), ..empty };
        assert!(Evaluation::checked(tags, Form::Tags(2), 10).unwrap_err().contains("entities"));
    }

    #[test]
    fn records_keep_every_form() {
        for form in [Form::Classes(3), Form::Sets(2), Form::Values, Form::Tags(2), Form::NextToken] {
            let evaluation = Evaluation { examples: 1, ..Evaluation::new(form) };
            let text = serde_json::to_string(&evaluation).unwrap();
            assert_eq!(serde_json::from_str::<Evaluation>(&text).unwrap(), evaluation);
            let mut twice = evaluation.clone();
            assert!(twice.merge(&evaluation) && twice.examples == 2);
            let other = if form == Form::Values { Form::NextToken } else { Form::Values };
            assert!(!twice.merge(&Evaluation::new(other)));
        }
        assert!(!Evaluation::new(Form::Classes(3)).merge(&Evaluation::new(Form::Classes(2))));
    }

    proptest! {
        #[test]
        fn sites_together_score_as_their_rows_do(
            rows in proptest::collection::vec((-5.0..5.0f64, -5.0..5.0f64), 2..60), cut in 1usize..59,
        ) {
            let cut = cut.min(rows.len() - 1);
            let mut sum = regression(&rows[..cut]);
            prop_assert!(sum.merge(&regression(&rows[cut..])));
            for ((name, one), (_, other)) in sum.measures().into_iter().zip(regression(&rows).measures()) {
                prop_assert!((one - other).abs() < 1e-6, "{name}: {one} {other}");
            }
        }
    }
}
