//! Which of the training rows are trained on, and how often.

use std::collections::HashMap;

use super::{DataError, Rows};

/// Fewer rows of frequent labels, or more of rare ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// At most so many rows of each label.
    pub per_label: Option<usize>,
    /// How many times as many the rows of a label become, at most, so that it has as many as the most frequent label; 1
    /// leaves them as they are.
    pub oversample: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { per_label: None, oversample: 1.0 }
    }
}

impl Sampling {
    /// The rows to train on. Which rows are chosen follows from seed and texts, and a text that repeats is chosen after
    /// others. The order is that of the rows, a repeated row beside itself.
    ///
    /// # Errors
    /// Some rows are to be chosen, and rows do not have one label each.
    pub fn apply(&self, rows: Rows, seed: u64) -> Result<Rows, DataError> {
        if *self == Self::default() {
            return Ok(rows);
        }
        if rows.labels().count() != rows.len() {
            return Err(DataError::Sampling);
        }
        let labels = rows.labels().map(|label| label + 1).max().unwrap_or(0);
        let mut of_label: Vec<Vec<usize>> = vec![Vec::new(); labels];
        let mut occurrences: HashMap<_, usize> = HashMap::new();
        let mut keys = Vec::with_capacity(rows.len());
        for (place, label) in rows.labels().enumerate() {
            let occurrence = occurrences.entry((rows.text_number(place), label)).or_default();
            *occurrence += 1;
            let mut hasher = blake3::Hasher::new_derive_key("fedtune sampling v1");
            hasher.update(&seed.to_le_bytes());
            hasher.update(rows.identity(place));
            keys.push((*occurrence, *hasher.finalize().as_bytes()));
            of_label[label].push(place);
        }
        for places in &mut of_label {
            places.sort_by_key(|place| keys[*place]);
            places.truncate(self.per_label.unwrap_or(usize::MAX));
        }
        let most = of_label.iter().map(Vec::len).max().unwrap_or(0);
        let mut times = vec![0; rows.len()];
        for places in of_label.iter().filter(|places| !places.is_empty()) {
            let count = places.len();
            let wanted = ((count as f64 * self.oversample.max(1.0)) as usize).min(most);
            for (order, place) in places.iter().enumerate() {
                times[*place] = wanted / count + usize::from(order < wanted % count);
            }
        }
        Ok(rows.select(times.into_iter().enumerate().flat_map(|(row, times)| std::iter::repeat_n(row, times))))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::super::{Row, Target};
    use super::*;

    fn rows(labels: &[usize]) -> Rows {
        let row = |(i, label): (usize, &usize)| Row {
            content: format!("t{i}").into(),
            target: Target::Class(*label),
            ..Row::default()
        };
        labels.iter().enumerate().map(row).collect()
    }

    fn counts(rows: &Rows) -> [usize; 3] {
        [0, 1, 2].map(|label| rows.labels().filter(|found| *found == label).count())
    }

    fn texts(rows: &Rows) -> Vec<String> {
        rows.contents(0..rows.len()).unwrap().iter().map(|content| content.texts().concat()).collect()
    }

    #[test]
    fn labels_are_cut_and_filled_up() {
        let labels = [vec![0; 20], vec![1; 6], vec![2; 1]].concat();
        let sample =
            |per_label, oversample| counts(&Sampling { per_label, oversample }.apply(rows(&labels), 1).unwrap());
        assert_eq!(sample(None, 1.0), [20, 6, 1]);
        assert_eq!(sample(Some(4), 1.0), [4, 4, 1]);
        assert_eq!(sample(None, 2.5), [20, 15, 2]);
        assert_eq!(sample(None, 5.0), [20, 20, 5]);
        assert_eq!(sample(Some(4), 3.0), [4, 4, 3]);
        let chosen =
            |seed| texts(&Sampling { per_label: Some(4), ..Sampling::default() }.apply(rows(&labels), seed).unwrap());
        assert_eq!(chosen(1), chosen(1));
        assert_ne!(chosen(1), chosen(2));
    }

    #[test]
    fn few_rows_are_different_texts() {
        let text = |i| if i < 10 { "The  same".to_owned() } else { format!("t{i}") };
        let rows = (0..12).map(|i| Row { content: text(i).into(), ..Row::default() }).collect();
        let chosen = Sampling { per_label: Some(3), ..Sampling::default() }.apply(rows, 3).unwrap();
        assert_eq!(texts(&chosen).iter().filter(|text| *text == "The  same").count(), 1);
    }

    #[test]
    fn rows_without_one_label_each_are_not_chosen_from() {
        let rows: Rows = [Row { target: Target::Value(1.0), ..Row::default() }].into_iter().collect();
        assert!(Sampling { per_label: Some(3), ..Sampling::default() }.apply(rows.clone(), 3).is_err());
        assert_eq!(Sampling::default().apply(rows, 3).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn oversampling_uses_every_row_and_about_as_often(
            labels in proptest::collection::vec(0usize..3, 1..60), oversample in 1.0..8.0f64, seed: u64,
        ) {
            let rows = rows(&labels);
            let sampled = Sampling { per_label: None, oversample }.apply(rows.clone(), seed).unwrap();
            let most = counts(&rows).into_iter().max().unwrap_or(0);
            prop_assert!(counts(&sampled).into_iter().all(|count| count <= most));
            for row in 0..rows.len() {
                let times = (0..sampled.len()).filter(|place| sampled.origin(*place) == row).count();
                prop_assert!(times >= 1 && times as f64 <= oversample.ceil(), "{times}");
            }
        }
    }
}
