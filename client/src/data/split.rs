//! Training and validation parts.

use super::Row;

/// Splits off about `validation_fraction` of the rows. Which part a row is in follows from a hash of its text and
/// label, so it does not change with the order of the rows or when others come and go, and equal rows stay together.
/// Order is kept. When a fraction above zero would leave training empty, everything is training.
pub fn split(rows: Vec<Row>, validation_fraction: f64) -> (Vec<Row>, Vec<Row>) {
    let limit = (validation_fraction.clamp(0.0, 1.0) * 2f64.powi(64)) as u128;
    let (validation, train): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| u128::from(place(row)) < limit);
    if train.is_empty() { (validation, train) } else { (train, validation) }
}

fn place(row: &Row) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("fedtune validation split v1");
    hasher.update(&(row.label as u64).to_le_bytes());
    hasher.update(row.text.as_bytes());
    let mut place = [0; 8];
    hasher.finalize_xof().fill(&mut place);
    u64::from_le_bytes(place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(count: usize) -> Vec<Row> {
        (0..count).map(|i| Row { text: format!("text {i}"), label: i % 3 }).collect()
    }

    #[test]
    fn the_share_is_about_the_fraction() {
        let (train, validation) = split(rows(10_000), 0.2);
        assert_eq!(train.len() + validation.len(), 10_000);
        assert!((1800..2200).contains(&validation.len()), "{}", validation.len());
        assert!(split(rows(10), 0.0).1.is_empty());
        assert_eq!(split(rows(1), 0.89).0.len(), 1);
    }

    proptest! {
        #[test]
        fn a_row_is_in_the_same_part_in_any_company(count in 2usize..200, fraction in 0.0..0.9f64, turn in 0usize..200) {
            let (train, validation) = split(rows(count), fraction);
            let mut turned = rows(count);
            turned.rotate_left(turn % count);
            let (mut train_2, mut validation_2) = split(turned, fraction);
            let key = |row: &Row| row.text.clone();
            let (mut train, mut validation) = (train, validation);
            for part in [&mut train, &mut validation, &mut train_2, &mut validation_2] {
                part.sort_by_key(key);
            }
            prop_assert_eq!(train, train_2);
            prop_assert_eq!(validation, validation_2);
        }
    }
}
