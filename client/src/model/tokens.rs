//! Texts to tokens.

use std::path::Path;

use tokenizers::{Tokenizer, TruncationParams};

use super::batch::Tokens;
use super::error::ModelError;
use super::folder;

/// No tokenizer of a BERT model comes near this size.
const MAX_BYTES: u64 = 256 << 20;

/// Counts the tokens of texts, which it does not cut.
pub struct TokenCounter(Tokenizer);

impl std::fmt::Debug for TokenCounter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("TokenCounter")
    }
}

impl TokenCounter {
    /// Reads tokenizer.json of a folder in Hugging Face layout.
    ///
    /// # Errors
    /// The folder lacks a file, or the tokenizer is none.
    pub fn load(model: &Path) -> Result<Self, ModelError> {
        folder::check(model)?;
        let path = model.join(folder::TOKENIZER);
        let bytes = folder::read(path.clone(), MAX_BYTES)?;
        let wrong = |e: tokenizers::Error| ModelError::Tokenizer { path: path.clone(), message: e.to_string() };
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(wrong)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(wrong)?;
        Ok(Self(tokenizer))
    }

    /// The number of tokens of each text, special tokens counted.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn count(&self, texts: Vec<String>) -> Result<Vec<usize>, ModelError> {
        let failed = |e: tokenizers::Error| candle_core::Error::Msg(format!("the tokenizer failed: {e}"));
        let encodings = self.0.encode_batch_fast(texts, true).map_err(failed)?;
        Ok(encodings.iter().map(tokenizers::Encoding::len).collect())
    }
}

/// The tokenizer of a model, set to cut at a length and never to pad.
pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "TextTokenizer(max_length {})", self.max_length)
    }
}

impl TextTokenizer {
    /// Reads tokenizer.json of `model`. Without `max_length` the tokenizer's own cut applies, or else `positions`.
    pub(super) fn load(
        model: &Path,
        vocabulary: usize,
        positions: usize,
        max_length: Option<usize>,
    ) -> Result<Self, ModelError> {
        let path = model.join(folder::TOKENIZER);
        let wrong = |message: String| ModelError::Tokenizer { path: path.clone(), message };
        let bytes = folder::read(path.clone(), MAX_BYTES)?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| wrong(e.to_string()))?;
        let largest = tokenizer.get_vocab(true).into_values().max();
        match largest {
            Some(largest) if (largest as usize) < vocabulary => {}
            Some(largest) => return Err(ModelError::Vocabulary { path, largest, vocabulary }),
            None => return Err(wrong("it has no tokens".into())),
        }
        let max_length = match max_length {
            Some(max_length) => max_length,
            None => tokenizer.get_truncation().map_or(positions, |cut| cut.max_length.min(positions)),
        };
        let special = tokenizer.get_post_processor().map_or(0, |processor| {
            use tokenizers::PostProcessor;
            processor.added_tokens(false)
        });
        if max_length <= special {
            return Err(wrong(format!("{special} special tokens leave no room in a length of {max_length}")));
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..Default::default() }))
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Self { tokenizer, max_length })
    }

    /// Longest sequence, special tokens counted.
    pub(super) fn max_length(&self) -> usize {
        self.max_length
    }

    /// Tokens of each text, in order.
    pub(super) fn encode(&self, texts: &[&str]) -> Result<Vec<Tokens>, candle_core::Error> {
        let failed = |e: tokenizers::Error| candle_core::Error::Msg(format!("the tokenizer failed: {e}"));
        let encodings = self.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(failed)?;
        encodings
            .into_iter()
            .map(|encoding| {
                let tokens = Tokens { words: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec() };
                if tokens.words.is_empty() {
                    return Err(candle_core::Error::Msg("the tokenizer made no token of a text".into()));
                }
                Ok(tokens)
            })
            .collect()
    }
}
