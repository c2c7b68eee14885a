//! Continuing texts, the likeliest token at a time. Keys and values of earlier tokens are kept, so that each token is
//! computed once.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::decoder::{Decoder, heads};
use super::{Mode, Network};
use crate::model::config::Config;
use crate::model::ops::{self, Heads};

/// What a decoder wrote behind a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Continuation {
    /// The tokens, less the one that ended them.
    pub words: Vec<u32>,
    /// The sum of the logarithms of their probabilities, that of the end included.
    pub log_probability: f64,
    /// Whether it came to an end by itself.
    pub ended: bool,
}

/// Tokens that go through the layers together at most.
const AT_ONCE: usize = 2048;

/// A token at work: of which text, and where in it.
#[derive(Clone, Copy)]
struct Place {
    text: usize,
    position: usize,
}

impl Network {
    /// Continues each text by the likeliest token, up to `most` times, until that is one of `ends` or the network has no
    /// further position.
    ///
    /// # Errors
    /// The network is no decoder, a text is empty or longer than its positions, a token is outside the vocabulary, or a
    /// failure of the device.
    pub fn continuations(&self, texts: &[&[u32]], most: usize, ends: &[u32]) -> Result<Vec<Continuation>> {
        let Config::Decoder(config) = &self.config else { bail!("only a decoder continues texts") };
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        if texts.iter().any(|text| text.is_empty()) || longest > config.max_position_embeddings {
            bail!("texts of 1 to {} tokens can be continued", config.max_position_embeddings);
        }
        let positions = config.max_position_embeddings.min(longest.saturating_add(most));
        let mode = Mode::evaluation();
        let decoder = Decoder::new(self, config, positions, &mode);
        let mut memory: Vec<Memory> = (0..config.num_hidden_layers).map(|_| Memory::of(texts.len())).collect();
        let mut found = vec![Continuation::default(); texts.len()];
        let all = texts.iter().enumerate().flat_map(|(text, words)| {
            words.iter().enumerate().map(move |(position, word)| (Place { text, position }, *word))
        });
        let mut tokens: Vec<(Place, u32)> = all.collect();
        for _ in 0..most {
            if tokens.is_empty() {
                break;
            }
            let mut next = Vec::with_capacity(texts.len());
            for part in tokens.chunks(AT_ONCE) {
                let last = |place: Place| place.position + 1 >= texts[place.text].len();
                next.extend(decoder.next_words(part, &mut memory, last)?);
            }
            tokens.clear();
            for (Place { text, position }, word, loss) in next {
                let continuation = &mut found[text];
                continuation.log_probability -= loss;
                continuation.ended = ends.contains(&word);
                if !continuation.ended {
                    continuation.words.push(word);
                    if position + 1 < positions {
                        tokens.push((Place { text, position: position + 1 }, word));
                        continue;
                    }
                }
                memory.iter_mut().for_each(|layer| layer.forget(text));
            }
        }
        Ok(found)
    }
}

impl Decoder<'_> {
    /// Takes in the tokens, each text's in order. Gives the likeliest word behind those that `last` says are the last of a text,
    /// with that one's place and minus the logarithm of its probability.
    fn next_words(
        &self,
        tokens: &[(Place, u32)],
        memory: &mut [Memory],
        last: impl Fn(Place) -> bool,
    ) -> Result<Vec<(Place, u32, f64)>> {
        let (places, words): (Vec<Place>, Vec<u32>) = tokens.iter().copied().unzip();
        let mut hidden = self.embedded(&words)?;
        let rotation = &self.rotation;
        let turn = |x: Tensor| {
            let (mut values, width) = values(&x)?;
            let rows = values.par_chunks_exact_mut(width).zip(&places);
            rows.for_each(|(row, place)| rotation.turn(row, place.position, 1.0));
            Tensor::from_vec(values, x.shape(), x.device())
        };
        for (index, memory) in memory.iter_mut().enumerate() {
            let [q, k, v] = self.projections(index, &hidden, turn)?;
            memory.add(&places, &k, &v)?;
            let context = memory.attend(&places, &q, heads(self.config))?;
            hidden = self.behind_attention(index, &hidden, &context)?;
        }
        let rows: Vec<u32> = (0..places.len() as u32).filter(|row| last(places[*row as usize])).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let seen = self.finished(hidden, Some(rows.clone()))?;
        let (scores, width) = values(&ops::linear(&self.mode.tape, &seen, &self.output()?, None)?)?;
        let likeliest = |(scores, row): (&[f32], &u32)| {
            let best = (0..width).fold(0, |best, word| if scores[word] > scores[best] { word } else { best });
            (places[*row as usize], best as u32, ops::row_loss(scores, best))
        };
        Ok(scores.par_chunks_exact(width).zip(&rows).map(likeliest).collect())
    }
}

/// Keys and values of one layer for each text, a row for each of its tokens.
struct Memory {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Memory {
    fn of(texts: usize) -> Self {
        Self { keys: vec![Vec::new(); texts], values: vec![Vec::new(); texts] }
    }

    /// Lets go of what a text's tokens were.
    fn forget(&mut self, text: usize) {
        self.keys[text] = Vec::new();
        self.values[text] = Vec::new();
    }

    /// Adds the rows of tokens.
    fn add(&mut self, places: &[Place], keys: &Tensor, values: &Tensor) -> Result<()> {
        for (memory, rows) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let (rows, width) = self::values(rows)?;
            for (place, row) in places.iter().zip(rows.chunks_exact(width)) {
                memory[place.text].extend_from_slice(row);
            }
        }
        Ok(())
    }

    /// softmax(q kᵀ / √depth) v for each query `[tokens, heads · depth]`, over its text's tokens up to its own.
    fn attend(&self, places: &[Place], queries: &Tensor, heads: Heads) -> Result<Tensor> {
        let (mut rows, width) = values(queries)?;
        let (depth, group) = (width / heads.queries, heads.queries / heads.keys);
        let key_width = depth * heads.keys;
        rows.par_chunks_exact_mut(width).zip(places).for_each(|(row, place)| {
            ops::vectorised(|| {
                let mut shares = vec![0.0; place.position + 1];
                for (head, query) in row.chunks_exact_mut(depth).enumerate() {
                    let first = head / group * depth;
                    for (share, key) in shares.iter_mut().zip(self.keys[place.text].chunks_exact(key_width)) {
                        *share = ops::dot(query, &key[first..first + depth]) / (depth as f32).sqrt();
                    }
                    ops::softmax(&mut shares);
                    query.fill(0.0);
                    for (share, value) in shares.iter().zip(self.values[place.text].chunks_exact(key_width)) {
                        for (sum, value) in query.iter_mut().zip(&value[first..first + depth]) {
                            *sum += share * value;
                        }
                    }
                }
            });
        });
        Tensor::from_vec(rows, queries.shape(), queries.device())
    }
}

/// The values of a matrix, and its width.
fn values(matrix: &Tensor) -> Result<(Vec<f32>, usize)> {
    let values = ops::read_values(&matrix.to_device(&Device::Cpu)?, |values| Ok(values.to_vec()))?;
    match matrix.dim(1)? {
        0 => bail!("a matrix without columns"),
        width => Ok((values, width)),
    }
}
