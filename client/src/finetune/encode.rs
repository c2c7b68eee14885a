//! From rows to what a model takes, and to what it should say of them.

use std::borrow::Borrow;

use super::error::FinetuneError;
use crate::data::{Content, TargetRef};
use crate::model::batch::Tokens;
use crate::model::{Classifier, Encoded, Objective, Targets, Text};

/// The content of a row as the tokenizer takes it.
pub(crate) fn text(content: &Content) -> Text<'_> {
    match content {
        Content::Text(text) => Text::Single(text),
        Content::Pair(pair) => Text::Pair(&pair.0, &pair.1),
        Content::Words(words) => Text::Words(words),
        Content::Exchange(exchange) => Text::Exchange { prompt: &exchange.prompt, response: &exchange.response },
    }
}

/// Tokens of contents, with what each token stands for.
///
/// # Errors
/// The tokenizer fails.
pub(super) fn encode(
    classifier: &Classifier,
    contents: &[impl Borrow<Content>],
) -> Result<Vec<Encoded>, FinetuneError> {
    let texts: Vec<Text<'_>> = contents.iter().map(|content| text(content.borrow())).collect();
    Ok(classifier.encode(&texts)?)
}

/// What the network should say of rows with these targets, and their tokens. A word counts by its first token; what is cut
/// off does not count.
///
/// # Errors
/// The targets are of another kind than the network was made for.
pub(super) fn targets<'a>(
    objective: Objective,
    encoded: Vec<Encoded>,
    rows: impl Iterator<Item = TargetRef<'a>>,
) -> Result<(Vec<Tokens>, Targets), FinetuneError> {
    let (mut classes, mut sets, mut values, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (target, encoded) in rows.zip(&encoded) {
        match (objective, target) {
            (Objective::Class, TargetRef::Class(label)) => classes.push(label as u32),
            (Objective::Sets, TargetRef::Set(labels)) => {
                sets.push(labels.iter().map(|label| u32::from(*label)).collect())
            }
            (Objective::Value, TargetRef::Value(value)) => values.push(value),
            (Objective::Tokens, TargetRef::Tags(tags)) => {
                let tag = |word: u32| tags.get(word as usize).map(|tag| u32::from(*tag));
                tokens.push(encoded.marks.iter().map(|mark| mark.and_then(tag)).collect());
            }
            (Objective::NextToken, TargetRef::Response(_)) => {
                let words = encoded.tokens.words.iter();
                tokens.push(words.zip(&encoded.marks).map(|(word, mark)| mark.map(|_| *word)).collect());
            }
            _ => return Err(FinetuneError::OtherTargets),
        }
    }
    let targets = match objective {
        Objective::Class => Targets::Classes(classes),
        Objective::Sets => Targets::Sets(sets),
        Objective::Value => Targets::Values(values),
        Objective::Tokens | Objective::NextToken => Targets::Tokens(tokens),
    };
    Ok((encoded.into_iter().map(|encoded| encoded.tokens).collect(), targets))
}
