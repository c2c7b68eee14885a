//! How the sequences of a batch lie below each other in a matrix of token rows.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};

use super::ops::Indices;

/// A tokenised text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Vocabulary indices, special tokens included; at least one.
    pub words: Vec<u32>,
    /// Token types, as many.
    pub types: Vec<u32>,
}

/// Where each sequence of a batch lies.
#[derive(Debug, Clone)]
pub struct Layout {
    spans: Arc<[Range<usize>]>,
    rows: usize,
    width: usize,
    padded: bool,
}

impl Layout {
    /// Sequences directly below each other: no row is padding, so none is computed.
    pub fn packed(lengths: &[usize]) -> Self {
        let mut rows = 0;
        let spans = lengths
            .iter()
            .map(|length| {
                rows += length;
                rows - length..rows
            })
            .collect();
        let width = lengths.iter().copied().max().unwrap_or(0);
        Self { spans, rows, width, padded: lengths.iter().all(|length| *length == width) }
    }

    /// Every sequence padded to the longest.
    pub fn padded(lengths: &[usize]) -> Self {
        let width = lengths.iter().copied().max().unwrap_or(0);
        let spans = lengths.iter().enumerate().map(|(i, length)| i * width..i * width + length).collect();
        Self { spans, rows: lengths.len() * width, width, padded: true }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.spans.len()
    }

    /// Length of the longest sequence.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows of a sequence.
    pub fn span(&self, sequence: usize) -> Range<usize> {
        self.spans[sequence].clone()
    }

    /// The first row of every sequence.
    pub fn starts(&self) -> Vec<u32> {
        self.spans.iter().map(|span| span.start as u32).collect()
    }

    /// Whether every sequence takes the same number of rows.
    pub fn is_padded(&self) -> bool {
        self.padded
    }
}

/// A batch ready for the model.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Where the sequences lie.
    pub(crate) layout: Layout,
    /// The rows' indices into the embedding tables.
    pub(crate) indices: Indices,
}

impl Batch {
    /// Sequences below each other, without padding.
    pub fn packed(sequences: &[&Tokens]) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.words.len()).collect();
        Self::filled(Layout::packed(&lengths), sequences)
    }

    /// Every sequence padded to the longest with token 0, which attention then leaves out.
    pub fn padded(sequences: &[&Tokens]) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.words.len()).collect();
        Self::filled(Layout::padded(&lengths), sequences)
    }

    fn filled(layout: Layout, sequences: &[&Tokens]) -> Self {
        let rows = layout.rows();
        let mut indices = Indices { words: vec![0; rows], positions: vec![0; rows], types: vec![0; rows] };
        for (i, tokens) in sequences.iter().enumerate() {
            let span = layout.span(i);
            indices.words[span.clone()].copy_from_slice(&tokens.words);
            indices.types[span.clone()].copy_from_slice(&tokens.types);
            for (position, row) in indices.positions[span].iter_mut().enumerate() {
                *row = position as u32;
            }
        }
        Self { layout, indices }
    }

    /// The rows of tokens that count, and the label of each. `targets` has one for each token of each sequence; with `next`
    /// it is what the token before should lead to.
    ///
    /// # Errors
    /// There are fewer or more targets than tokens, or none that counts.
    pub(crate) fn counted(&self, targets: &[Vec<Option<u32>>], next: bool) -> Result<(Vec<u32>, Vec<u32>)> {
        let fits =
            targets.len() == self.len() && (0..self.len()).all(|i| self.layout.span(i).len() == targets[i].len());
        if !fits {
            bail!("the targets do not fit the tokens of the batch");
        }
        let ahead = usize::from(next);
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for (sequence, targets) in targets.iter().enumerate() {
            for (row, target) in self.layout.span(sequence).zip(targets.iter().skip(ahead)) {
                if let Some(label) = target {
                    rows.push(row as u32);
                    labels.push(*label);
                }
            }
        }
        if rows.is_empty() {
            bail!("no token of the batch counts");
        }
        Ok((rows, labels))
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.layout.sequences()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
