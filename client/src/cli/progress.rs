//! Progress on standard error: a bar on a terminal, otherwise a line every ten seconds.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::finetune::{Observer, Progress};

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// Shows steps as they are done.
pub(super) struct Display {
    what: &'static str,
    started: Instant,
    form: Form,
}

enum Form {
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Display {
    pub(super) fn new(what: &'static str) -> Self {
        let started = Instant::now();
        let form = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}, {eta} left") {
                bar.set_style(style);
            }
            bar.set_prefix(what);
            Form::Bar(bar)
        } else {
            Form::Lines { last: started }
        };
        Self { what, started, form }
    }
}

impl Observer for Display {
    fn step(&mut self, progress: Progress) -> ControlFlow<()> {
        let Progress { step, steps, loss, examples_per_second, .. } = progress;
        let loss = if loss.is_nan() { String::new() } else { format!("loss {loss:.4}, ") };
        let message = format!("{loss}{examples_per_second:.1} examples/s");
        match &mut self.form {
            Form::Bar(bar) => {
                bar.set_length(steps as u64);
                bar.set_position(step as u64);
                bar.set_message(message);
                if step == steps {
                    bar.finish_and_clear();
                }
            }
            Form::Lines { last } => {
                if last.elapsed() >= PAUSE {
                    *last = Instant::now();
                    let left = self.started.elapsed().as_secs_f64() / step as f64 * (steps - step) as f64;
                    eprintln!("{}: step {step} of {steps}, {message}, {left:.0} s left", self.what);
                }
            }
        }
        ControlFlow::Continue(())
    }
}
