//! How the pixels of a batch of images lie, and how a window moves over them.

use candle_core::{Result, bail};

/// Images of one size as the rows of a matrix: image by image, line by line, one row a pixel, one column a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Images.
    pub(crate) images: usize,
    /// Lines of an image.
    pub(crate) height: usize,
    /// Pixels of a line.
    pub(crate) width: usize,
}

impl Grid {
    /// Pixels of one image.
    pub(crate) fn area(self) -> usize {
        self.height * self.width
    }

    /// Pixels of all images.
    pub(crate) fn pixels(self) -> usize {
        self.images * self.area()
    }
}

/// A square window that moves over images with zeros (or, for a maximum, nothing) around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Pixels of a side.
    pub(crate) side: usize,
    /// Pixels from one place to the next.
    pub(crate) stride: usize,
    /// Pixels around the image.
    pub(crate) padding: usize,
}

impl Window {
    /// A window of one pixel that goes to every pixel.
    pub(super) const PIXEL: Self = Self { side: 1, stride: 1, padding: 0 };

    /// The places of the window.
    ///
    /// # Errors
    /// The window is larger than the image with its padding, or does not move.
    pub(crate) fn places(self, grid: Grid) -> Result<Grid> {
        let Self { side, stride, padding } = self;
        let count = |length: usize| {
            let room = (length + 2 * padding).checked_sub(side)?;
            (side > 0 && stride > 0 && padding < side).then(|| room / stride + 1)
        };
        match (count(grid.height), count(grid.width)) {
            (Some(height), Some(width)) => Ok(Grid { height, width, ..grid }),
            _ => bail!(
                "a window of {side} pixels, stride {stride}, padding {padding} does not fit images of {} x {}",
                grid.height,
                grid.width
            ),
        }
    }

    /// The part of one dimension that the window covers at a place: the first pixel of the image, how many, and how many
    /// of the window come before it.
    pub(super) fn span(self, place: usize, length: usize) -> Span {
        let start = place * self.stride;
        let outside = self.padding.saturating_sub(start);
        let first = (start + outside).saturating_sub(self.padding);
        let end = (start + self.side).saturating_sub(self.padding).min(length);
        Span { first, count: end.saturating_sub(first), outside }
    }
}

/// What of a window lies inside the image, in one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The first pixel of the image.
    pub(super) first: usize,
    /// Pixels of the image.
    pub(super) count: usize,
    /// Pixels of the window before them.
    pub(super) outside: usize,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_pytorch_and_spans_stay_inside() {
        for ((side, stride, padding), length, places) in [
            ((7, 2, 3), 64, 32),
            ((3, 2, 1), 32, 16),
            ((3, 2, 1), 7, 4),
            ((3, 1, 1), 1, 1),
            ((1, 2, 0), 5, 3),
            ((16, 16, 0), 224, 14),
        ] {
            let window = Window { side, stride, padding };
            let found = window.places(Grid { images: 1, height: length, width: length }).unwrap();
            assert_eq!((found.height, found.width), (places, places));
            for place in 0..places {
                let inside: Vec<usize> = (0..side)
                    .filter_map(|tap| (place * stride + tap).checked_sub(padding))
                    .filter(|x| *x < length)
                    .collect();
                let span = window.span(place, length);
                assert_eq!(inside, (span.first..span.first + span.count).collect::<Vec<_>>(), "{window:?} at {place}");
                assert_eq!(place * stride + span.outside, span.first + padding);
            }
        }
        let grid = Grid { images: 1, height: 4, width: 9 };
        for (side, stride, padding) in [(5, 1, 0), (3, 0, 1), (0, 1, 0), (2, 1, 2)] {
            assert!(Window { side, stride, padding }.places(grid).is_err());
        }
    }
}
