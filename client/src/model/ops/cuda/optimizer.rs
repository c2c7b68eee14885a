//! Steps of optimisers in place, and the norm of gradients.

use std::cell::RefCell;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaViewMut};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Tensor, bail};

use super::launch::{Source, Threads, arguments, gpu, launch, room, views};

/// A step of an optimiser, with the numbers of the kernel of its name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// Two moments; scale of the gradient, share of the values that stays, rate over the first correction, 1 over the
    /// root of the second, betas, epsilon.
    AdamW { scale: f32, keep: f32, step: f32, root: f32, betas: [f32; 2], epsilon: f32 },
    /// A velocity.
    Momentum { scale: f32, keep: f32, rate: f32, momentum: f32 },
    /// Nothing but the rate.
    Plain { keep: f32, step: f32 },
}

/// Gives a function a tensor's values to write.
struct Writing<F>(RefCell<Option<F>>);

impl<F: FnOnce(CudaViewMut<'_, f32>) -> Result<()>> InplaceOp1 for Writing<F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("expected a tensor on a GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let (Some((start, end)), Some(write)) = (layout.contiguous_offsets(), self.0.take()) else {
            bail!("expected a contiguous tensor of shape {:?}", layout.shape());
        };
        write(storage.as_cuda_slice_mut::<f32>()?.slice_mut(start..end))
    }
}

fn write(tensor: &Tensor, function: impl FnOnce(CudaViewMut<'_, f32>) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Writing(RefCell::new(Some(function))))
}

/// Changes values and moments in place, in one launch.
pub(crate) fn update(values: &Tensor, moments: &[Tensor], gradient: &Tensor, step: Step) -> Result<()> {
    let (device, count) = (gpu(values)?, values.elem_count());
    if gradient.elem_count() != count || moments.iter().any(|moment| moment.elem_count() != count) {
        bail!("{count} parameters, {} gradients", gradient.elem_count());
    }
    let threads = Threads::over(count);
    let g = gradient;
    views!(g);
    match (step, moments) {
        (Step::AdamW { scale, keep, step, root, betas, epsilon }, [first, second]) => write(values, |p| {
            write(first, |m| {
                write(second, |v| {
                    let arguments =
                        arguments![&g, p, m, v, count, scale, keep, step, root, betas[0], betas[1], epsilon];
                    launch(device, Source::Optimizer, "adamw", threads, arguments)
                })
            })
        }),
        (Step::Momentum { scale, keep, rate, momentum }, [velocity]) => write(values, |p| {
            write(velocity, |v| {
                let arguments = arguments![&g, p, v, count, scale, keep, rate, momentum];
                launch(device, Source::Optimizer, "sgd_momentum", threads, arguments)
            })
        }),
        (Step::Plain { keep, step }, []) => {
            write(values, |p| launch(device, Source::Optimizer, "sgd", threads, arguments![&g, p, count, keep, step]))
        }
        (step, moments) => bail!("{} moments for {step:?}", moments.len()),
    }
}

/// Blocks that add up one tensor's squares at most.
const BLOCKS: usize = 256;

/// Σ x² over all values of some tensors on one GPU, in double precision and waiting for the GPU once.
pub(crate) fn square_sum(tensors: &[&Tensor]) -> Result<f64> {
    let Some(first) = tensors.first() else { return Ok(0.0) };
    let device = gpu(first)?;
    let blocks: Vec<usize> = tensors.iter().map(|tensor| tensor.elem_count().div_ceil(4096).clamp(1, BLOCKS)).collect();
    let all: usize = blocks.iter().sum();
    let mut parts: CudaSlice<f64> = room(device, all)?;
    let mut at = 0;
    for (x, blocks) in tensors.iter().zip(blocks) {
        let count = x.elem_count();
        let part = parts.slice_mut(at..at + blocks);
        at += blocks;
        views!(x);
        launch(device, Source::Optimizer, "squares", Threads::blocks(blocks), arguments![&x, part, count])?;
    }
    let mut out: CudaSlice<f64> = room(device, 1)?;
    launch(device, Source::Optimizer, "add_squares", Threads::blocks(1), arguments![&parts, &mut out, all])?;
    match device.clone_dtoh(&out)?.first() {
        Some(sum) => Ok(*sum),
        None => bail!("a sum got lost on the GPU"),
    }
}
