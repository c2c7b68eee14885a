//! A perceptron with one hidden layer (64-32-10, ReLU, softmax cross-entropy), trained by plain SGD.

use chacha20::ChaCha8Rng;
use rand::RngExt;

use crate::digits::{CLASSES, Digits, PIXELS};

/// Hidden units.
const HIDDEN: usize = 32;

/// The tensors of a network and their shapes, in the order of its parameters. Weights are `[inputs, outputs]`.
pub(crate) const TENSORS: [(&str, &[usize]); 4] = [
    ("hidden.weight", &[PIXELS, HIDDEN]),
    ("hidden.bias", &[HIDDEN]),
    ("output.weight", &[HIDDEN, CLASSES]),
    ("output.bias", &[CLASSES]),
];

/// How many parameters it has.
pub(crate) const PARAMETERS: usize = (PIXELS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES;

/// How sites train.
pub(crate) struct Training {
    pub(crate) rate: f32,
    pub(crate) batch: usize,
    pub(crate) epochs: usize,
}

/// The parameters, in the order of [`TENSORS`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network(pub(crate) Vec<f32>);

impl Network {
    /// Uniform weights (Glorot and Bengio 2010), biases of zero.
    pub(crate) fn first(random: &mut ChaCha8Rng) -> Self {
        let mut parameters = Vec::with_capacity(PARAMETERS);
        for (_, shape) in TENSORS {
            match *shape {
                [inputs, outputs] => {
                    let limit = (6.0 / (inputs + outputs) as f32).sqrt();
                    parameters.extend((0..inputs * outputs).map(|_| random.random_range(-limit..limit)));
                }
                _ => parameters.extend(shape.iter().flat_map(|length| vec![0.0; *length])),
            }
        }
        Self(parameters)
    }

    /// Trains on these rows, as `label` has them.
    pub(crate) fn train(
        &mut self,
        digits: &Digits,
        rows: &[usize],
        label: impl Fn(usize) -> usize,
        how: &Training,
        random: &mut ChaCha8Rng,
    ) {
        let mut order = rows.to_vec();
        let mut gradient = vec![0.0; PARAMETERS];
        for _ in 0..how.epochs {
            for last in (1..order.len()).rev() {
                order.swap(last, random.random_range(0..=last as u64) as usize);
            }
            for batch in order.chunks(how.batch) {
                gradient.fill(0.0);
                for row in batch {
                    self.add_gradient(&digits.pixels[*row], label(digits.labels[*row]), &mut gradient);
                }
                let rate = how.rate / batch.len() as f32;
                self.0.iter_mut().zip(&gradient).for_each(|(value, slope)| *value -= rate * slope);
            }
        }
    }

    /// The share of digits that it names rightly; one that is not finite names nothing.
    pub(crate) fn accuracy(&self, digits: &Digits) -> f64 {
        let right = digits.pixels.iter().zip(&digits.labels).filter(|(pixels, label)| {
            let (_, scores) = self.forward(pixels);
            scores.iter().enumerate().all(|(class, score)| class == **label || *score < scores[**label])
        });
        right.count() as f64 / digits.labels.len() as f64
    }

    /// The hidden layer's output, and the scores.
    fn forward(&self, pixels: &[f32; PIXELS]) -> ([f32; HIDDEN], [f32; CLASSES]) {
        let (hidden_weight, hidden_bias, output_weight, output_bias) = parts(&self.0);
        let mut hidden = [0.0; HIDDEN];
        hidden.copy_from_slice(hidden_bias);
        add_product(&mut hidden, pixels, hidden_weight);
        // By the comparison NaN stays, and is seen.
        hidden.iter_mut().filter(|value| **value < 0.0).for_each(|value| *value = 0.0);
        let mut scores = [0.0; CLASSES];
        scores.copy_from_slice(output_bias);
        add_product(&mut scores, &hidden, output_weight);
        (hidden, scores)
    }

    /// Adds the gradient of one digit's loss.
    fn add_gradient(&self, pixels: &[f32; PIXELS], label: usize, gradient: &mut [f32]) {
        let (hidden, scores) = self.forward(pixels);
        let mut of_scores = softmax(scores);
        of_scores[label] -= 1.0;
        let (_, _, output_weight, _) = parts(&self.0);
        let mut of_hidden = [0.0; HIDDEN];
        for ((slope, value), weights) in of_hidden.iter_mut().zip(&hidden).zip(output_weight.chunks_exact(CLASSES)) {
            if *value > 0.0 {
                *slope = weights.iter().zip(&of_scores).map(|(weight, slope)| weight * slope).sum();
            }
        }
        let (of_inner, of_outer) = gradient.split_at_mut((PIXELS + 1) * HIDDEN);
        add_layer(of_inner, pixels, &of_hidden);
        add_layer(of_outer, &hidden, &of_scores);
    }

    /// Cross-entropy of one digit.
    #[cfg(test)]
    fn loss(&self, pixels: &[f32; PIXELS], label: usize) -> f64 {
        -f64::from(softmax(self.forward(pixels).1)[label]).ln()
    }
}

/// The parameters of each tensor.
fn parts(parameters: &[f32]) -> (&[f32], &[f32], &[f32], &[f32]) {
    let (inner, outer) = parameters.split_at((PIXELS + 1) * HIDDEN);
    let ((hidden_weight, hidden_bias), (output_weight, output_bias)) =
        (inner.split_at(PIXELS * HIDDEN), outer.split_at(HIDDEN * CLASSES));
    (hidden_weight, hidden_bias, output_weight, output_bias)
}

/// `outputs += inputs weights`.
fn add_product(outputs: &mut [f32], inputs: &[f32], weights: &[f32]) {
    for (input, weights) in inputs.iter().zip(weights.chunks_exact(outputs.len())) {
        // A quarter of the pixels, and most hidden units.
        if *input != 0.0 {
            outputs.iter_mut().zip(weights).for_each(|(output, weight)| *output += input * weight);
        }
    }
}

/// Adds a layer's gradient, of its weight and then of its bias.
fn add_layer(gradient: &mut [f32], inputs: &[f32], of_outputs: &[f32]) {
    let (of_weight, of_bias) = gradient.split_at_mut(inputs.len() * of_outputs.len());
    for (input, of_weights) in inputs.iter().zip(of_weight.chunks_exact_mut(of_outputs.len())) {
        if *input != 0.0 {
            of_weights.iter_mut().zip(of_outputs).for_each(|(sum, slope)| *sum += input * slope);
        }
    }
    of_bias.iter_mut().zip(of_outputs).for_each(|(sum, slope)| *sum += slope);
}

fn softmax(scores: [f32; CLASSES]) -> [f32; CLASSES] {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = scores.map(|score| (score - most).exp());
    let sum: f32 = powers.iter().sum();
    powers.map(|power| power / sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::stream;

    fn digit(seed: u64) -> [f32; PIXELS] {
        let mut random = stream(seed, [9, 0]);
        std::array::from_fn(|_| random.random_range(0.0..1.0))
    }

    #[test]
    fn tensors_hold_all_parameters() {
        let of_tensors = TENSORS.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(of_tensors, PARAMETERS);
        assert_eq!(Network::first(&mut stream(1, [0, 0])).0.len(), PARAMETERS);
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let (network, pixels, label) = (Network::first(&mut stream(1, [0, 0])), digit(1), 3);
        let mut gradient = vec![0.0; PARAMETERS];
        network.add_gradient(&pixels, label, &mut gradient);
        let step = 1e-2_f32;
        let mut largest = 0.0_f64;
        for (place, found) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut moved = network.clone();
                moved.0[place] += by;
                moved.loss(&pixels, label)
            };
            let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
            let found = f64::from(*found);
            assert!((slope - found).abs() < 2e-3 + 2e-2 * slope.abs(), "{place}: {found} is not {slope}");
            largest = largest.max(found.abs());
        }
        assert!(largest > 0.1, "{largest}");
    }

    #[test]
    fn it_learns_what_it_is_shown_and_names_nothing_when_it_is_not_finite() {
        let digits = Digits { pixels: (0..30).map(digit).collect(), labels: (0..30).map(|i| i % CLASSES).collect() };
        let rows: Vec<usize> = (0..30).collect();
        let how = Training { rate: 0.3, batch: 4, epochs: 300 };
        let first = Network::first(&mut stream(1, [0, 0]));
        let (mut right, mut flipped) = (first.clone(), first);
        right.train(&digits, &rows, |label| label, &how, &mut stream(1, [1, 0]));
        flipped.train(&digits, &rows, |label| CLASSES - 1 - label, &how, &mut stream(1, [1, 0]));
        assert!(right.accuracy(&digits) > 0.9, "{}", right.accuracy(&digits));
        assert!(flipped.accuracy(&digits) < 0.1, "{}", flipped.accuracy(&digits));
        right.0[0] = f32::NAN;
        assert!(right.accuracy(&digits) == 0.0);
    }
}
