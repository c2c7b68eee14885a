//! What was computed, as a step of the tape and of candle's graph.

use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor};
use candle_core::{Var, bail};

use super::launch::gpu;
use crate::model::ops::Tape;

/// Gives the gradient of each argument, or nothing for one that needs none, of the gradient of the result.
type Backward = Box<dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

/// A result that is ready, with the way back. An op of candle's computes its result when it is applied; this one hands over
/// what a function computed before, so that this may keep what the backward pass needs.
struct Node {
    name: &'static str,
    shape: Shape,
    out: Mutex<Option<CudaStorage>>,
    backward: Backward,
}

impl Node {
    fn take(&self) -> Result<(CudaStorage, Shape)> {
        match self.out.lock().ok().and_then(|mut out| out.take()) {
            Some(out) => Ok((out, self.shape.clone())),
            None => bail!("{}: its result is gone", self.name),
        }
    }

    fn gradients<const N: usize>(&self, grad: &Tensor) -> Result<[Option<Tensor>; N]> {
        match <[Option<Tensor>; N]>::try_from((self.backward)(grad)?) {
            Ok(gradients) => Ok(gradients),
            Err(found) => bail!("{}: {} gradients for {N} arguments", self.name, found.len()),
        }
    }

    fn elsewhere<T>(&self) -> Result<T> {
        bail!("{}: made for a GPU", self.name)
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.gradients(grad)?;
        Ok(x)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.gradients(grad)?;
        Ok((x, y))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.elsewhere()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.gradients(grad)?;
        Ok((x, y, z))
    }
}

/// The values `out`, computed of one to three arguments, as a tensor that `backward` leads back from.
pub(super) fn node(
    tape: &Tape,
    name: &'static str,
    arguments: &[&Tensor],
    out: CudaSlice<f32>,
    shape: impl Into<Shape>,
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let Some(first) = arguments.first() else { bail!("{name}: no arguments") };
    attach(tape, name, arguments, CudaStorage::wrap_cuda_slice(out, gpu(first)?.clone()), shape.into(), backward)
}

fn attach(
    tape: &Tape,
    name: &'static str,
    arguments: &[&Tensor],
    out: CudaStorage,
    shape: Shape,
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let node = Node { name, shape, out: Mutex::new(Some(out)), backward: Box::new(backward) };
    match *arguments {
        [x] => tape.apply1(node, x),
        [x, y] => tape.apply2(node, x, y),
        [x, y, z] => tape.apply3(node, x, y, z),
        _ => bail!("{name}: {} arguments", arguments.len()),
    }
}

/// A function of candle's ops as one step: the backward pass computes it again and goes back through candle's graph.
pub(super) fn composed(
    tape: &Tape,
    name: &'static str,
    arguments: &[&Tensor],
    function: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let quiet: Vec<Tensor> = arguments.iter().map(|argument| argument.detach()).collect();
    let out = function(&quiet)?.contiguous()?;
    let shape = out.shape().clone();
    let storage = {
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => storage.try_clone(layout)?,
            _ => bail!("{name}: its result is not on the GPU"),
        }
    };
    let wanted: Vec<bool> = arguments.iter().map(|argument| argument.track_op()).collect();
    attach(tape, name, arguments, storage, shape, move |grad| {
        // Only what is wanted is a variable, so that nothing else is computed.
        let variables: Vec<Option<Var>> = quiet
            .iter()
            .zip(&wanted)
            .map(|(tensor, wanted)| wanted.then(|| Var::from_tensor(tensor)).transpose())
            .collect::<Result<_>>()?;
        let inputs: Vec<Tensor> = quiet
            .iter()
            .zip(&variables)
            .map(|(tensor, variable)| variable.as_ref().map_or(tensor, |variable| variable.as_tensor()).clone())
            .collect();
        let mut gradients = (function(&inputs)? * grad)?.sum_all()?.backward()?;
        Ok(variables.iter().map(|variable| gradients.remove(variable.as_ref()?)).collect())
    })
}
