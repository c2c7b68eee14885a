//! What a row holds beside its label, and when two rows hold the same.

use std::borrow::Cow;

use bytes::Bytes;

use super::fold::{Identity, fold, identity};

/// What a model is given of a row.
#[derive(Debug, Clone, PartialEq)]
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
    /// The cells of a row of a table, in the order of the model's columns.
    Cells(Box<[Cell]>),
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Nothing, or what stands for nothing.
    Missing,
    /// A finite number.
    Number(f64),
    /// A word, without surrounding white space; whole numbers have no decimal point.
    Word(Box<str>),
}

/// What stands for a missing value, in any case of letters.
const MISSING: [&str; 6] = ["", "na", "n/a", "nan", "null", "?"];

impl Cell {
    /// A number or a missing one; `None` of anything else and of infinity.
    pub(super) fn number(text: &str) -> Option<Self> {
        let text = text.trim();
        if is_missing(text) {
            return Some(Self::Missing);
        }
        // What a network is given is f32.
        text.parse().ok().filter(|number: &f64| (*number as f32).is_finite()).map(Self::Number)
    }

    /// A word or a missing one. `2.0` is the word `2`: programs write whole numbers so where others are missing.
    pub(super) fn word(text: &str) -> Self {
        let text = text.trim();
        if is_missing(text) {
            return Self::Missing;
        }
        let whole = text.split_once('.').filter(|(whole, rest)| {
            let digits = whole.strip_prefix('-').unwrap_or(whole);
            let plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain(digits)
                && (digits == "0" || !digits.starts_with('0'))
                && !rest.is_empty()
                && rest.bytes().all(|byte| byte == b'0')
        });
        Self::Word(whole.map_or(text, |(whole, _)| whole).into())
    }
}

fn is_missing(text: &str) -> bool {
    text.len() <= 4 && MISSING.iter().any(|missing| missing.eq_ignore_ascii_case(text))
}

/// What a row of cells is known by: equal when every cell is.
fn of_cells(cells: &[Cell]) -> Identity {
    let mut hasher = blake3::Hasher::new();
    for cell in cells {
        match cell {
            Cell::Missing => _ = hasher.update(&[0]),
            // Zero has two signs.
            Cell::Number(number) => _ = hasher.update(&[1]).update(&(number + 0.0).to_bits().to_le_bytes()),
            Cell::Word(word) => {
                _ = hasher.update(&[2]).update(&(word.len() as u64).to_le_bytes()).update(word.as_bytes());
            }
        }
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    identity
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
    /// What it is known by: equal for contents whose [`Self::folded`] texts are, for images with equal bytes, and for rows
    /// with equal cells.
    pub fn identity(&self) -> Identity {
        let image = |picture: &Picture| {
            let mut identity = [0; 16];
            identity.copy_from_slice(&blake3::hash(&picture.bytes).as_bytes()[..16]);
            identity
        };
        match self {
            Self::Image(picture) => image(picture),
            Self::Cells(cells) => of_cells(cells),
            _ => identity(&self.folded()),
        }
    }

    /// What tells texts apart, without what does not (see [`fold`]). Of an exchange it is the prompt: equal prompts with
    /// different responses are one content with two targets. Of an image and of cells it is empty.
    pub fn folded(&self) -> String {
        match self {
            Self::Image(_) | Self::Cells(_) => String::new(),
            Self::Text(text) => fold(text),
            // A folded text has no line end, so the two cannot be divided in another way.
            Self::Pair(pair) => format!("{}\n{}", fold(&pair.0), fold(&pair.1)),
            Self::Words(words) => fold(&words.join(" ")),
            Self::Exchange(exchange) => fold(&exchange.prompt),
        }
    }

    /// The texts it is made of, words with a space between; images and cells have none.
    pub fn texts(&self) -> Vec<Cow<'_, str>> {
        match self {
            Self::Image(_) | Self::Cells(_) => Vec::new(),
            Self::Text(text) => vec![text.into()],
            Self::Pair(pair) => vec![(&pair.0).into(), (&pair.1).into()],
            Self::Words(words) => vec![words.join(" ").into()],
            Self::Exchange(exchange) => vec![(&exchange.prompt).into(), (&exchange.response).into()],
        }
    }

    /// The bytes of its texts, of its encoded image, or of its cells.
    pub fn length(&self) -> usize {
        match self {
            Self::Image(picture) => picture.bytes.len(),
            Self::Text(text) => text.len(),
            Self::Pair(pair) => pair.0.len() + pair.1.len(),
            Self::Words(words) => words.iter().map(|word| word.len() + 1).sum(),
            Self::Exchange(exchange) => exchange.prompt.len() + exchange.response.len(),
            Self::Cells(cells) => {
                let word = |cell: &Cell| if let Cell::Word(word) = cell { word.len() } else { 0 };
                size_of_val(&**cells) + cells.iter().map(word).sum::<usize>()
            }
        }
    }

    /// About how many bytes of memory it takes.
    pub(super) fn memory(&self) -> usize {
        let strings = match self {
            Self::Text(_) | Self::Cells(_) => 0,
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
#[expect(clippy::unwrap_used, reason = "tests")]
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
        let cells = |cells: &[&str]| Content::Cells(Box::new([Cell::number(cells[0]).unwrap(), Cell::word(cells[1])]));
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
            (cells(&["1", "a"]), cells(&["1.00", " a"]), true),
            (cells(&["0", ""]), cells(&["-0.0", "NaN"]), true),
            (cells(&["1", "a"]), cells(&["1", "A"]), false),
            (cells(&["", "a"]), cells(&["0", "a"]), false),
            (cells(&["1", "2"]), cells(&["1", "2.0"]), true),
        ] {
            assert_eq!(one.identity() == other.identity(), same, "{one:?} {other:?}");
        }
    }

    #[test]
    fn cells_are_numbers_words_or_nothing() {
        for text in ["", "  ", "NA", "n/a", "NaN", "null", "NULL", "?"] {
            assert_eq!((Cell::number(text), Cell::word(text)), (Some(Cell::Missing), Cell::Missing), "{text:?}");
        }
        for (text, number) in [("1", 1.0), (" -2.5e1 ", -25.0), (".5", 0.5), ("+7", 7.0)] {
            assert_eq!(Cell::number(text), Some(Cell::Number(number)), "{text:?}");
        }
        for text in ["inf", "-Infinity", "1e39", "1,5", "0x1", "one", "1 2", "-nan"] {
            assert_eq!(Cell::number(text), None, "{text:?}");
        }
        for (text, word) in
            [("2.0", "2"), ("-3.00", "-3"), ("0.0", "0"), ("01.0", "01.0"), ("2.", "2."), ("1.5", "1.5")]
        {
            assert_eq!(Cell::word(text), Cell::Word(word.into()), "{text:?}");
        }
        assert_eq!(Cell::word(" none "), Cell::Word("none".into()));
    }
}
