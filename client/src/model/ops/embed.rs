//! The three embeddings and their sum as one op.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::values::{read, slice};

/// For every token, its row in the word, position and token-type table.
#[derive(Debug, Clone)]
pub(crate) struct Indices {
    pub(crate) words: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) types: Vec<u32>,
}

pub(super) struct Embed {
    pub(super) indices: Indices,
}

impl CustomOp3 for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(
        &self,
        words: &CpuStorage,
        words_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
        types: &CpuStorage,
        types_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = words_layout.shape().dims2()?.1;
        let Indices { words: w, positions: p, types: t } = &self.indices;
        for (name, layout, indices) in
            [("words", words_layout, w), ("positions", positions_layout, p), ("types", types_layout, t)]
        {
            let (entries, table_width) = layout.shape().dims2()?;
            if table_width != width || indices.len() != w.len() || indices.iter().any(|i| *i as usize >= entries) {
                bail!("embed: {name} table [{entries}, {table_width}] does not fit its {} indices", indices.len());
            }
        }
        let (words, positions, types) =
            (slice(words, words_layout)?, slice(positions, positions_layout)?, slice(types, types_layout)?);
        let mut out = vec![0.0; w.len() * width];
        if width > 0 {
            out.par_chunks_mut(width).with_min_len(64).enumerate().for_each(|(token, out)| {
                let row = |table: &'_ [f32], index: u32| -> std::ops::Range<usize> {
                    debug_assert!(index as usize * width < table.len().max(1));
                    index as usize * width..(index as usize + 1) * width
                };
                let (w, p, t) =
                    (&words[row(words, w[token])], &positions[row(positions, p[token])], &types[row(types, t[token])]);
                for i in 0..width {
                    out[i] = w[i] + t[i] + p[i];
                }
            });
        }
        Ok((CpuStorage::F32(out), (w.len(), width).into()))
    }

    fn bwd(
        &self,
        words: &Tensor,
        positions: &Tensor,
        types: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let scatter = |table: &Tensor, indices: &[u32]| -> Result<Option<Tensor>> {
            if !table.track_op() {
                return Ok(None);
            }
            let (entries, width) = table.dims2()?;
            let mut sums = vec![0.0; entries * width];
            read(grad, |g| {
                for (index, g) in indices.iter().zip(g.chunks_exact(width.max(1))) {
                    let start = *index as usize * width;
                    for (sum, g) in sums[start..start + width].iter_mut().zip(g) {
                        *sum += g;
                    }
                }
                Ok(())
            })?;
            Ok(Some(Tensor::from_vec(sums, (entries, width), table.device())?))
        };
        Ok((
            scatter(words, &self.indices.words)?,
            scatter(positions, &self.indices.positions)?,
            scatter(types, &self.indices.types)?,
        ))
    }
}
