//! The rules by which updates are combined, as they follow from weights and distances alone.

use std::collections::BTreeMap;

use fedtune_config::job::{Aggregation, Rule, Weighting};

use super::combine::Combination;
use super::geometry::{Distances, ZERO};

/// How often centered clipping moves its centre (Karimireddy et al. 2021 use 1 to 5).
const CLIPPING_STEPS: usize = 3;

/// Most steps towards the geometric median; they cost no reading.
const MEDIAN_STEPS: usize = 1000;

/// The distance below which an update counts as this far from the geometric median (ν of Pillutla et al. 2022).
const NEAREST: f64 = 1e-6;

/// An update so many times as long as the median has no part in centered clipping and the geometric median, by whose formulas
/// it has next to none. What [`squares_from`] adds and takes away again for it is as long as itself, and would leave nothing but
/// rounding of the distances of all others, by which it could then move the state as far as it likes.
const REACH: f64 = 1e6;

/// The integer weight of each site's update, by its examples.
pub fn weights(aggregation: &Aggregation, examples: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let cap = match aggregation.weighting {
        Some(Weighting::Uniform) => 1,
        Some(Weighting::Capped) => aggregation.examples_cap.unwrap_or_else(|| 3 * lower_median(examples)),
        Some(Weighting::Examples) | None => u64::MAX,
    };
    examples.iter().map(|(site, examples)| (site.clone(), (*examples).min(cap.max(1)))).collect()
}

fn lower_median(examples: &BTreeMap<String, u64>) -> u64 {
    let mut sorted: Vec<u64> = examples.values().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(1)
}

/// Whether a rule goes by distances, and whether by those from the median too.
pub(super) fn needs(rule: Rule) -> Option<bool> {
    match rule {
        Rule::Mean | Rule::Median | Rule::TrimmedMean => None,
        Rule::GeometricMedian => Some(true),
        Rule::NormClipping | Rule::CenteredClipping | Rule::Krum | Rule::MultiKrum | Rule::Bulyan => Some(false),
    }
}

/// What a rule makes of updates of these weights.
///
/// # Errors
/// There are fewer updates than the rule is defined for.
pub(super) fn combination(
    aggregation: &Aggregation,
    weights: &[u64],
    distances: Option<&Distances>,
) -> Result<Combination, String> {
    let (rule, count) = (aggregation.rule, weights.len());
    let malicious = aggregation.malicious.unwrap_or(0);
    let needed = rule.updates_min(malicious);
    if count < needed {
        return Err(format!("\"{rule}\" with {malicious} malicious needs {needed} updates; there are {count}"));
    }
    let linear = |coefficients: Vec<f64>| Combination::Linear { coefficients, divisor: 1.0 };
    let equal = |chosen: &[usize]| Combination::Linear {
        coefficients: (0..count).map(|index| f64::from(u8::from(chosen.contains(&index)))).collect(),
        divisor: chosen.len() as f64,
    };
    let weights: Vec<f64> = weights.iter().map(|weight| *weight as f64).collect();
    let total: f64 = weights.iter().sum();
    Ok(match (rule, distances) {
        (Rule::Median, _) => Combination::Median,
        (Rule::TrimmedMean, _) => {
            Combination::Trimmed((aggregation.trim.unwrap_or_default() * count as f64 + 1e-9).floor() as usize)
        }
        (Rule::NormClipping, Some(distances)) => {
            let norms: Vec<f64> = (1..=count).map(|update| distances.between(ZERO, update)).collect();
            let limit = aggregation.norm_bound.unwrap_or_else(|| median(norms.clone()));
            let clipped = weights.iter().zip(&norms).map(|(weight, norm)| weight * shrink(limit, *norm));
            Combination::Linear { coefficients: clipped.collect(), divisor: total }
        }
        (Rule::CenteredClipping, Some(distances)) => {
            linear(centered(distances, aggregation.norm_bound, CLIPPING_STEPS))
        }
        (Rule::Krum, Some(distances)) => equal(&nearest(distances, malicious)[..1]),
        (Rule::MultiKrum, Some(distances)) => equal(&nearest(distances, malicious)[..count - malicious]),
        (Rule::Bulyan, Some(distances)) => {
            let chosen = count - 2 * malicious;
            Combination::NearMedian {
                of: chosen_one_by_one(distances, malicious, chosen),
                keep: chosen - 2 * malicious,
            }
        }
        (Rule::GeometricMedian, Some(distances)) => linear(geometric_median(distances, &weights)),
        // The mean; the other rules are never without distances, see `needs`.
        _ => Combination::Linear { coefficients: weights, divisor: total },
    })
}

/// What a vector of a norm is multiplied by so that its norm is at most the limit.
fn shrink(limit: f64, norm: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

/// Whether each update is within [`REACH`].
fn in_reach(distances: &Distances) -> Vec<bool> {
    let norms: Vec<f64> = (1..=distances.updates()).map(|update| distances.between(ZERO, update)).collect();
    let most = REACH * median(norms.clone());
    norms.into_iter().map(|norm| norm <= most).collect()
}

/// The squared distance of every update from `sum(share_j * point_j)`, whose shares add up to 1, by
/// `sum_j s_j D_kj - 1/2 sum_ij s_i s_j D_ij`. Shares are those of the zero update and of every update.
fn squares_from(distances: &Distances, shares: &[f64]) -> Vec<f64> {
    let points = shares.len();
    let weighted = |point: usize| (0..points).map(|other| shares[other] * distances.square(point, other)).sum::<f64>();
    let spread: f64 = (0..points).map(|point| shares[point] * weighted(point)).sum::<f64>() / 2.0;
    (1..points).map(|update| (weighted(update) - spread).max(0.0)).collect()
}

/// `v += mean(min(1, τ / |Δ_k − v|) (Δ_k − v))` from zero on, as coefficients of the updates; without a norm, τ is the median
/// of the distances at each step.
fn centered(distances: &Distances, norm: Option<f64>, steps: usize) -> Vec<f64> {
    let count = distances.updates();
    let in_reach = in_reach(distances);
    let mut shares = vec![0.0; count + 1];
    shares[ZERO] = 1.0;
    for _ in 0..steps {
        let far: Vec<f64> = squares_from(distances, &shares).into_iter().map(f64::sqrt).collect();
        let limit = norm.unwrap_or_else(|| median(far.clone()));
        let pull = |(far, in_reach): (&f64, &bool)| if *in_reach { shrink(limit, *far) / count as f64 } else { 0.0 };
        let pulls: Vec<f64> = far.iter().zip(&in_reach).map(pull).collect();
        let kept = 1.0 - pulls.iter().sum::<f64>();
        shares.iter_mut().for_each(|share| *share *= kept);
        shares.iter_mut().skip(1).zip(&pulls).for_each(|(share, pull)| *share += pull);
    }
    shares.split_off(1)
}

/// Weiszfeld's steps from the median of each value on, `z = sum(b_k Δ_k) / sum(b_k)`, `b_k = p_k / max(ν, |Δ_k − z|)`.
fn geometric_median(distances: &Distances, weights: &[f64]) -> Vec<f64> {
    let count = distances.updates();
    let reach = in_reach(distances);
    let weights: Vec<f64> =
        weights.iter().zip(reach).map(|(weight, in_reach)| if in_reach { *weight } else { 0.0 }).collect();
    let mut far: Vec<f64> = (1..=count).map(|update| distances.between(distances.median(), update)).collect();
    let mut shares = vec![0.0; count + 1];
    for _ in 0..MEDIAN_STEPS {
        let pulls: Vec<f64> = weights.iter().zip(&far).map(|(weight, far)| weight / far.max(NEAREST)).collect();
        let total: f64 = pulls.iter().sum();
        let next = std::iter::once(0.0).chain(pulls.iter().map(|pull| pull / total));
        let mut moved = 0.0_f64;
        for (share, next) in shares.iter_mut().zip(next) {
            moved = moved.max((*share - next).abs());
            *share = next;
        }
        if moved < 1e-12 {
            break;
        }
        far = squares_from(distances, &shares).into_iter().map(f64::sqrt).collect();
    }
    shares.split_off(1)
}

/// The updates by Krum's score, the sum of the squared distances to the `n − f − 2` nearest others; the best first.
fn nearest(distances: &Distances, malicious: usize) -> Vec<usize> {
    let all: Vec<usize> = (0..distances.updates()).collect();
    let mut scored = scores(distances, &all, malicious);
    scored.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    scored.into_iter().map(|(update, _)| update).collect()
}

fn scores(distances: &Distances, among: &[usize], malicious: usize) -> Vec<(usize, f64)> {
    let neighbours = among.len().saturating_sub(malicious + 2).max(1);
    let score = |update: usize| {
        let others = among.iter().filter(|other| **other != update);
        let mut squares: Vec<f64> = others.map(|other| distances.square(update + 1, other + 1)).collect();
        squares.sort_unstable_by(f64::total_cmp);
        squares.iter().take(neighbours).sum()
    };
    among.iter().map(|update| (*update, score(*update))).collect()
}

/// The updates that Krum chooses when it is asked again and again among those that are left.
fn chosen_one_by_one(distances: &Distances, malicious: usize, count: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..distances.updates()).collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        let scored = scores(distances, &left, malicious);
        let Some((best, _)) = scored.into_iter().min_by(|(_, one), (_, other)| one.total_cmp(other)) else { break };
        left.retain(|update| *update != best);
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ROWS: [[f32; 3]; 7] = [
        [1.0, 0.0, 2.0],
        [1.1, 0.1, 1.9],
        [0.9, -0.1, 2.1],
        [1.2, 0.05, 2.0],
        [1.0, 0.1, 1.8],
        [0.8, 0.0, 2.2],
        [50.0, -50.0, 50.0],
    ];

    fn distances() -> Distances {
        let rows: Vec<Vec<f32>> = ROWS.iter().map(|row| row.to_vec()).collect();
        let mut distances = Distances::new(rows.len(), true);
        // In windows, of which the last is shorter.
        for window in [0..2, 2..3] {
            let cut: Vec<Vec<f32>> = rows.iter().map(|row| row[window.clone()].to_vec()).collect();
            distances.see(&cut);
        }
        distances
    }

    fn sum(coefficients: &[f64]) -> Vec<f64> {
        (0..3).map(|i| coefficients.iter().zip(ROWS).map(|(c, row)| c * f64::from(row[i])).sum()).collect()
    }

    #[test]
    fn krum_scores_are_the_reference_values() {
        let found = scores(&distances(), &[0, 1, 2, 3, 4, 5, 6], 1);
        for ((_, found), expected) in found.iter().zip([0.1525, 0.1925, 0.3025, 0.27, 0.2925, 0.5025, 28_796.152_5]) {
            assert!((found - expected).abs() < 1e-5 * expected, "{found} is not {expected}");
        }
        assert_eq!(nearest(&distances(), 1)[..4], [0, 1, 3, 4]);
    }

    #[test]
    fn centered_clipping_gives_the_reference_values() {
        for (steps, expected) in [(1, [0.465_688, -0.072_234, 0.846_399]), (5, [1.095_645, -0.073_23, 2.093_091])] {
            let found = sum(&centered(&distances(), Some(1.0), steps));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 2e-6, "{steps} steps: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn an_update_of_any_length_moves_robust_rules_no_further() {
        // Two of seven; of the others, what is farthest from zero has the norm 2.4.
        for length in [1e2_f32, 1e5, 1e7, 1e12, 1e20, 1e30] {
            let mut rows: Vec<Vec<f32>> = ROWS[..5].iter().map(|row| row.to_vec()).collect();
            rows.push(vec![-length, length, -length]);
            rows.push(vec![-length, length, 0.5 * length]);
            let mut distances = Distances::new(rows.len(), true);
            distances.see(&rows);
            for rule in [Rule::NormClipping, Rule::CenteredClipping, Rule::GeometricMedian] {
                let aggregation = Aggregation { rule, ..Aggregation::default() };
                let Combination::Linear { coefficients, divisor } =
                    combination(&aggregation, &[1; 7], Some(&distances)).unwrap()
                else {
                    panic!("{rule} is linear")
                };
                let share =
                    |i: usize| coefficients.iter().zip(&rows).map(move |(c, row)| c / divisor * f64::from(row[i]));
                let combined: Vec<f64> = (0..3).map(|i| share(i).sum()).collect();
                let far = combined.iter().zip(ROWS[0]).map(|(x, row)| (x - f64::from(row)).powi(2)).sum::<f64>().sqrt();
                assert!(far < 2.4, "{rule}, {length:e}: {combined:?}");
            }
        }
    }

    #[test]
    fn an_update_of_zero_norm_divides_nothing_by_zero() {
        let mut distances = Distances::new(3, true);
        distances.see(&[vec![0.0; 4], vec![0.0; 4], vec![0.0; 4]]);
        for rule in [Rule::NormClipping, Rule::CenteredClipping, Rule::GeometricMedian] {
            let aggregation = Aggregation { rule, ..Aggregation::default() };
            let Combination::Linear { coefficients, divisor } =
                combination(&aggregation, &[1, 2, 3], Some(&distances)).unwrap()
            else {
                panic!("{rule} is linear")
            };
            assert!(coefficients.iter().all(|c| c.is_finite()) && divisor > 0.0, "{rule}: {coefficients:?}");
        }
    }
}
