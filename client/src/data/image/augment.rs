//! Images that differ a little each time they are trained on.
//!
//! What an image becomes depends on seed, round, step and row only. Each kind of change has draws of its own, so that
//! turning one on leaves the others as they were.

use fedtune_config::job::Augmentation as Settings;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::Pixels;
use super::prepare::{Area, Preparation};

/// How training images are changed; as it stands by default, not at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Probability that left and right are swapped.
    pub flip: f64,
    /// Largest rotation about the middle, in degrees either way; up to 45. Corners are filled with the nearest edge.
    pub rotation: f64,
    /// The smallest share of an image's area that is cut out and resized (Szegedy et al. 2014, 1409.4842); 1 is no such
    /// crop, and images are fitted as in evaluation.
    pub crop_scale: f64,
    /// The widest shape of what is cut out, as width over height, and the other way round; 1 or more.
    pub crop_ratio: f64,
    /// Brightness is multiplied by between 1 − this and 1 + this; at most 1.
    pub brightness: f64,
    /// Likewise the distance of each value from the image's mean grey.
    pub contrast: f64,
    /// Likewise the distance of each colour from its grey.
    pub saturation: f64,
    /// Standard deviation of the noise added to each value, as a share of the full range; at most 1.
    pub noise: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            flip: 0.0,
            rotation: 0.0,
            crop_scale: 1.0,
            crop_ratio: 4.0 / 3.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            noise: 0.0,
        }
    }
}

impl From<&Settings> for Augmentation {
    fn from(settings: &Settings) -> Self {
        Self {
            flip: if settings.flip { 0.5 } else { 0.0 },
            rotation: settings.rotate,
            crop_scale: settings.crop,
            brightness: settings.colour,
            contrast: settings.colour,
            saturation: settings.colour,
            noise: settings.noise,
            ..Self::default()
        }
    }
}

/// One use of one image in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Seed of the job.
    pub seed: u64,
    /// Round of the job, counted from 1.
    pub round: u32,
    /// Step inside the round.
    pub step: u64,
    /// The row.
    pub row: u64,
}

/// Kinds of change, each with its draws.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Crop,
    Flip,
    Rotation,
    Colour,
    Noise,
}

impl Use {
    fn draws(&self, kind: Kind) -> chacha20::ChaCha20Rng {
        let mut hasher = blake3::Hasher::new_derive_key("fedtune image augmentation v1");
        for part in [self.seed, u64::from(self.round), self.step, self.row, kind as u64] {
            hasher.update(&part.to_le_bytes());
        }
        chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes())
    }
}

impl Augmentation {
    /// The image fitted to the network's size and changed. Settings out of range change less than they say.
    pub fn fit(&self, image: &Pixels, preparation: &Preparation, at: Use) -> Pixels {
        let mut fitted = match self.area(image, at) {
            Some(area) => preparation.fit_area(image, area),
            None => preparation.fit(image),
        };
        if self.flip > 0.0 && at.draws(Kind::Flip).random_bool(self.flip.min(1.0)) {
            flip(&mut fitted);
        }
        if self.rotation > 0.0 {
            let degrees = at.draws(Kind::Rotation).random_range(-self.rotation..=self.rotation);
            fitted = rotated(&fitted, degrees);
        }
        self.colour(&mut fitted, at);
        if self.noise > 0.0 {
            let mut draws = at.draws(Kind::Noise);
            for value in &mut fitted.rgb {
                let noise: f64 = StandardNormal.sample(&mut draws);
                *value = level(f64::from(*value) + 255.0 * self.noise * noise);
            }
        }
        fitted
    }

    /// What torchvision's `RandomResizedCrop` cuts out, in whole pixels: a share of the area and a shape are drawn until
    /// they fit, ten times; then the largest middle part of an allowed shape.
    fn area(&self, image: &Pixels, at: Use) -> Option<Area> {
        if self.crop_scale >= 1.0 {
            return None;
        }
        let mut draws = at.draws(Kind::Crop);
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        let widest = self.crop_ratio.ln();
        for _ in 0..10 {
            let part = width * height * draws.random_range(self.crop_scale..=1.0);
            let shape = draws.random_range(-widest..=widest).exp();
            let (across, down) = ((part * shape).sqrt().round(), (part / shape).sqrt().round());
            if across >= 1.0 && down >= 1.0 && across <= width && down <= height {
                let left = draws.random_range(0.0..width - across + 1.0).floor();
                let top = draws.random_range(0.0..height - down + 1.0).floor();
                return Some(Area { left, top, width: across, height: down });
            }
        }
        let across = (height * self.crop_ratio).round().clamp(1.0, width);
        let down = (width * self.crop_ratio).round().clamp(1.0, height);
        Some(Area {
            left: ((width - across) / 2.0).floor(),
            top: ((height - down) / 2.0).floor(),
            width: across,
            height: down,
        })
    }

    /// Brightness, then contrast, then saturation, each as torchvision's `ColorJitter` changes it.
    fn colour(&self, image: &mut Pixels, at: Use) {
        let mut draws = at.draws(Kind::Colour);
        // All are drawn, so that one that is off leaves the others as they were.
        let [brightness, contrast, saturation] = [self.brightness, self.contrast, self.saturation]
            .map(|most| 1.0 + most * draws.random_range(-1.0..=1.0f64));
        let pixels = image.rgb.as_chunks_mut::<3>().0;
        if self.brightness > 0.0 {
            let table: [u8; 256] = std::array::from_fn(|value| level(brightness * value as f64));
            pixels.as_flattened_mut().iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
        if self.contrast > 0.0 {
            let mean = pixels.iter().map(grey).sum::<f64>() / pixels.len() as f64;
            let table: [u8; 256] = std::array::from_fn(|value| level(mean + contrast * (value as f64 - mean)));
            pixels.as_flattened_mut().iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
        if self.saturation > 0.0 {
            for pixel in pixels {
                let grey = grey(pixel);
                *pixel = pixel.map(|value| level(grey + saturation * (f64::from(value) - grey)));
            }
        }
    }
}

/// Luma by ITU-R BT.601, as Pillow has it.
fn grey(pixel: &[u8; 3]) -> f64 {
    0.299 * f64::from(pixel[0]) + 0.587 * f64::from(pixel[1]) + 0.114 * f64::from(pixel[2])
}

fn level(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

fn flip(image: &mut Pixels) {
    let width = image.width as usize;
    for row in image.rgb.as_chunks_mut::<3>().0.chunks_exact_mut(width) {
        row.reverse();
    }
}

/// Rotated counter-clockwise about the middle, bilinear.
fn rotated(image: &Pixels, degrees: f64) -> Pixels {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (width, height) = (image.width as usize, image.height as usize);
    let (middle_x, middle_y) = ((width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0);
    let source = image.rgb.as_chunks::<3>().0;
    let mut rgb = Vec::with_capacity(image.rgb.len());
    for y in 0..height {
        for x in 0..width {
            let (from_x, from_y) = (x as f64 - middle_x, y as f64 - middle_y);
            let at_x = (cos * from_x - sin * from_y + middle_x).clamp(0.0, width as f64 - 1.0);
            let at_y = (sin * from_x + cos * from_y + middle_y).clamp(0.0, height as f64 - 1.0);
            let (left, top) = (at_x as usize, at_y as usize);
            let (right, below) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
            let (share_x, share_y) = (at_x - left as f64, at_y - top as f64);
            let at = |x: usize, y: usize, channel: usize| f64::from(source[y * width + x][channel]);
            rgb.extend([0, 1, 2].map(|channel| {
                let upper = at(left, top, channel) * (1.0 - share_x) + at(right, top, channel) * share_x;
                let lower = at(left, below, channel) * (1.0 - share_x) + at(right, below, channel) * share_x;
                level(upper * (1.0 - share_y) + lower * share_y)
            }));
        }
    }
    Pixels { width: image.width, height: image.height, rgb }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Use = Use { seed: 7, round: 2, step: 3, row: 4 };

    /// Different everywhere.
    fn image(width: u32, height: u32) -> Pixels {
        let rgb = (0..height).flat_map(|y| (0..width).flat_map(move |x| [40 + 5 * x as u8, 30 + 6 * y as u8, 120]));
        Pixels::new(width, height, rgb.collect()).unwrap()
    }

    fn same_size(image: &Pixels) -> Preparation {
        Preparation::to_size(image.height, image.width).unwrap()
    }

    fn of(augmentation: Augmentation, at: Use) -> Pixels {
        let image = image(20, 16);
        augmentation.fit(&image, &same_size(&image), at)
    }

    fn all() -> [Augmentation; 7] {
        let off = Augmentation::default();
        [
            Augmentation { flip: 0.5, ..off },
            Augmentation { rotation: 20.0, ..off },
            Augmentation { crop_scale: 0.3, ..off },
            Augmentation { brightness: 0.5, ..off },
            Augmentation { contrast: 0.5, ..off },
            Augmentation { saturation: 0.5, ..off },
            Augmentation { noise: 0.05, ..off },
        ]
    }

    #[test]
    fn nothing_is_changed_unless_asked_for() {
        assert_eq!(of(Augmentation::default(), AT), image(20, 16));
    }

    #[test]
    fn each_use_has_its_own_draw_and_repeats_it() {
        for augmentation in all() {
            assert_eq!(of(augmentation, AT), of(augmentation, AT), "{augmentation:?}");
            let others = (0..12).flat_map(|other| {
                [Use { seed: other + 50, ..AT }, Use { round: other as u32 + 50, ..AT }, Use { step: other + 50, ..AT }]
                    .into_iter()
                    .chain([Use { row: other + 50, ..AT }])
            });
            let different = others.filter(|other| of(augmentation, *other) != of(augmentation, AT)).count();
            // A flip is one of two; the rest are nearly never the same.
            let expected = if augmentation.flip > 0.0 { 10..39 } else { 45..49 };
            assert!(expected.contains(&different), "{augmentation:?}: {different} of 48");
        }
    }

    #[test]
    fn every_part_of_a_use_counts() {
        let noise = Augmentation { noise: 0.1, ..Augmentation::default() };
        let others = [Use { seed: 8, ..AT }, Use { round: 3, ..AT }, Use { step: 4, ..AT }, Use { row: 5, ..AT }];
        assert!(others.into_iter().all(|other| of(noise, other) != of(noise, AT)));
    }

    #[test]
    fn the_bits_do_not_depend_on_threads() {
        use rayon::prelude::*;
        let augmentation = Augmentation {
            flip: 0.5,
            rotation: 10.0,
            crop_scale: 0.5,
            noise: 0.1,
            contrast: 0.3,
            ..Default::default()
        };
        let alone: Vec<Pixels> = (0..64).map(|row| of(augmentation, Use { row, ..AT })).collect();
        let together: Vec<Pixels> = (0..64).into_par_iter().map(|row| of(augmentation, Use { row, ..AT })).collect();
        assert_eq!(alone, together);
    }

    #[test]
    fn a_flip_swaps_left_and_right_at_its_rate() {
        let flipped = of(Augmentation { flip: 1.0, ..Augmentation::default() }, AT);
        let (there, here) = (image(20, 16), flipped.rgb.as_chunks::<3>().0);
        for (place, pixel) in there.rgb.as_chunks::<3>().0.iter().enumerate() {
            assert_eq!(here[place / 20 * 20 + 19 - place % 20], *pixel);
        }
        let sometimes = Augmentation { flip: 0.3, ..Augmentation::default() };
        let count = (0..1000).filter(|row| of(sometimes, Use { row: *row, ..AT }) == flipped).count();
        // Six standard deviations of 1000 draws are 87.
        assert!((213..387).contains(&count), "{count}");
    }

    #[test]
    fn a_quarter_turn_is_exact_and_a_turn_back_nearly() {
        let square = image(9, 9);
        let turned = rotated(&square, 90.0);
        let (before, after) = (square.rgb.as_chunks::<3>().0, turned.rgb.as_chunks::<3>().0);
        for y in 0..9 {
            for x in 0..9 {
                // Counter-clockwise: what was at the right is now at the top.
                assert_eq!(after[y * 9 + x], before[x * 9 + 8 - y]);
            }
        }
        let back = rotated(&rotated(&square, 10.0), -10.0);
        let middle = 4 * 9 + 4;
        for (found, expected) in back.rgb.as_chunks::<3>().0[middle].iter().zip(before[middle]) {
            assert!(found.abs_diff(expected) <= 1);
        }
    }

    #[test]
    fn colour_goes_as_far_as_it_may() {
        let mean =
            |image: &Pixels| image.rgb.iter().map(|value| f64::from(*value)).sum::<f64>() / image.rgb.len() as f64;
        let spread = |image: &Pixels| {
            let mean = mean(image);
            image.rgb.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>()
        };
        let extremes = |augmentation, measure: &dyn Fn(&Pixels) -> f64| {
            let before = measure(&image(20, 16));
            let ratios = (0..400).map(|row| measure(&of(augmentation, Use { row, ..AT })) / before);
            ratios.fold((f64::MAX, f64::MIN), |(least, most), ratio| (least.min(ratio), most.max(ratio)))
        };
        let off = Augmentation::default();
        let (least, most) = extremes(Augmentation { brightness: 0.3, ..off }, &mean);
        assert!((0.69..0.72).contains(&least) && (1.28..1.31).contains(&most), "{least} {most}");
        let (least, most) = extremes(Augmentation { contrast: 0.3, ..off }, &spread);
        assert!((0.45..0.6).contains(&least) && (1.5..1.75).contains(&most), "{least} {most}");
        let grey = of(Augmentation { saturation: 1.0, ..off }, AT);
        assert!((mean(&grey) - mean(&image(20, 16))).abs() < 25.0);
    }

    #[test]
    fn noise_has_its_deviation() {
        let flat = Pixels::new(100, 100, vec![128; 30_000]).unwrap();
        let noisy = Augmentation { noise: 0.05, ..Default::default() }.fit(&flat, &same_size(&flat), AT);
        let differences = noisy.rgb.iter().map(|value| f64::from(*value) - 128.0);
        let variance = differences.clone().map(|difference| difference * difference).sum::<f64>() / 30_000.0;
        let mean = differences.sum::<f64>() / 30_000.0;
        assert!(mean.abs() < 0.5 && (variance.sqrt() - 12.75).abs() < 0.4, "{mean} {}", variance.sqrt());
    }

    #[test]
    fn crops_have_the_share_and_shape_that_are_allowed() {
        let image = image(40, 32);
        let crop = Augmentation { crop_scale: 0.25, ..Augmentation::default() };
        let (mut least, mut most) = (f64::MAX, f64::MIN);
        for row in 0..500 {
            let area = crop.area(&image, Use { row, ..AT }).unwrap();
            assert!(area.left >= 0.0 && area.top >= 0.0);
            assert!(area.left + area.width <= 40.0 && area.top + area.height <= 32.0, "{area:?}");
            let share = area.width * area.height / 1280.0;
            (least, most) = (least.min(share), most.max(share));
            // Rounding to pixels.
            assert!((0.7..1.43).contains(&(area.width / area.height)), "{area:?}");
        }
        assert!((0.2..0.35).contains(&least) && most > 0.85, "{least} {most}");
        // Nothing of an allowed shape fits in a line but its middle.
        let line = Pixels::new(300, 1, vec![9; 900]).unwrap();
        let area = crop.area(&line, AT).unwrap();
        assert_eq!((area.width, area.height), (1.0, 1.0));
    }

    #[test]
    fn a_job_that_asks_for_nothing_changes_nothing() {
        assert_eq!(Augmentation::from(&Settings::default()), Augmentation::default());
        let settings = Settings { flip: true, rotate: 10.0, crop: 0.8, colour: 0.2, noise: 0.02 };
        let found = Augmentation::from(&settings);
        assert_eq!((found.flip, found.rotation, found.crop_scale, found.noise), (0.5, 10.0, 0.8, 0.02));
        assert_eq!([found.brightness, found.contrast, found.saturation], [0.2; 3]);
    }

    proptest! {
        #[test]
        fn any_image_becomes_one_of_the_wanted_size(
            width in 1u32..60, height in 1u32..60, out_width in 1u32..40, out_height in 1u32..40, row: u64,
        ) {
            let image = Pixels::new(width, height, vec![77; 3 * width as usize * height as usize]).unwrap();
            let everything = Augmentation {
                flip: 0.5, rotation: 45.0, crop_scale: 0.1, crop_ratio: 3.0,
                brightness: 1.0, contrast: 1.0, saturation: 1.0, noise: 1.0,
            };
            let preparation = Preparation::to_size(out_height, out_width).unwrap();
            let fitted = everything.fit(&image, &preparation, Use { row, ..AT });
            prop_assert_eq!((fitted.width, fitted.height), (out_width, out_height));
            prop_assert_eq!(fitted.rgb.len(), 3 * out_width as usize * out_height as usize);
        }
    }
}
