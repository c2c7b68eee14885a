//! Optimisers by PyTorch's formulas, in place and in one pass on the processor.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use fedtune_config::job::{self, Training};
use rayon::prelude::*;

use super::gradients::BLOCK;
use crate::model::network::{Gradient, Parameter};
#[cfg(feature = "cuda")]
use crate::model::ops;
use crate::model::ops::{read_values, vectorised};

mod adamw;
mod sgd;

/// An optimiser with what it keeps between steps.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    weight_decay: f64,
    layer_decay: f64,
    /// How often each parameter was changed; what waits at first begins at its own first step.
    steps: BTreeMap<String, i32>,
}

#[derive(Debug)]
enum Rule {
    AdamW(Moments<2>),
    Momentum { momentum: f64, velocity: Moments<1> },
    Plain(Moments<0>),
}

impl Optimizer {
    /// A fresh optimiser as the job asks for it.
    pub fn new(training: &Training) -> Self {
        let rule = match training.optimizer {
            job::Optimizer::Adamw => Rule::AdamW(Moments::default()),
            job::Optimizer::Sgd if training.momentum == 0.0 => Rule::Plain(Moments::default()),
            job::Optimizer::Sgd => Rule::Momentum { momentum: training.momentum, velocity: Moments::default() },
        };
        let Training { weight_decay, layer_decay, .. } = *training;
        Self { rule, weight_decay, layer_decay, steps: BTreeMap::new() }
    }

    /// Changes every parameter that has a gradient; gradients are multiplied by `scale` first.
    ///
    /// # Errors
    /// A gradient does not fit its parameter, or a failure of the device.
    pub fn step(
        &mut self,
        parameters: &BTreeMap<String, Parameter>,
        gradients: &BTreeMap<String, Gradient>,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        for (name, gradient) in gradients {
            let Some(parameter) = parameters.get(name) else { bail!("a gradient for {name}, which is no parameter") };
            let rate = learning_rate * self.layer_decay.powi(parameter.depth as i32);
            let decay = if parameter.role.decays() { self.weight_decay } else { 0.0 };
            let change = Change { scale, keep: 1.0 - rate * decay, rate };
            let steps = self.steps.entry(name.clone()).or_default();
            *steps += 1;
            match &mut self.rule {
                Rule::AdamW(moments) => {
                    moments.update(name, parameter, gradient, adamw::Kernel::new(change, *steps))?;
                }
                Rule::Momentum { momentum, velocity } => {
                    velocity.update(name, parameter, gradient, sgd::Momentum { change, momentum: *momentum })?;
                }
                Rule::Plain(nothing) => nothing.update(name, parameter, gradient, sgd::Plain { change })?,
            }
        }
        Ok(())
    }
}

/// A parameter's name, how often it was changed, and lists of a number for each of its values.
pub(super) type Numbered<'a> = (&'a str, i32, Vec<Vec<f32>>);

/// To store it and to go on.
impl Optimizer {
    /// How many numbers it keeps for each value of a parameter.
    pub(super) fn kept(&self) -> usize {
        match self.rule {
            Rule::AdamW(_) => 2,
            Rule::Momentum { .. } => 1,
            Rule::Plain(_) => 0,
        }
    }

    /// Every parameter that was changed, how often, and [`Self::kept`] lists of numbers for it.
    pub(super) fn numbers(&self) -> Result<Vec<Numbered<'_>>> {
        let of = |(name, steps): (&'_ String, &i32)| {
            let numbers = match &self.rule {
                Rule::AdamW(moments) => moments.numbers(name)?,
                Rule::Momentum { velocity, .. } => velocity.numbers(name)?,
                Rule::Plain(nothing) => nothing.numbers(name)?,
            };
            Ok((*steps, numbers))
        };
        self.steps.iter().map(|entry| of(entry).map(|(steps, numbers)| (entry.0.as_str(), steps, numbers))).collect()
    }

    /// Takes back what [`Self::numbers`] gave for a parameter.
    pub(super) fn restore(
        &mut self,
        name: &str,
        parameter: &Parameter,
        steps: i32,
        numbers: Vec<Vec<f32>>,
    ) -> Result<()> {
        match &mut self.rule {
            Rule::AdamW(moments) => moments.restore(name, parameter, numbers)?,
            Rule::Momentum { velocity, .. } => velocity.restore(name, parameter, numbers)?,
            Rule::Plain(nothing) => nothing.restore(name, parameter, numbers)?,
        }
        self.steps.insert(name.to_owned(), steps);
        Ok(())
    }
}

/// What every rule multiplies by.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Of the gradient: clipping.
    scale: f64,
    /// Of the values: 1 − learning rate × weight decay (decoupled, Loshchilov and Hutter 2019, 1711.05101).
    keep: f64,
    /// The parameter's learning rate.
    rate: f64,
}

/// One step of a rule that keeps `N` numbers for each value.
trait Kernel<const N: usize>: Copy + Send + Sync {
    /// On the processor; all slices are of one length. To be inlined always, see [`vectorised`].
    fn update(self, values: &mut [f32], moments: [&mut [f32]; N], gradients: impl Iterator<Item = f32>);

    /// On an NVIDIA GPU, in place.
    #[cfg(feature = "cuda")]
    fn step(self) -> ops::cuda::Step;

    /// On another device; gives the new values.
    fn update_on_device(self, values: &Tensor, moments: &mut [Tensor; N], gradient: &Tensor) -> Result<Tensor>;
}

/// `N` numbers for each value of each parameter, zero at first.
#[derive(Debug, Default)]
struct Moments<const N: usize>(BTreeMap<String, Numbers<N>>);

#[derive(Debug)]
enum Numbers<const N: usize> {
    Processor([Vec<f32>; N]),
    Device([Tensor; N]),
}

impl<const N: usize> Moments<N> {
    fn numbers(&self, name: &str) -> Result<Vec<Vec<f32>>> {
        match self.0.get(name) {
            Some(Numbers::Processor(numbers)) => Ok(numbers.to_vec()),
            Some(Numbers::Device(numbers)) => numbers.iter().map(|values| values.flatten_all()?.to_vec1()).collect(),
            None => bail!("the optimiser has no numbers for {name}"),
        }
    }

    fn restore(&mut self, name: &str, parameter: &Parameter, numbers: Vec<Vec<f32>>) -> Result<()> {
        let (count, var) = (parameter.var.elem_count(), &parameter.var);
        let fits = numbers.iter().all(|values| values.len() == count);
        let Some(numbers) = <[Vec<f32>; N]>::try_from(numbers).ok().filter(|_| fits) else {
            bail!("numbers that do not fit {name}");
        };
        let mut restored = Numbers::zeros(var.as_tensor())?;
        match &mut restored {
            Numbers::Processor(kept) => *kept = numbers,
            Numbers::Device(kept) => {
                for (kept, values) in kept.iter_mut().zip(numbers) {
                    *kept = Tensor::from_vec(values, var.shape(), var.device())?;
                }
            }
        }
        self.0.insert(name.to_owned(), restored);
        Ok(())
    }

    fn update(&mut self, name: &str, parameter: &Parameter, gradient: &Gradient, kernel: impl Kernel<N>) -> Result<()> {
        let tensor = parameter.var.as_tensor();
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Numbers::zeros(tensor)?);
        }
        let in_place = |source: Source<'_>, moments: &mut [Vec<f32>; N]| {
            let moments = Mutex::new(moments.each_mut().map(Vec::as_mut_slice));
            tensor.inplace_op1(&Update { source, moments, kernel })
        };
        match (self.0.get_mut(name), gradient) {
            (Some(Numbers::Processor(moments)), Gradient::Dense(values)) => {
                read_values(values, |values| in_place(Source::Dense(values), moments))
            }
            (Some(Numbers::Processor(moments)), Gradient::Rows { rows, values }) => {
                let width = values.dim(1)?;
                read_values(values, |values| in_place(Source::Rows { rows, values, width }, moments))
            }
            #[cfg(feature = "cuda")]
            (Some(Numbers::Device(moments)), Gradient::Dense(values)) if tensor.device().is_cuda() => {
                ops::cuda::update(tensor, moments, values, kernel.step())
            }
            (Some(Numbers::Device(moments)), Gradient::Dense(values)) => {
                let new = kernel.update_on_device(&parameter.var.as_detached_tensor(), moments, values)?;
                parameter.var.set(&new)
            }
            _ => bail!("the gradient of {name} does not fit its device"),
        }
    }
}

impl<const N: usize> Numbers<N> {
    fn zeros(parameter: &Tensor) -> Result<Self> {
        if parameter.device().is_cpu() {
            return Ok(Self::Processor(std::array::from_fn(|_| vec![0.0; parameter.elem_count()])));
        }
        // Each its own, as they may be changed in place.
        let zeros = (0..N).map(|_| parameter.zeros_like()).collect::<Result<Vec<_>>>()?;
        match zeros.try_into() {
            Ok(zeros) => Ok(Self::Device(zeros)),
            Err(_) => bail!("expected {N} numbers for each value"),
        }
    }
}

/// Where the gradient's values stand.
#[derive(Clone, Copy)]
enum Source<'a> {
    Dense(&'a [f32]),
    /// Ascending rows of a table; the gradient of all others is zero.
    Rows {
        rows: &'a [u32],
        values: &'a [f32],
        width: usize,
    },
}

struct Update<'a, const N: usize, K> {
    source: Source<'a>,
    moments: Mutex<[&'a mut [f32]; N]>,
    kernel: K,
}

impl<const N: usize, K: Kernel<N>> InplaceOp1 for Update<'_, N, K> {
    fn name(&self) -> &'static str {
        "optimiser"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("the optimiser needs contiguous f32 parameters");
        };
        let values = &mut values[start..end];
        let Ok(mut moments) = self.moments.lock() else { bail!("the optimiser's numbers are in use") };
        let moments = moments.each_mut().map(|moment| &mut **moment);
        if moments.iter().any(|moment| moment.len() != values.len()) {
            bail!("the optimiser's numbers do not fit {} parameters", values.len());
        }
        let kernel = self.kernel;
        match self.source {
            Source::Dense(g) => {
                if g.len() != values.len() {
                    bail!("{} parameters, {} gradients", values.len(), g.len());
                }
                let blocks: Vec<_> = chunks(values, moments, BLOCK).collect();
                blocks.into_par_iter().zip(g.par_chunks(BLOCK)).for_each(|((values, moments), g)| {
                    vectorised(|| kernel.update(values, moments, g.iter().copied()));
                });
            }
            Source::Rows { rows, values: g, width } => {
                if width == 0 || !values.len().is_multiple_of(width) || rows.len() * width != g.len() {
                    bail!("{} parameters, {} rows of {width} gradients", values.len(), rows.len());
                }
                let height = (BLOCK / width).max(1);
                let blocks: Vec<_> = chunks(values, moments, height * width).collect();
                blocks.into_par_iter().enumerate().for_each(|(i, (values, moments))| {
                    let mut next = rows.partition_point(|row| (*row as usize) < i * height);
                    for (row, (values, moments)) in chunks(values, moments, width).enumerate() {
                        if rows.get(next).is_some_and(|found| *found as usize == i * height + row) {
                            let g = &g[next * width..(next + 1) * width];
                            next += 1;
                            vectorised(|| kernel.update(values, moments, g.iter().copied()));
                        } else {
                            vectorised(|| kernel.update(values, moments, std::iter::repeat(0.0)));
                        }
                    }
                });
            }
        }
        Ok(())
    }
}

/// The values cut into pieces of `size`, each with its part of the moments.
fn chunks<'a, const N: usize>(
    values: &'a mut [f32],
    moments: [&'a mut [f32]; N],
    size: usize,
) -> impl Iterator<Item = (&'a mut [f32], [&'a mut [f32]; N])> {
    let mut moments = moments.map(|moment| moment.chunks_mut(size));
    values
        .chunks_mut(size)
        .map(move |values| (values, moments.each_mut().map(|pieces| pieces.next().unwrap_or_default())))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::Role;
    use crate::model::ops::tests::devices;

    fn parameters(name: &str, values: &[f32], width: usize) -> BTreeMap<String, Parameter> {
        parameters_on(&Device::Cpu, name, values, width)
    }

    fn parameters_on(device: &Device, name: &str, values: &[f32], width: usize) -> BTreeMap<String, Parameter> {
        let tensor = Tensor::from_slice(values, (values.len() / width, width), device).unwrap();
        BTreeMap::from([(
            name.to_owned(),
            Parameter { var: Var::from_tensor(&tensor).unwrap(), trained: true, depth: 0, role: Role::Weight },
        )])
    }

    fn dense(name: &str, values: &[f32], width: usize) -> BTreeMap<String, Gradient> {
        dense_on(&Device::Cpu, name, values, width)
    }

    fn dense_on(device: &Device, name: &str, values: &[f32], width: usize) -> BTreeMap<String, Gradient> {
        let tensor = Tensor::from_slice(values, (values.len() / width, width), device).unwrap();
        BTreeMap::from([(name.to_owned(), Gradient::Dense(tensor))])
    }

    fn values(parameters: &BTreeMap<String, Parameter>, name: &str) -> Vec<f32> {
        parameters[name].var.as_detached_tensor().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn trainings() -> [Training; 3] {
        let sgd = Training { optimizer: job::Optimizer::Sgd, ..Training::default() };
        [Training::default(), sgd.clone(), Training { momentum: 0.9, ..sgd }]
    }

    #[test]
    fn three_steps_agree_with_pytorch() {
        // torch 2.15: three steps at rate 0.1 with gradients halved, in double precision; torch.optim.AdamW with decay 0.01,
        // and torch.optim.SGD after `p *= 1 - 0.1 * 0.01`.
        let expected = [
            [0.292_681, -0.838_851, 1.823_287],
            [0.488_531, -0.997_023, 1.984_031],
            [0.461_986, -0.979_932, 1.962_894],
        ];
        let name = "bert.pooler.dense.weight";
        let cases = trainings().into_iter().zip(expected);
        for (device, (training, expected)) in devices().flat_map(|device| cases.clone().map(move |case| (device, case)))
        {
            let parameters = parameters_on(device, name, &[0.5, -1.0, 2.0], 3);
            let mut optimizer = Optimizer::new(&Training { weight_decay: 0.01, ..training.clone() });
            for gradient in [[0.1, -0.2, 0.3], [0.4, 0.0, -0.1], [-0.3, 0.2, 0.0]] {
                optimizer.step(&parameters, &dense_on(device, name, &gradient, 3), 0.1, 0.5).unwrap();
            }
            for (found, expected) in values(&parameters, name).into_iter().zip(expected) {
                assert!((found - expected).abs() < 2e-6, "{training:?}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn a_parameter_that_joins_later_begins_at_its_own_first_step() {
        for training in trainings() {
            let run = |before: usize| {
                let mut both = parameters("late", &[0.5, -1.0, 2.0], 3);
                both.extend(parameters("early", &[1.0], 1));
                let mut optimizer = Optimizer::new(&training);
                for _ in 0..before {
                    optimizer.step(&both, &dense("early", &[0.3], 1), 0.1, 1.0).unwrap();
                }
                optimizer.step(&both, &dense("late", &[0.1, -0.2, 0.3], 3), 0.1, 1.0).unwrap();
                values(&both, "late")
            };
            assert_eq!(run(0), run(5), "{training:?}");
        }
    }

    #[test]
    fn the_other_devices_form_gives_the_same() {
        let (p, g) = ([0.5f32, -1.0, 2.0], [0.1f32, -0.2, 0.3]);
        fn both<const N: usize>(kernel: impl Kernel<N>, p: &[f32], g: &[f32]) {
            let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
            let start: [Vec<f32>; N] = std::array::from_fn(|i| vec![0.1 + i as f32; p.len()]);
            let mut on_device = start.each_ref().map(|m| tensor(m));
            let theirs = kernel.update_on_device(&tensor(p), &mut on_device, &tensor(g)).unwrap();
            let (mut ours, mut moments) = (p.to_vec(), start);
            kernel.update(&mut ours, moments.each_mut().map(Vec::as_mut_slice), g.iter().copied());
            let near = |ours: &[f32], theirs: &Tensor| {
                let theirs = theirs.to_vec1::<f32>().unwrap();
                assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-6), "{ours:?} {theirs:?}");
            };
            near(&ours, &theirs);
            moments.iter().zip(&on_device).for_each(|(ours, theirs)| near(ours, theirs));
        }
        let change = Change { scale: 0.5, keep: 0.99, rate: 0.1 };
        both(adamw::Kernel::new(change, 3), &p, &g);
        both(sgd::Momentum { change, momentum: 0.9 }, &p, &g);
        both(sgd::Plain { change }, &p, &g);
    }

    #[test]
    fn rows_count_as_a_gradient_that_is_zero_elsewhere() {
        // More rows than a block holds.
        let (name, width, height) = ("bert.embeddings.word_embeddings.weight", 64, 700);
        let start: Vec<f32> = (0..height * width).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
        for training in trainings() {
            let run = |sparse: bool| {
                let parameters = parameters(name, &start, width);
                let mut optimizer = Optimizer::new(&training);
                for rows in [vec![0u32, 3, 511, 512, 699], vec![3, 600]] {
                    let count = rows.len() * width;
                    let values = Tensor::arange(1.0f32, 1.0 + count as f32, &Device::Cpu).unwrap();
                    let values = (values.reshape((rows.len(), width)).unwrap() / count as f64).unwrap();
                    let gradients = if sparse {
                        BTreeMap::from([(name.to_owned(), Gradient::Rows { rows, values })])
                    } else {
                        let mut all = vec![0.0; height * width];
                        for (row, values) in rows.iter().zip(values.to_vec2::<f32>().unwrap()) {
                            all[*row as usize * width..][..width].copy_from_slice(&values);
                        }
                        dense(name, &all, width)
                    };
                    optimizer.step(&parameters, &gradients, 0.1, 1.0).unwrap();
                }
                values(&parameters, name)
            };
            let found = run(true);
            assert_eq!(found, run(false), "{training:?}");
            assert_ne!(found, start);
        }
    }

    #[test]
    fn lower_layers_have_lower_rates() {
        let training =
            Training { optimizer: job::Optimizer::Sgd, layer_decay: 0.5, weight_decay: 0.0, ..Training::default() };
        let name = "weight";
        for (depth, rate) in [(0, 1.0), (1, 0.5), (3, 0.125)] {
            let mut parameters = parameters(name, &[1.0], 1);
            parameters.values_mut().for_each(|parameter| parameter.depth = depth);
            Optimizer::new(&training).step(&parameters, &dense(name, &[1.0], 1), 0.5, 1.0).unwrap();
            assert_eq!(values(&parameters, name), [1.0 - 0.5 * rate], "{depth}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let name = "classifier.weight";
        let parameters = parameters(name, &[1.0, 2.0], 2);
        for training in trainings() {
            let mut optimizer = Optimizer::new(&training);
            assert!(optimizer.step(&parameters, &dense(name, &[1.0], 1), 0.1, 1.0).is_err());
            assert!(optimizer.step(&parameters, &dense("classifier.bias", &[1.0], 1), 0.1, 1.0).is_err());
            let values = Tensor::new(&[[1.0f32]], &Device::Cpu).unwrap();
            let rows = BTreeMap::from([(name.to_owned(), Gradient::Rows { rows: vec![0, 1], values })]);
            assert!(optimizer.step(&parameters, &rows, 0.1, 1.0).is_err());
        }
    }
}
