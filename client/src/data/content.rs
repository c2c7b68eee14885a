//! What a row holds beside its label, and when two rows hold the same.

use std::borrow::Cow;

use bytes::Bytes;

use super::fold::{Identity, fold, identity};

/// What a model is given of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A text; never empty.
    Text(String),
    /// Two texts; neither is empty.
    Pair(Box<(String, String)>),
    /// Words; at least one, none of them blank.
    Words(Box<[String]>),
    /// A prompt and the response to it; neither is empty.
    Exchange(Box<Exchange>),
    /// An image that can be decoded.
    Image(Box<Picture>),
}

/// An image as it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The encoded bytes; never empty.
    pub bytes: Bytes,
    /// Its own file below the folder, where each image has one.
    pub file: Option<String>,
}

/// A prompt and its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What is given.
    pub prompt: String,
    /// What is to follow.
    pub response: String,
}

impl Default for Content {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl Content {
    /// What it is known by: equal for contents whose [`Self::folded`] texts are, and for images with equal bytes.
    pub fn identity(&self) -> Identity {
        let image = |picture: &Picture| {
            let mut identity = [0; 16];
            identity.copy_from_slice(&blake3::hash(&picture.bytes).as_bytes()[..16]);
            identity
        };
        match self {
            Self::Image(picture) => image(picture),
            _ => identity(&self.folded()),
        }
    }

    /// What tells texts apart, without what does not (see [`fold`]). Of an exchange it is the prompt: equal prompts with
    /// different responses are one content with two targets. Of an image it is empty.
    pub fn folded(&self) -> String {
        match self {
            Self::Image(_) => String::new(),
            Self::Text(text) => fold(text),
            // A folded text has no line end, so the two cannot be divided in another way.
            Self::Pair(pair) => format!("{}\n{}", fold(&pair.0), fold(&pair.1)),
            Self::Words(words) => fold(&words.join(" ")),
            Self::Exchange(exchange) => fold(&exchange.prompt),
        }
    }

    /// The texts it is made of, words with a space between; an image has none.
    pub fn texts(&self) -> Vec<Cow<'_, str>> {
        match self {
            Self::Image(_) => Vec::new(),
            Self::Text(text) => vec![text.into()],
            Self::Pair(pair) => vec![(&pair.0).into(), (&pair.1).into()],
            Self::Words(words) => vec![words.join(" ").into()],
            Self::Exchange(exchange) => vec![(&exchange.prompt).into(), (&exchange.response).into()],
        }
    }

    /// The bytes of its texts, or of its encoded image.
    pub fn length(&self) -> usize {
        match self {
            Self::Image(picture) => picture.bytes.len(),
            Self::Text(text) => text.len(),
            Self::Pair(pair) => pair.0.len() + pair.1.len(),
            Self::Words(words) => words.iter().map(|word| word.len() + 1).sum(),
            Self::Exchange(exchange) => exchange.prompt.len() + exchange.response.len(),
        }
    }

    /// About how many bytes of memory it takes.
    pub(super) fn memory(&self) -> usize {
        let strings = match self {
            Self::Text(_) => 0,
            Self::Image(picture) => {
                return self.length() + picture.file.as_ref().map_or(0, String::len) + 2 * size_of::<Picture>();
            }
            Self::Pair(_) | Self::Exchange(_) => 2,
            Self::Words(words) => words.len(),
        };
        self.length() + strings * size_of::<String>() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_the_same_when_their_texts_are_in_the_same_places() {
        let pair = |one: &str, other: &str| Content::Pair(Box::new((one.into(), other.into())));
        let words = |words: &[&str]| Content::Words(words.iter().map(|word| (*word).to_owned()).collect());
        let exchange = |prompt: &str, response: &str| {
            Content::Exchange(Box::new(Exchange { prompt: prompt.into(), response: response.into() }))
        };
        let image = |bytes: &'static [u8], file: Option<&str>| {
            Content::Image(Box::new(Picture { bytes: Bytes::from_static(bytes), file: file.map(str::to_owned) }))
        };
        for (one, other, same) in [
            (pair("A  b", "c"), pair("a b", "C "), true),
            (pair("a b", "c"), pair("a", "b c"), false),
            (pair("a\n", "b"), pair("a", "b"), true),
            (words(&["A", "b"]), words(&["a", "B"]), true),
            (words(&["a", "b"]), words(&["a", "c"]), false),
            (exchange("Why?", "So."), exchange("why?", "Not so."), true),
            (exchange("Why?", "So."), exchange("When?", "So."), false),
            (image(b"one", Some("a")), image(b"one", None), true),
            (image(b"one", None), image(b"One", None), false),
        ] {
            assert_eq!(one.identity() == other.identity(), same, "{one:?} {other:?}");
        }
    }
}
