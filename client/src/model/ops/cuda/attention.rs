//! Scaled dot-product attention: products by cuBLAS, and between them one kernel that knows which keys a query sees. The
//! backward pass computes the probabilities again, and scores are in memory for some sequences at a time.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaDevice, Result, Tensor, bail};
use fedtune_config::job::Precision;
use half::bf16;

use super::launch::{
    Argument, Element, Matrices, Source, Threads, arguments, gpu, launch, multiply, room, small, tensor, views,
};
use super::node::node;
use crate::model::ops::{Dropout, Heads, Scope, Tape};

/// Scores that are in memory at once, unless one sequence has more.
const SCORES: usize = 1 << 28;

/// What both passes are told.
struct Attention {
    heads: Heads,
    depth: usize,
    sequences: usize,
    /// Rows of a sequence.
    queries: usize,
    keys: usize,
    /// Keys of each sequence that are no padding.
    lengths: CudaSlice<u32>,
    window: Option<usize>,
    causal: bool,
    dropout: Option<Dropout>,
}

/// Some sequences.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    count: usize,
}

/// Buffers of a part, each head a matrix of its own. Those of queries that share keys lie below each other, so that they
/// are one matrix beside these.
struct Factors<T> {
    q: CudaSlice<T>,
    k: CudaSlice<T>,
    v: CudaSlice<T>,
}

fn view<T>(values: &CudaSlice<T>) -> CudaView<'_, T> {
    values.as_view()
}

/// What [`Argument`] takes of a type.
trait Lists: Element {
    fn read(values: &CudaSlice<Self>) -> Argument<'_>;
    fn write(values: &mut CudaSlice<Self>) -> Argument<'_>;
}

impl Lists for f32 {
    fn read(values: &CudaSlice<Self>) -> Argument<'_> {
        values.into()
    }

    fn write(values: &mut CudaSlice<Self>) -> Argument<'_> {
        values.into()
    }
}

impl Lists for bf16 {
    fn read(values: &CudaSlice<Self>) -> Argument<'_> {
        values.into()
    }

    fn write(values: &mut CudaSlice<Self>) -> Argument<'_> {
        values.into()
    }
}

impl Attention {
    fn parts(&self) -> impl Iterator<Item = Part> {
        let each = (self.heads.queries * self.queries * self.keys).max(1);
        let most = (SCORES / each).max(1);
        let sequences = self.sequences;
        (0..sequences).step_by(most).map(move |first| Part { first, count: most.min(sequences - first) })
    }

    /// Rows of a part's matrices of scores: queries of the heads that share keys.
    fn together(&self) -> usize {
        self.heads.queries / self.heads.keys * self.queries
    }

    /// How many such matrices a part has.
    fn matrices(&self, part: Part) -> usize {
        part.count * self.heads.keys
    }

    fn score_count(&self, part: Part) -> usize {
        part.count * self.heads.queries * self.queries * self.keys
    }

    /// The rows of a part `[sequences · length, heads · depth]` as `[sequences, heads, length, depth]`.
    fn split<T: Lists>(
        &self,
        device: &CudaDevice,
        x: &CudaView<'_, f32>,
        part: Part,
        heads: usize,
        length: usize,
    ) -> Result<CudaSlice<T>> {
        let count = part.count * length * heads * self.depth;
        let mut out = room::<T>(device, count)?;
        let numbers = [part.first, length, heads, self.depth].map(small);
        let [first, length, heads, depth] = numbers;
        let arguments =
            [x.into(), T::write(&mut out), count.into(), first?.into(), length?.into(), heads?.into(), depth?.into()];
        launch(device, Source::Attention, &format!("split_{}", T::NAME), Threads::over(count), arguments)?;
        Ok(out)
    }

    /// The way back, into the part's rows of `out`.
    fn merge<T: Lists>(
        &self,
        device: &CudaDevice,
        x: &CudaSlice<T>,
        out: &mut CudaSlice<f32>,
        part: Part,
        heads: usize,
        length: usize,
    ) -> Result<()> {
        let count = part.count * length * heads * self.depth;
        let numbers = [part.first, length, heads, self.depth].map(small);
        let [first, length, heads, depth] = numbers;
        let arguments =
            [T::read(x), out.into(), count.into(), first?.into(), length?.into(), heads?.into(), depth?.into()];
        launch(device, Source::Attention, &format!("merge_{}", T::NAME), Threads::over(count), arguments)
    }

    fn factors<T: Lists>(
        &self,
        device: &CudaDevice,
        inputs: [&CudaView<'_, f32>; 3],
        part: Part,
    ) -> Result<Factors<T>> {
        let [q, k, v] = inputs;
        Ok(Factors {
            q: self.split(device, q, part, self.heads.queries, self.queries)?,
            k: self.split(device, k, part, self.heads.keys, self.keys)?,
            v: self.split(device, v, part, self.heads.keys, self.keys)?,
        })
    }

    /// The numbers that every kernel over scores ends with.
    fn numbers(&self, part: Part) -> Result<[Argument<'static>; 11]> {
        let (key, threshold, kept) = Dropout::numbers(self.dropout);
        let window = match self.window {
            // One beyond the kernels' numbers sees all.
            Some(window) => u32::try_from(window).unwrap_or(u32::MAX),
            None => u32::MAX,
        };
        Ok(arguments![
            part.count * self.heads.queries * self.queries,
            small(part.first)?,
            small(self.heads.queries)?,
            small(self.queries)?,
            small(self.keys)?,
            window,
            self.causal,
            1.0 / (self.depth as f32).sqrt(),
            key,
            threshold,
            kept,
        ])
    }

    /// `left right`, or `left rightᵀ`, for each matrix of scores: its rows by `right` of `[keys, depth]`.
    fn by_keys<T: Element>(
        &self,
        device: &CudaDevice,
        part: Part,
        left: &CudaSlice<T>,
        right: &CudaSlice<T>,
        transposed: bool,
    ) -> Result<CudaSlice<T>> {
        let (rows, keys, depth) = (self.together(), self.keys, self.depth);
        let (left, right) = (view(left), view(right));
        let right = Matrices::new(&right, keys, depth);
        let ((left, right), width) = match transposed {
            true => ((Matrices::new(&left, rows, depth), right.transposed()), keys),
            false => ((Matrices::new(&left, rows, keys), right), depth),
        };
        let mut out = room::<T>(device, self.matrices(part) * rows * width)?;
        multiply(device, &mut out.as_view_mut(), self.matrices(part), left, right, 1.0, 0.0)?;
        Ok(out)
    }

    /// `scoresᵀ right`, of `[keys, rows]` by `[rows, depth]`.
    fn by_queries<T: Element>(
        &self,
        device: &CudaDevice,
        part: Part,
        scores: &CudaSlice<T>,
        right: &CudaSlice<T>,
    ) -> Result<CudaSlice<T>> {
        let (rows, keys, depth) = (self.together(), self.keys, self.depth);
        let (scores, right) = (view(scores), view(right));
        let mut out = room::<T>(device, self.matrices(part) * keys * depth)?;
        let (left, right) = (Matrices::new(&scores, rows, keys).transposed(), Matrices::new(&right, rows, depth));
        multiply(device, &mut out.as_view_mut(), self.matrices(part), left, right, 1.0, 0.0)?;
        Ok(out)
    }

    /// The probabilities without dropout, and with it where there is one.
    fn both<T: Lists>(
        &self,
        device: &CudaDevice,
        part: Part,
        mut scores: CudaSlice<T>,
    ) -> Result<(CudaSlice<T>, Option<CudaSlice<T>>)> {
        if self.dropout.is_none() {
            return Ok((self.probabilities(device, part, scores)?, None));
        }
        let mut dropped = room::<T>(device, self.score_count(part))?;
        let mut arguments: Vec<Argument<'_>> =
            vec![(&self.lengths).into(), T::write(&mut scores), T::write(&mut dropped)];
        arguments.extend(self.numbers(part)?);
        let rows = part.count * self.heads.queries * self.queries;
        launch(device, Source::Attention, &format!("attend_both_{}", T::NAME), Threads::warps(rows), arguments)?;
        Ok((scores, Some(dropped)))
    }

    /// The probabilities, with dropout where there is one, in place of the scores.
    fn probabilities<T: Lists>(
        &self,
        device: &CudaDevice,
        part: Part,
        mut scores: CudaSlice<T>,
    ) -> Result<CudaSlice<T>> {
        let mut arguments: Vec<Argument<'_>> = vec![(&self.lengths).into(), T::write(&mut scores)];
        arguments.extend(self.numbers(part)?);
        let rows = part.count * self.heads.queries * self.queries;
        launch(device, Source::Attention, &format!("attend_{}", T::NAME), Threads::warps(rows), arguments)?;
        Ok(scores)
    }

    fn forward<T: Lists>(&self, inputs: [&Tensor; 3]) -> Result<CudaSlice<f32>> {
        let ([q, k, v], device) = (inputs, gpu(inputs[0])?);
        let mut out = room(device, q.elem_count())?;
        views!(q, k, v);
        for part in self.parts() {
            let Factors { q, k, v } = self.factors::<T>(device, [&q, &k, &v], part)?;
            let scores = self.by_keys(device, part, &q, &k, true)?;
            let probabilities = self.probabilities(device, part, scores)?;
            let context = self.by_keys(device, part, &probabilities, &v, false)?;
            self.merge(device, &context, &mut out, part, self.heads.queries, self.queries)?;
        }
        Ok(out)
    }

    /// With P the probabilities and D the mask: dV = (P∘D)ᵀ g, dP = g Vᵀ, dS = scale · P∘(dP∘D − rowsum(dP∘D∘P)),
    /// dQ = dS K, dK = dSᵀ Q.
    fn backward<T: Lists>(&self, inputs: [&Tensor; 3], g: &Tensor) -> Result<[Tensor; 3]> {
        let ([q, k, v], device) = (inputs, gpu(g)?);
        let shapes = inputs.map(|input| input.shape().clone());
        let (mut dq, mut dk) = (room(device, q.elem_count())?, room(device, k.elem_count())?);
        let mut dv = room(device, v.elem_count())?;
        views!(q, k, v, g);
        for part in self.parts() {
            let Factors { q, k, v } = self.factors::<T>(device, [&q, &k, &v], part)?;
            let g = self.split::<T>(device, &g, part, self.heads.queries, self.queries)?;
            let scores = self.by_keys(device, part, &q, &k, true)?;
            let (probabilities, dropped) = self.both(device, part, scores)?;
            let d_values = self.by_queries(device, part, dropped.as_ref().unwrap_or(&probabilities), &g)?;
            drop(dropped);
            self.merge(device, &d_values, &mut dv, part, self.heads.keys, self.keys)?;
            let mut d_scores = self.by_keys(device, part, &g, &v, true)?;
            let mut arguments: Vec<Argument<'_>> = vec![T::read(&probabilities), T::write(&mut d_scores)];
            arguments.extend(self.numbers(part)?);
            let rows = part.count * self.heads.queries * self.queries;
            launch(device, Source::Attention, &format!("attend_back_{}", T::NAME), Threads::warps(rows), arguments)?;
            let d_queries = self.by_keys(device, part, &d_scores, &k, false)?;
            self.merge(device, &d_queries, &mut dq, part, self.heads.queries, self.queries)?;
            let d_keys = self.by_queries(device, part, &d_scores, &q)?;
            self.merge(device, &d_keys, &mut dk, part, self.heads.keys, self.keys)?;
        }
        let [q_shape, k_shape, v_shape] = shapes;
        Ok([tensor(dq, device, q_shape), tensor(dk, device, k_shape), tensor(dv, device, v_shape)])
    }
}

pub(crate) fn attention(
    tape: &Tape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    Scope { queries, keys, window, causal }: Scope<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    if !queries.is_padded() || !keys.is_padded() {
        bail!("attention on this device needs a padded batch");
    }
    let ((q_rows, width), (k_rows, key_width), sequences) = (q.dims2()?, k.dims2()?, keys.sequences());
    let fits = heads.fit(width, key_width)
        && v.dims2()? == (k_rows, key_width)
        && (q_rows, k_rows) == (queries.rows(), keys.rows())
        && queries.sequences() == sequences
        && q_rows == sequences * queries.width()
        && k_rows == sequences * keys.width();
    if !fits {
        bail!("attention: q {:?}, k {:?}, v {:?} do not fit {heads:?}", q.shape(), k.shape(), v.shape());
    }
    let lengths = (0..sequences).map(|sequence| small(keys.span(sequence).len())).collect::<Result<Vec<_>>>()?;
    let op = Attention {
        heads,
        depth: width / heads.queries,
        sequences,
        queries: queries.width(),
        keys: keys.width(),
        lengths: gpu(q)?.clone_htod(&lengths)?,
        window,
        causal,
        dropout,
    };
    let (arguments, precision) = ([q, k, v], tape.precision());
    let out = match precision {
        Precision::F32 | Precision::F16 => op.forward::<f32>(arguments)?,
        Precision::Bf16 => op.forward::<bf16>(arguments)?,
    };
    let wanted = arguments.map(|argument| argument.track_op());
    let quiet = arguments.map(|argument| argument.detach());
    node(tape, "attention", &arguments, out, (q_rows, width), move |g| {
        let inputs = quiet.each_ref();
        let gradients = match precision {
            Precision::F32 | Precision::F16 => op.backward::<f32>(inputs, g)?,
            Precision::Bf16 => op.backward::<bf16>(inputs, g)?,
        };
        Ok(gradients.into_iter().zip(wanted).map(|(gradient, wanted)| wanted.then_some(gradient)).collect())
    })
}
