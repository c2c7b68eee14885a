//! How the updates of a round become one update, value by value, once it is known how.

/// What is done with the updates, in site order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Combination {
    /// `sum(c_k * delta_k) / divisor`, in f64.
    Linear {
        /// One for each update.
        coefficients: Vec<f64>,
        /// Their unit.
        divisor: f64,
    },
    /// The median of each value.
    Median,
    /// The mean of each value without so many of the largest and of the smallest.
    Trimmed(usize),
    /// Of some of the updates, the mean of so many of each value that are nearest to their median.
    NearMedian {
        /// Which updates.
        of: Vec<usize>,
        /// How many values.
        keep: usize,
    },
}

impl Combination {
    /// The share of each update in what comes out, or `None` where each value has its own.
    pub(super) fn shares(&self, updates: usize) -> Vec<Option<f64>> {
        match self {
            Self::Linear { coefficients, divisor } => coefficients.iter().map(|c| Some(c / divisor)).collect(),
            Self::Median | Self::Trimmed(_) => vec![None; updates],
            Self::NearMedian { of, .. } => {
                (0..updates).map(|i| if of.contains(&i) { None } else { Some(0.0) }).collect()
            }
        }
    }
}

/// Combines the same window of every update.
pub(super) fn combine(combination: &Combination, updates: &[Vec<f32>]) -> Vec<f64> {
    match combination {
        Combination::Linear { coefficients, divisor } => {
            let mut sum = vec![0.0; updates.first().map_or(0, Vec::len)];
            for (update, coefficient) in updates.iter().zip(coefficients) {
                add(&mut sum, update, *coefficient);
            }
            sum.iter_mut().for_each(|sum| *sum /= divisor);
            sum
        }
        Combination::Median => medians(updates),
        Combination::Trimmed(trimmed) => each_value(updates, |values| {
            values.sort_unstable_by(f32::total_cmp);
            mean(&values[*trimmed..values.len() - trimmed])
        }),
        Combination::NearMedian { of, keep } => {
            let chosen: Vec<&Vec<f32>> = of.iter().filter_map(|index| updates.get(*index)).collect();
            each_value(&chosen, |values| {
                let median = median(values);
                let far = |value: &f32| (f64::from(*value) - median).abs();
                values.sort_by(|a, b| far(a).total_cmp(&far(b)));
                mean(&values[..(*keep).min(values.len())])
            })
        }
    }
}

/// `sum += coefficient * update`.
fn add(sum: &mut [f64], update: &[f32], coefficient: f64) {
    for (sum, value) in sum.iter_mut().zip(update) {
        *sum += coefficient * f64::from(*value);
    }
}

/// The median of each value.
pub(super) fn medians(updates: &[Vec<f32>]) -> Vec<f64> {
    each_value(updates, median)
}

/// Makes one number of what the updates have at each place.
fn each_value<U: AsRef<[f32]>>(updates: &[U], make: impl Fn(&mut [f32]) -> f64) -> Vec<f64> {
    let length = updates.first().map_or(0, |update| update.as_ref().len());
    let mut values = vec![0.0; updates.len()];
    (0..length)
        .map(|place| {
            values.iter_mut().zip(updates).for_each(|(value, update)| *value = update.as_ref()[place]);
            make(&mut values)
        })
        .collect()
}

/// The middle value, or the mean of both; the values are sorted.
fn median(values: &mut [f32]) -> f64 {
    values.sort_unstable_by(f32::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => mean(&values[middle - 1..=middle]),
        _ => f64::from(values[middle]),
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64
}
