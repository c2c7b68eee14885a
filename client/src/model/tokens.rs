//! Texts to tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
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
        let tokenizer = unpanicked(|| {
            let mut tokenizer = Tokenizer::from_bytes(&bytes)?;
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None)?;
            Ok(tokenizer)
        });
        Ok(Self(tokenizer.map_err(wrong)?))
    }

    /// The number of tokens of each text, special tokens counted.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn count(&self, texts: &[Text<'_>]) -> Result<Vec<usize>, ModelError> {
        let inputs: Vec<EncodeInput<'_>> = texts
            .iter()
            .map(|text| match *text {
                Text::Single(text) => EncodeInput::Single(text.into()),
                Text::Pair(one, other) => EncodeInput::Dual(one.into(), other.into()),
                Text::Words(words) => EncodeInput::Single(InputSequence::PreTokenizedOwned(words.into())),
                Text::Exchange { prompt, response } => EncodeInput::Single(format!("{prompt}\n{response}").into()),
            })
            .collect();
        let encodings = unpanicked(|| self.0.encode_batch_fast(inputs, true)).map_err(failed)?;
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
        let read = unpanicked(|| {
            let tokenizer = Tokenizer::from_bytes(&bytes)?;
            let largest = tokenizer.get_vocab(true).into_values().max();
            Ok((tokenizer, largest))
        });
        let (mut tokenizer, largest) = read.map_err(|e| wrong(e.to_string()))?;
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
        let uncut = unpanicked(|| {
            let mut uncut = self.tokenizer.clone();
            uncut.with_truncation(None)?;
            Ok(uncut)
        });
        let uncut = uncut.map_err(failed)?;
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
        let encodings = unpanicked(|| uncut.encode_batch(given, true)).map_err(failed)?;
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
        unpanicked(|| self.tokenizer.decode(words, true)).map_err(failed)
    }

    /// Tokens of each text, in order. `template` puts exchanges together, and `end` is the token that ends them where they
    /// are not cut.
    pub(super) fn encode(
        &self,
        texts: &[Text<'_>],
        template: &str,
        end: Option<u32>,
    ) -> Result<Vec<Encoded>, candle_core::Error> {
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
        let encodings = unpanicked(|| match marked {
            true => self.tokenizer.encode_batch(inputs, true),
            false => self.tokenizer.encode_batch_fast(inputs, true),
        });
        let encodings = encodings.map_err(failed)?;
        encodings
            .iter()
            .zip(texts)
            .zip(starts)
            .map(|((encoding, text), start)| {
                let mut tokens = Tokens { words: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec() };
                if tokens.words.is_empty() {
                    return Err(candle_core::Error::Msg("the tokenizer made no token of a text".into()));
                }
                // A post-processor may repeat what was cut.
                if tokens.words.len() > self.max_length {
                    return Err(candle_core::Error::Msg(format!(
                        "the tokenizer made {} tokens of a text that it was to cut at {}",
                        tokens.words.len(),
                        self.max_length
                    )));
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

/// What a tokenizer.json says that its library does not check, such as a template with a token that it does not define, makes
/// the library panic.
fn unpanicked<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    let torn = "its parts do not go together; expected one that the library tokenizers has written";
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(torn.into()))
}

fn failed(error: tokenizers::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("the tokenizer failed: {error}"))
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
    use serde_json::{Value, json};

    use super::*;

    fn tokenizer(pre_tokenizer: Value, post_processor: Value) -> Result<TextTokenizer, ModelError> {
        let text = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}});
        let model = tempfile::tempdir().expect("a folder");
        std::fs::write(model.path().join(folder::TOKENIZER), text.to_string()).expect("a folder of our own");
        TextTokenizer::load(model.path(), 2, 8, Some(4))
    }

    fn said(found: Result<TextTokenizer, ModelError>) -> String {
        let found = found.expect("as far as can be read");
        let text = Text::Single("a a a a a a");
        found.encode(&[text], "", None).expect_err("it cannot be used").to_string()
    }

    #[test]
    fn a_tokenizer_that_the_library_gives_up_on_is_refused() {
        let words = json!({"type": "Whitespace"});
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {}});
        let (a, b) = (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 0}}));
        let undefined = json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}});
        for found in [
            tokenizer(json!({"type": "FixedLength", "length": 0}), Value::Null),
            tokenizer(words.clone(), template(json!([undefined, a]))),
            tokenizer(words.clone(), template(json!([a, b]))),
        ] {
            let message = said(found);
            assert!(message.contains("its parts do not go together"), "{message}");
        }
        let repeated = said(tokenizer(words, template(json!([a, a]))));
        assert!(repeated.contains("8 tokens of a text that it was to cut at 4"), "{repeated}");
    }

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
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        let several = json!({"type": "Sequence", "pretokenizers": [{"type": "Split"}, bytes]});
        assert!(needs_space(&bytes) && needs_space(&several));
        assert!(!needs_space(&json!({"type": "ByteLevel", "add_prefix_space": true})));
        assert!(!needs_space(&json!({"type": "Whitespace"})) && !needs_space(&Value::Null));
    }
}
