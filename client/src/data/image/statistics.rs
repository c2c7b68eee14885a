//! Mean and deviation of each colour channel over a site's own images.

use super::Pixels;

/// Sums over images, exact whatever their order: the sums of parts, added, are those of the whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelStatistics {
    /// Pixels counted.
    pixels: u64,
    sums: [u128; 3],
    squares: [u128; 3],
}

impl ChannelStatistics {
    /// Counts an image. Each pixel counts the same, so images should have the size that the network gets
    /// (see [`Preparation::fit`](super::Preparation::fit)).
    pub fn add(&mut self, image: &Pixels) {
        // 2^25 pixels of at most 255² fit.
        let (mut sums, mut squares) = ([0u64; 3], [0u64; 3]);
        for pixel in image.rgb.as_chunks::<3>().0 {
            for ((value, sum), square) in pixel.iter().zip(&mut sums).zip(&mut squares) {
                let value = u64::from(*value);
                *sum += value;
                *square += value * value;
            }
        }
        let part = Self {
            pixels: u64::from(image.width) * u64::from(image.height),
            sums: sums.map(u128::from),
            squares: squares.map(u128::from),
        };
        self.merge(&part);
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.pixels += other.pixels;
        for channel in 0..3 {
            self.sums[channel] += other.sums[channel];
            self.squares[channel] += other.squares[channel];
        }
    }

    /// Mean and standard deviation (of the population) of red, green and blue, as values from 0 to 1; `None` of no pixel.
    pub fn mean_and_deviation(&self) -> Option<([f64; 3], [f64; 3])> {
        if self.pixels == 0 {
            return None;
        }
        let count = u128::from(self.pixels);
        let mean = self.sums.map(|sum| sum as f64 / (255.0 * count as f64));
        // n·Σx² − (Σx)² is exact and not negative, by Cauchy and Schwarz.
        let deviation = [0, 1, 2].map(|channel| {
            let spread = count * self.squares[channel] - self.sums[channel] * self.sums[channel];
            (spread as f64).sqrt() / (255.0 * count as f64)
        });
        Some((mean, deviation))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        let mut statistics = ChannelStatistics::default();
        assert_eq!(statistics.mean_and_deviation(), None);
        statistics.add(&Pixels::new(2, 1, vec![0, 255, 51, 255, 255, 102]).unwrap());
        let (mean, deviation) = statistics.mean_and_deviation().unwrap();
        let near = |found: [f64; 3], expected: [f64; 3]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        near(mean, [0.5, 1.0, 0.3]);
        near(deviation, [0.5, 0.0, 0.1]);
    }

    proptest! {
        #[test]
        fn parts_add_up_and_two_passes_agree(values in proptest::collection::vec(any::<[u8; 3]>(), 2..200)) {
            let image = |values: &[[u8; 3]]| Pixels::new(values.len() as u32, 1, values.as_flattened().to_vec()).unwrap();
            let mut whole = ChannelStatistics::default();
            whole.add(&image(&values));
            let (mut first, mut second) = (ChannelStatistics::default(), ChannelStatistics::default());
            first.add(&image(&values[..1]));
            second.add(&image(&values[1..]));
            second.merge(&first);
            prop_assert_eq!(whole, second);
            let (mean, deviation) = whole.mean_and_deviation().unwrap();
            for channel in 0..3 {
                let of = |f: &dyn Fn(f64) -> f64| {
                    values.iter().map(|pixel| f(f64::from(pixel[channel]) / 255.0)).sum::<f64>() / values.len() as f64
                };
                let expected = of(&|value| value);
                prop_assert!((mean[channel] - expected).abs() < 1e-12);
                let variance = of(&|value| (value - expected).powi(2));
                prop_assert!((deviation[channel] - variance.sqrt()).abs() < 1e-9);
            }
        }
    }
}
