//! Texts to tokens.

use std::path::Path;

use fedtune_config::job::{PROMPT, RESPONSE};
use tokenizers::{EncodeInput, Encoding, InputSequence, Tokenizer, TruncationParams};

use super::batch::Tokens;
use super::config::Reads;
use super::error::ModelError;
use super::folder;

/// No tokenizer of a BERT model comes near this size.
const MAX_BYTES: u64 = 256 << 20;

/// What is made tokens of.
#[derive(Debug, Clone, Copy)]
pub enum Text<'a> {
    /// A text.
    Single(&'a str),
    /// Two texts, as the tokenizer puts pairs together.
    Pair(&'a str, &'a str),
    /// Words, each of which has a label.
    Words(&'a [String]),
    /// A prompt and the response to it, put together by a template.
    Exchange {
        /// What is given.
        prompt: &'a str,
        /// What is to follow.
        response: &'a str,
    },
}

/// Tokens, and what a token of them stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub tokens: Tokens,
    /// For words, the place of the word that begins with each token. For an exchange, 0 for each token of the response. Else
    /// empty.
    pub marks: Vec<Option<u32>>,
}

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
        folder::check(model, Reads::Texts)?;
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
    pub fn count(&self, texts: &[Text<'_>]) -> Result<Vec<usize>, ModelError> {
        let failed = |e: tokenizers::Error| candle_core::Error::Msg(format!("the tokenizer failed: {e}"));
        let inputs: Vec<EncodeInput<'_>> = texts
            .iter()
            .map(|text| match *text {
                Text::Single(text) => EncodeInput::Single(text.into()),
                Text::Pair(one, other) => EncodeInput::Dual(one.into(), other.into()),
                Text::Words(words) => EncodeInput::Single(InputSequence::PreTokenizedOwned(words.into())),
                Text::Exchange { prompt, response } => EncodeInput::Single(format!("{prompt}\n{response}").into()),
            })
            .collect();
        let encodings = self.0.encode_batch_fast(inputs, true).map_err(failed)?;
        Ok(encodings.iter().map(tokenizers::Encoding::len).collect())
    }
}

/// The tokenizer of a model, set to cut at a length and never to pad.
pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    /// Whether a word must have a space before it to be a word.
    spaced_words: bool,
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
        let spaced_words = serde_json::to_value(tokenizer.get_pre_tokenizer()).is_ok_and(|value| needs_space(&value));
        Ok(Self { tokenizer, max_length, spaced_words })
    }

    /// Longest sequence, special tokens counted.
    pub(super) fn max_length(&self) -> usize {
        self.max_length
    }

    /// Tokens of each prompt with what the template has before and behind it, up to where the response begins. Of those that
    /// are more than `most` the end of the prompt itself is left out.
    pub(super) fn prompts(
        &self,
        prompts: &[&str],
        template: &str,
        most: usize,
    ) -> Result<Vec<Vec<u32>>, candle_core::Error> {
        let failed = |e: tokenizers::Error| candle_core::Error::Msg(format!("the tokenizer failed: {e}"));
        let mut uncut = self.tokenizer.clone();
        uncut.with_truncation(None).map_err(failed)?;
        let (mut given, mut ends) = (Vec::with_capacity(prompts.len()), Vec::with_capacity(prompts.len()));
        for prompt in prompts {
            let (mut text, response) = put_together(template, prompt, "");
            text.truncate(response);
            // What stands behind the prompt does without it too.
            let (without, behind) = put_together(template, "", "");
            let before = template.find(PROMPT).unwrap_or(0).min(behind);
            ends.push(text.len() - without[before..behind].len());
            given.push(EncodeInput::from(text));
        }
        let encodings = uncut.encode_batch(given, true).map_err(failed)?;
        let words = encodings.iter().zip(ends).map(|(encoding, end)| {
            // What the tokenizer puts behind a text belongs behind the response.
            let added = encoding.get_special_tokens_mask().iter().rev().take_while(|mask| **mask == 1).count();
            let mut words = encoding.get_ids().to_vec();
            words.truncate(words.len() - added);
            let places = &encoding.get_offsets()[..words.len()];
            let tail = places.iter().rev().take_while(|(start, _)| *start >= end).count().min(most);
            if let Some(more @ 1..) = words.len().checked_sub(most) {
                let tail = words.len() - tail;
                words.drain(tail - more.min(tail)..tail);
            }
            match words.is_empty() {
                true => Err(candle_core::Error::Msg("the tokenizer made no token of a prompt".into())),
                false => Ok(words),
            }
        });
        words.collect()
    }

    /// The text of tokens, less special ones.
    pub(super) fn text(&self, words: &[u32]) -> Result<String, candle_core::Error> {
        let failed = |e: tokenizers::Error| candle_core::Error::Msg(format!("the tokenizer failed: {e}"));
        self.tokenizer.decode(words, true).map_err(failed)
    }

    /// Tokens of each text, in order. `template` puts exchanges together, and `end` is the token that ends them where they
    /// are not cut.
    pub(super) fn encode(
        &self,
        texts: &[Text<'_>],
        template: &str,
        end: Option<u32>,
    ) -> Result<Vec<Encoded>, candle_core::Error> {
        let failed = |e: tokenizers::Error| candle_core::Error::Msg(format!("the tokenizer failed: {e}"));
        let (mut marked, mut starts) = (false, Vec::with_capacity(texts.len()));
        let inputs: Vec<EncodeInput<'_>> = texts
            .iter()
            .map(|text| {
                let mut start = None;
                let input = match *text {
                    Text::Single(text) => EncodeInput::Single(text.into()),
                    Text::Pair(one, other) => EncodeInput::Dual(one.into(), other.into()),
                    Text::Words(words) => {
                        marked = true;
                        EncodeInput::Single(match self.spaced_words {
                            true => words.iter().map(|word| format!(" {word}")).collect::<Vec<_>>().into(),
                            false => InputSequence::PreTokenizedOwned(words.into()),
                        })
                    }
                    Text::Exchange { prompt, response } => {
                        marked = true;
                        let (text, response) = put_together(template, prompt, response);
                        start = Some(response);
                        EncodeInput::Single(text.into())
                    }
                };
                starts.push(start);
                input
            })
            .collect();
        // Only the slower way tells where tokens come from.
        let encodings = match marked {
            true => self.tokenizer.encode_batch(inputs, true).map_err(failed)?,
            false => self.tokenizer.encode_batch_fast(inputs, true).map_err(failed)?,
        };
        encodings
            .iter()
            .zip(texts)
            .zip(starts)
            .map(|((encoding, text), start)| {
                let mut tokens = Tokens { words: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec() };
                if tokens.words.is_empty() {
                    return Err(candle_core::Error::Msg("the tokenizer made no token of a text".into()));
                }
                let mut marks = match (text, start) {
                    (Text::Words(_), _) => first_of_words(encoding),
                    (_, Some(start)) => {
                        encoding.get_offsets().iter().map(|(_, end)| (*end > start).then_some(0)).collect()
                    }
                    _ => Vec::new(),
                };
                if let (Some(_), Some(end)) = (start, end)
                    && tokens.words.len() < self.max_length
                    && tokens.words.last() != Some(&end)
                {
                    tokens.words.push(end);
                    tokens.types.push(0);
                    marks.push(Some(0));
                }
                Ok(Encoded { tokens, marks })
            })
            .collect()
    }
}

/// The text of an exchange, and the byte where the response begins. A template without the two places is that of a job that
/// names none.
fn put_together(template: &str, prompt: &str, response: &str) -> (String, usize) {
    let parts = template.split_once(PROMPT).and_then(|(before, rest)| Some((before, rest.split_once(RESPONSE)?)));
    let (before, (between, after)) = parts.unwrap_or(("", ("\n", "")));
    let given = format!("{before}{prompt}{between}");
    let start = given.len();
    (given + response + after, start)
}

/// For each token the place of the word that it is the first one of.
fn first_of_words(encoding: &Encoding) -> Vec<Option<u32>> {
    let mut last = None;
    encoding
        .get_word_ids()
        .iter()
        .map(|word| {
            let first = *word != last && word.is_some();
            last = *word;
            word.filter(|_| first)
        })
        .collect()
}

/// Whether a pre-tokenizer of bytes marks the beginning of words by the space before them, and adds none itself; transformers
/// asks for `add_prefix_space` then.
fn needs_space(pre_tokenizer: &serde_json::Value) -> bool {
    match pre_tokenizer {
        serde_json::Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "ByteLevel") => {
            fields.get("add_prefix_space").is_some_and(|add| add == false)
        }
        serde_json::Value::Object(fields) => fields.values().any(needs_space),
        serde_json::Value::Array(items) => items.iter().any(needs_space),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_where_the_response_begins() {
        for (template, text) in [
            ("{prompt}\n{response}", "{response}?\nSo."),
            ("Q: {prompt} A: {response}!", "Q: {response}? A: So.!"),
            ("", "{response}?\nSo."),
        ] {
            let (found, start) = put_together(template, "{response}?", "So.");
            assert_eq!(found, text);
            assert!(found[start..].starts_with("So."), "{found} {start}");
        }
    }

    #[test]
    fn byte_level_words_need_a_space() {
        let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false});
        let several = serde_json::json!({"type": "Sequence", "pretokenizers": [{"type": "Split"}, bytes]});
        assert!(needs_space(&bytes) && needs_space(&several));
        assert!(!needs_space(&serde_json::json!({"type": "ByteLevel", "add_prefix_space": true})));
        assert!(!needs_space(&serde_json::json!({"type": "Whitespace"})) && !needs_space(&serde_json::Value::Null));
    }
}
