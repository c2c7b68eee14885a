//! The factor of the loss that keeps small gradients above what f16 can hold (Micikevicius et al. 2017, 1710.03740).

use fedtune_config::job::Precision;
use serde::{Deserialize, Serialize};

/// A power of two that the loss is multiplied by, so that taking it out of the gradients again is exact. It falls when a
/// gradient is beyond f16 and rises when none was for a time, with the figures of `torch.amp.GradScaler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct LossScale {
    exponent: u32,
    /// Steps since it last changed.
    steady: u32,
    /// Whether it changes at all.
    moves: bool,
}

/// The exponent at first.
const FIRST: u32 = 16;
/// Steps without an overflow behind which it rises.
const RISES_AFTER: u32 = 2000;
/// The largest, far above any use.
const MOST: u32 = 40;

impl LossScale {
    /// As a run of training begins; 1 for all of it where gradients keep the range of f32.
    pub(super) fn new(precision: Precision) -> Self {
        match precision {
            Precision::F16 => Self { exponent: FIRST, steady: 0, moves: true },
            Precision::F32 | Precision::Bf16 => Self::default(),
        }
    }

    /// What the loss is multiplied by.
    pub(super) fn factor(self) -> f64 {
        2f64.powi(self.exponent as i32)
    }

    /// Whether it can be any lower.
    pub(super) fn can_fall(self) -> bool {
        self.moves && self.exponent > 0
    }

    /// Whether a run in this precision can have come to it.
    pub(super) fn fits(self, precision: Precision) -> bool {
        self.moves == Self::new(precision).moves && self.exponent <= MOST && self.steady < RISES_AFTER
    }

    /// Halves it, where it can be any lower: the step is to be tried again.
    pub(super) fn lower(&mut self) -> bool {
        let lowers = self.can_fall();
        if lowers {
            self.exponent -= 1;
            self.steady = 0;
        }
        lowers
    }

    /// Counts a step with finite gradients.
    pub(super) fn held(&mut self) {
        if !self.moves {
            return;
        }
        self.steady += 1;
        if self.steady == RISES_AFTER {
            self.exponent = (self.exponent + 1).min(MOST);
            self.steady = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_with_an_overflow_and_rises_after_long_without() {
        let mut scale = LossScale::new(Precision::F16);
        assert_eq!(scale.factor(), 65536.0);
        assert!(scale.lower());
        for _ in 0..RISES_AFTER - 1 {
            scale.held();
        }
        assert_eq!(scale.factor(), 32768.0);
        scale.held();
        assert_eq!(scale.factor(), 65536.0);
        while scale.lower() {}
        assert_eq!(scale.factor(), 1.0);
    }

    #[test]
    fn other_precisions_have_none() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut scale = LossScale::new(precision);
            (0..2 * RISES_AFTER).for_each(|_| scale.held());
            assert!(scale.factor() == 1.0 && !scale.lower());
        }
    }
}
