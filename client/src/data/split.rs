//! Parts of a file's rows: training and validation, and folds.

use std::collections::{BTreeMap, HashMap};

use super::{Rows, TargetRef};

/// How many strata numbers make.
const BINS: usize = 10;

/// Splits off about `validation_fraction` of the rows of each label; see [`parts`]. Order is kept. When a fraction above
/// zero would leave training empty, everything is training.
pub fn split(rows: Rows, validation_fraction: f64) -> (Rows, Rows) {
    let fraction = validation_fraction.clamp(0.0, 1.0);
    if fraction == 0.0 {
        return (rows, Rows::default());
    }
    let part_of = parts(&rows, &[1.0 - fraction, fraction], 0);
    let part = |part: usize| rows.select((0..rows.len()).filter(|row| part_of[*row] == part));
    let (train, validation) = (part(0), part(1));
    if train.is_empty() { (validation, train) } else { (train, validation) }
}

/// The fold of each row, from 0 to `folds` − 1, of about the same size and shares of labels; see [`parts`].
pub fn folds(rows: &Rows, folds: usize, seed: u64) -> Vec<usize> {
    parts(rows, &vec![1.0; folds.max(1)], seed)
}

/// Puts each row into one of several parts whose sizes are as `shares` are, and gives the parts.
///
/// Rows of the same text (see [`fold`](super::fold::fold)) or the same group are in the same part, so that nothing of a part can be known
/// from another. Each part has its share of the rows of each label, as near as that allows; of a row with several labels the
/// one that is rarest among these rows counts, and numbers count by tenths of their distribution. The parts follow from
/// seed, texts, targets and groups, and do not change with the order of the rows.
///
/// What belongs together is placed the largest first, otherwise in the order of a hash, by the method of Sainte-Laguë:
/// where the quotient of rows placed, half the new ones counted, and rows due is least, summed over labels and over all.
pub fn parts(rows: &Rows, shares: &[f64], seed: u64) -> Vec<usize> {
    let strata = strata(rows);
    let labels = strata.iter().map(|label| label + 1).max().unwrap_or(0);
    // One more place, for the rows of all labels: it spreads labels that are too rare to be spread alone. It weighs as
    // much as a label of middle size does for one row.
    let mut due = vec![0.0; labels + 1];
    for label in strata.iter().copied() {
        due[label] += 1.0;
        due[labels] += 1.0;
    }
    let weight = due[..labels].iter().filter(|due| **due > 0.0).count() as f64;
    let whole: f64 = shares.iter().sum();
    let mut placed = vec![vec![0.0; labels + 1]; shares.len()];
    let mut part_of = vec![0; rows.len()];
    for cluster in clusters(rows, seed) {
        let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
        for row in &cluster {
            *counts.entry(strata[*row]).or_default() += 1.0;
        }
        counts.insert(labels, cluster.len() as f64);
        let cost = |part: usize| -> f64 {
            let quotient = |(label, count): (&usize, &f64)| {
                let weight = if *label == labels { weight } else { 1.0 };
                // A cluster of many rows weighs on each of its labels by what it adds there.
                (placed[part][*label] + count / 2.0) / (shares[part] / whole * due[*label]) * count * weight
            };
            counts.iter().map(quotient).sum()
        };
        let costs: Vec<f64> = (0..shares.len()).map(cost).collect();
        let best = (0..shares.len()).min_by(|a, b| costs[*a].total_cmp(&costs[*b])).unwrap_or(0);
        for (label, count) in counts {
            placed[best][label] += count;
        }
        for row in cluster {
            part_of[row] = best;
        }
    }
    part_of
}

/// The stratum of each row: what its target is of which every part is to have its share.
fn strata(rows: &Rows) -> Vec<usize> {
    let mut often: HashMap<usize, usize> = HashMap::new();
    rows.targets().flat_map(TargetRef::labels).for_each(|label| *often.entry(label).or_default() += 1);
    let mut values: Vec<f32> = rows
        .targets()
        .filter_map(|target| if let TargetRef::Value(value) = target { Some(value) } else { None })
        .collect();
    values.sort_by(f32::total_cmp);
    let stratum = |target: TargetRef<'_>| match target {
        TargetRef::Class(label) => label,
        // The first one is of rows without a label.
        TargetRef::Set(_) | TargetRef::Tags(_) => {
            let rarest = target.labels().min_by_key(|label| (often.get(label).copied(), *label));
            rarest.map_or(0, |label| label + 1)
        }
        // Equal numbers are in one bin, that of the first of them.
        TargetRef::Value(value) => values.partition_point(|other| *other < value) * BINS / values.len().max(1),
        TargetRef::Response(_) => 0,
    };
    rows.targets().map(stratum).collect()
}

/// Rows that belong together, the largest sets first, otherwise in the order of a keyed hash.
fn clusters(rows: &Rows, seed: u64) -> Vec<Vec<usize>> {
    let mut roots: Vec<usize> = (0..rows.len()).collect();
    let (mut by_text, mut by_group) = (HashMap::new(), HashMap::new());
    for row in 0..rows.len() {
        join(&mut roots, row, *by_text.entry(rows.text_number(row)).or_insert(row));
        if let Some(group) = rows.group_number(row) {
            join(&mut roots, row, *by_group.entry(group).or_insert(row));
        }
    }
    let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in 0..rows.len() {
        sets.entry(root(&mut roots, row)).or_default().push(row);
    }
    let key = |row: &usize| {
        let mut hasher = blake3::Hasher::new_derive_key("fedtune split v2");
        hasher.update(&seed.to_le_bytes());
        match rows.group(*row) {
            Some(group) => hasher.update(group.as_bytes()),
            None => hasher.update(rows.identity(*row)),
        };
        *hasher.finalize().as_bytes()
    };
    let mut sets: Vec<Vec<usize>> = sets.into_values().collect();
    sets.sort_by_cached_key(|set| (usize::MAX - set.len(), set.iter().map(key).min()));
    sets
}

fn root(roots: &mut [usize], mut place: usize) -> usize {
    while roots[place] != place {
        roots[place] = roots[roots[place]];
        place = roots[place];
    }
    place
}

fn join(roots: &mut [usize], one: usize, other: usize) {
    let (one, other) = (root(roots, one), root(roots, other));
    roots[one.max(other)] = one.min(other);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::super::{Row, Target};
    use super::*;

    fn row(text: String, target: Target) -> Row {
        Row { content: text.into(), target, ..Row::default() }
    }

    fn rows(count: usize) -> Rows {
        (0..count).map(|i| row(format!("text {i}"), Target::Class(i % 3))).collect()
    }

    #[test]
    fn the_share_is_the_fraction_of_each_label() {
        let (train, validation) = split(rows(10_000), 0.2);
        assert_eq!(train.len() + validation.len(), 10_000);
        for label in 0..3 {
            let found = validation.labels().filter(|found| *found == label).count();
            assert!((665..=668).contains(&found), "{found}");
        }
        assert!(split(rows(10), 0.0).1.is_empty());
        assert_eq!(split(rows(1), 0.89).0.len(), 1);
    }

    #[test]
    fn rare_labels_are_spread_together() {
        let rows: Rows = (0..200).map(|i| row(format!("t{i}"), Target::Class(i / 2))).collect();
        let validation = split(rows, 0.2).1.len();
        assert!((36..=44).contains(&validation), "{validation}");
    }

    #[test]
    fn numbers_are_spread_by_tenths_and_sets_by_their_rarest_label() {
        let values: Rows =
            (0..1000u16).map(|i| row(format!("t{i}"), Target::Value(f32::from(i * 7 % 1000).powi(3)))).collect();
        let mut found: Vec<f64> = split(values, 0.2)
            .1
            .targets()
            .map(|target| {
                let TargetRef::Value(value) = target else { panic!("numbers stay numbers") };
                f64::from(value).cbrt()
            })
            .collect();
        found.sort_by(f64::total_cmp);
        for (tenth, part) in found.chunks(20).enumerate() {
            let middle = part.iter().sum::<f64>() / part.len() as f64;
            assert!((middle - (50.0 + 100.0 * tenth as f64)).abs() < 25.0, "{tenth}: {middle}");
        }
        // Every row has the label 0, one in ten has the label 1 too.
        let sets: Rows = (0..400u16)
            .map(|i| row(format!("t{i}"), Target::Set(if i % 10 == 0 { vec![0, 1] } else { vec![0] })))
            .collect();
        let (_, validation) = split(sets, 0.25);
        let rare = validation.targets().filter(|target| *target == TargetRef::Set(&[0, 1])).count();
        assert!(validation.len() == 100 && rare == 10, "{} {rare}", validation.len());
    }

    #[test]
    fn another_seed_gives_other_folds() {
        assert_eq!(folds(&rows(50), 5, 1), folds(&rows(50), 5, 1));
        assert_ne!(folds(&rows(50), 5, 1), folds(&rows(50), 5, 2));
    }

    proptest! {
        #[test]
        fn a_row_is_in_the_same_part_in_any_order(count in 2usize..200, fraction in 0.0..0.9f64, turn in 0usize..200) {
            let (train, validation) = split(rows(count), fraction);
            let turned = (0..count).map(|row| rows(count).row((row + turn) % count).unwrap()).collect();
            let (train_2, validation_2) = split(turned, fraction);
            let sorted = |part: &Rows| {
                let contents = part.contents(0..part.len()).unwrap();
                let mut texts: Vec<String> = contents.iter().map(|content| content.texts().concat()).collect();
                texts.sort();
                texts
            };
            prop_assert_eq!(sorted(&train), sorted(&train_2));
            prop_assert_eq!(sorted(&validation), sorted(&validation_2));
        }

        #[test]
        fn folds_are_as_large_and_as_mixed_as_each_other(
            labels in proptest::collection::vec(0usize..4, 1..300), count in 1usize..8, seed: u64,
        ) {
            let rows: Rows = labels
                .iter()
                .enumerate()
                .map(|(i, label)| row(format!("t{i}"), Target::Class(*label)))
                .collect();
            let found = folds(&rows, count, seed);
            for label in 0..4 {
                let size = |fold: usize| {
                    rows.labels().zip(&found).filter(|(row, part)| *row == label && **part == fold).count()
                };
                let sizes: Vec<usize> = (0..count).map(size).collect();
                prop_assert!(sizes.iter().max() <= sizes.iter().min().map(|least| least + 2).as_ref(), "{:?}", sizes);
            }
        }

        #[test]
        fn neither_a_text_nor_a_group_is_in_two_parts(
            drawn in proptest::collection::vec((0usize..30, 0usize..3, proptest::option::of(0usize..20)), 1..120),
            count in 2usize..6,
        ) {
            let rows: Rows = drawn
                .iter()
                .enumerate()
                .map(|(i, (text, label, group))| Row {
                    content: if i % 2 == 0 { format!("Text {text}") } else { format!(" text  {text}") }.into(),
                    target: Target::Class(*label),
                    group: group.map(|group| group.to_string()),
                    ..Row::default()
                })
                .collect();
            let found = folds(&rows, count, 7);
            for (i, one) in drawn.iter().enumerate() {
                for (j, other) in drawn.iter().enumerate().take(i) {
                    if one.0 == other.0 || (one.2.is_some() && one.2 == other.2) {
                        prop_assert_eq!(found[i], found[j]);
                    }
                }
            }
        }
    }
}
