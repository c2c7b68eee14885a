//! How far the updates of a round lie from each other: what robust rules go by, from one pass over their bytes.

/// The place of the zero update among the points.
pub(super) const ZERO: usize = 0;

/// Values summed side by side.
const LANES: usize = 8;

/// Squared Euclidean distances between points: the zero update, every update in site order from 1 on, and, where it is asked
/// for, the median of each value as the last.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distances {
    updates: usize,
    with_median: bool,
    squares: Vec<f64>,
}

impl Distances {
    /// All zero, before any value was seen.
    pub(super) fn new(updates: usize, with_median: bool) -> Self {
        let points = 1 + updates + usize::from(with_median);
        Self { updates, with_median, squares: vec![0.0; points * points] }
    }

    /// How many updates there are.
    pub(super) fn updates(&self) -> usize {
        self.updates
    }

    /// The place of the median.
    pub(super) fn median(&self) -> usize {
        self.updates + 1
    }

    fn points(&self) -> usize {
        1 + self.updates + usize::from(self.with_median)
    }

    /// The squared distance of two points.
    pub(super) fn square(&self, one: usize, other: usize) -> f64 {
        self.squares[one * self.points() + other]
    }

    /// The distance of two points.
    pub(super) fn between(&self, one: usize, other: usize) -> f64 {
        self.square(one, other).sqrt()
    }

    /// Takes the same window of every update into account.
    pub(super) fn see(&mut self, updates: &[Vec<f32>]) {
        let points = self.points();
        let length = updates.first().map_or(0, Vec::len);
        let zero = vec![0.0; length];
        let median: Vec<f32> = match self.with_median {
            true => super::combine::medians(updates).into_iter().map(|value| value as f32).collect(),
            false => Vec::new(),
        };
        let of = |point: usize| match point {
            ZERO => &zero,
            point => updates.get(point - 1).unwrap_or(&median),
        };
        for one in 0..points {
            for other in 0..one {
                let square = square_of_difference(of(one), of(other));
                self.squares[one * points + other] += square;
                self.squares[other * points + one] += square;
            }
        }
    }

    /// Adds what was seen elsewhere.
    pub(super) fn merge(&mut self, other: &Self) {
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, square)| *sum += square);
    }
}

fn square_of_difference(one: &[f32], other: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (ones, others) = (one.chunks(LANES), other.chunks(LANES));
    for (one, other) in ones.zip(others) {
        for (sum, (a, b)) in sums.iter_mut().zip(one.iter().zip(other)) {
            let difference = f64::from(*a) - f64::from(*b);
            *sum += difference * difference;
        }
    }
    sums.iter().sum()
}
