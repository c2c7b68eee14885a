//! Watching and stopping.

use std::ops::ControlFlow;

/// Where training or evaluation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps (or batches) done.
    pub step: usize,
    /// Steps (or batches) in all.
    pub steps: usize,
    /// Mean loss of the last batch; NaN where rows have no label.
    pub loss: f64,
    /// Rows a second since the beginning.
    pub examples_per_second: f64,
    /// The learning rate of the step; 0 in evaluation.
    pub learning_rate: f64,
}

/// Is told of every step and may stop the work.
pub trait Observer {
    /// After a step; [`ControlFlow::Break`] cancels.
    fn step(&mut self, progress: Progress) -> ControlFlow<()>;
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn step(&mut self, _: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(Progress) -> ControlFlow<()>> Observer for F {
    fn step(&mut self, progress: Progress) -> ControlFlow<()> {
        self(progress)
    }
}
