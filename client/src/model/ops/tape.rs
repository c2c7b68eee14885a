//! The order in which fused operations ran, and the backward pass over it.
//!
//! candle's own backward starts every gradient as zeros and adds to it, with a second pool of threads that spins beside
//! ours; on the processor and on NVIDIA GPUs this one stores the first contribution as it is. Other devices use candle's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result, Tensor, TensorId, Var, bail};
use fedtune_config::job::Precision;
use rayon::prelude::*;

use super::simd::vectorised;
use super::values::read;

type Op1 = Arc<Box<dyn CustomOp1 + Send + Sync>>;
type Op2 = Arc<Box<dyn CustomOp2 + Send + Sync>>;
type Op3 = Arc<Box<dyn CustomOp3 + Send + Sync>>;

/// What ran, with its arguments.
enum Call {
    One(Op1, Tensor),
    Two(Op2, [Tensor; 2]),
    Three(Op3, [Tensor; 3]),
    /// A layer of which only the input is kept.
    Layer(usize, Tensor),
}

/// The operations of one forward pass whose result depends on a variable.
#[derive(Default)]
pub(crate) struct Tape {
    steps: RefCell<Vec<(Call, Tensor)>>,
    precision: Precision,
}

/// Computes a layer, named by its number, from its input again, on a tape of its own.
pub(crate) type Again<'a> = dyn Fn(usize, &Tensor) -> Result<(Tensor, Tape)> + 'a;

/// Values of one task.
const BLOCK: usize = 1 << 14;

impl Tape {
    /// A tape whose dense layers multiply in this precision, backward too.
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }

    /// The precision of matrix products with weights.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    pub(super) fn apply1(&self, op: impl CustomOp1 + Send + Sync + 'static, x: &Tensor) -> Result<Tensor> {
        let op: Op1 = Arc::new(Box::new(op));
        let out = x.apply_op1_arc(op.clone())?;
        self.record(&out, || Call::One(op, x.clone()));
        Ok(out)
    }

    pub(super) fn apply2(&self, op: impl CustomOp2 + Send + Sync + 'static, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let op: Op2 = Arc::new(Box::new(op));
        let out = x.apply_op2_arc(y, op.clone())?;
        self.record(&out, || Call::Two(op, [x.clone(), y.clone()]));
        Ok(out)
    }

    pub(super) fn apply3(
        &self,
        op: impl CustomOp3 + Send + Sync + 'static,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
    ) -> Result<Tensor> {
        let op: Op3 = Arc::new(Box::new(op));
        let out = x.apply_op3_arc(y, z, op.clone())?;
        self.record(&out, || Call::Three(op, [x.clone(), y.clone(), z.clone()]));
        Ok(out)
    }

    fn record(&self, out: &Tensor, call: impl FnOnce() -> Call) {
        if out.track_op() {
            self.steps.borrow_mut().push((call(), out.clone()));
        }
    }

    /// Records a layer by its number and input alone; `out`, which nothing tracks, is what it gave. Gives that as a tensor
    /// of its own, so that nothing between the two stays in memory (Chen et al. 2016, 1604.06174).
    pub(crate) fn layer(&self, number: usize, x: &Tensor, out: &Tensor) -> Result<Tensor> {
        let out = Var::from_tensor(out)?.into_inner();
        self.steps.borrow_mut().push((Call::Layer(number, x.clone()), out.clone()));
        Ok(out)
    }

    /// The gradient of the scalar `loss` for every variable under it.
    #[cfg(test)]
    pub(crate) fn backward(self, loss: &Tensor) -> Result<Gradients> {
        self.backward_through(loss, &|number, _| bail!("layer {number} cannot be computed again"))
    }

    /// The gradient of the scalar `loss` for every variable under it. `again` computes a layer from its input once more, and
    /// records how.
    pub(crate) fn backward_through(self, loss: &Tensor, again: &Again<'_>) -> Result<Gradients> {
        self.run(Gradients(HashMap::from([(loss.id(), loss.ones_like()?)])), again)
    }

    fn run(self, mut gradients: Gradients, again: &Again<'_>) -> Result<Gradients> {
        for (call, out) in self.steps.into_inner().into_iter().rev() {
            let Some(grad) = gradients.0.remove(&out.id()) else { continue };
            match call {
                Call::One(op, x) => gradients.add(&x, op.bwd(&x, &out, &grad)?)?,
                Call::Two(op, [x, y]) => {
                    let (dx, dy) = op.bwd(&x, &y, &out, &grad)?;
                    gradients.add(&x, dx)?;
                    gradients.add(&y, dy)?;
                }
                Call::Three(op, [x, y, z]) => {
                    let (dx, dy, dz) = op.bwd(&x, &y, &z, &out, &grad)?;
                    gradients.add(&x, dx)?;
                    gradients.add(&y, dy)?;
                    gradients.add(&z, dz)?;
                }
                Call::Layer(number, x) => {
                    let (out, tape) = again(number, &x)?;
                    let inner = tape.run(Gradients(HashMap::from([(out.id(), grad)])), again)?;
                    for (id, gradient) in inner.0 {
                        gradients.merge(id, gradient)?;
                    }
                }
            }
        }
        Ok(gradients)
    }
}

/// Gradients by tensor.
pub(crate) struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// Takes out the gradient of a variable.
    pub(crate) fn remove(&mut self, variable: &Tensor) -> Option<Tensor> {
        self.0.remove(&variable.id())
    }

    fn add(&mut self, tensor: &Tensor, gradient: Option<Tensor>) -> Result<()> {
        let Some(gradient) = gradient.filter(|_| tensor.track_op()) else { return Ok(()) };
        self.merge(tensor.id(), gradient)
    }

    fn merge(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let gradient = match self.0.remove(&id) {
            Some(earlier) => super::sum(&earlier, &gradient)?,
            None => gradient,
        };
        self.0.insert(id, gradient);
        Ok(())
    }
}

/// x + y on the processor. Not in place: a gradient may be shared, as that of a shortcut is.
pub(super) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.shape() != y.shape() {
        bail!("gradients of shapes {:?} and {:?} for one tensor", x.shape(), y.shape());
    }
    let values = read(x, |x| {
        read(y, |y| {
            let mut out = x.to_vec();
            out.par_chunks_mut(BLOCK).zip(y.par_chunks(BLOCK)).for_each(|(out, y)| {
                vectorised(|| {
                    for (out, y) in out.iter_mut().zip(y) {
                        *out += y;
                    }
                });
            });
            Ok(out)
        })
    })?;
    Tensor::from_vec(values, x.shape(), x.device())
}
