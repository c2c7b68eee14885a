//! The usable rows of a file: what is small of each in memory, the texts in memory or, where they are large together, in
//! the file.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::error::DataError;
use super::fold::{Identity, fold, identity};
use super::{Columns, Layout, RawRow, csv, jsonl};

/// How many bytes the texts of a file may take in memory, each with a `String`'s own; where they would take more, all of
/// them stay in the file and are read again when they are needed.
pub const HELD_TEXT: usize = 64 << 20;

/// Bytes that are read at once of a row in a file; most rows are shorter.
const READ_AHEAD: usize = 8 << 10;

/// A usable row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// The text; never empty.
    pub text: String,
    /// Index into the job's labels.
    pub label: usize,
    /// Its first line in the file, counted from 1.
    pub line: u64,
    /// The value of the group column, where one is read.
    pub group: Option<String>,
}

/// Usable rows, all of a file's or some of them. Twenty bytes a row are in memory, some fifty for each distinct text, and
/// the texts unless they are in the file (see [`HELD_TEXT`]). Nothing but memory and time depends on where they are.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    index: Arc<Index>,
    /// Places in the index; `None` for all of them in order.
    chosen: Option<Vec<u32>>,
}

/// What is known of every row. Columns, since rows are many.
#[derive(Debug, Default)]
struct Index {
    lines: Vec<u32>,
    labels: Vec<u32>,
    /// Numbers of the distinct texts.
    texts: Vec<u32>,
    /// Numbers of the groups counted from 1, 0 for none; empty where no row has one.
    groups: Vec<u32>,
    group_names: Vec<String>,
    /// By the number of the text.
    identities: Vec<Identity>,
    /// Bytes of the text as it first stood, by its number.
    lengths: Vec<u32>,
    content: Content,
}

/// Where the texts are.
#[derive(Debug)]
enum Content {
    Held(Vec<String>),
    InFile { starts: Vec<u64>, file: Source },
}

impl Default for Content {
    fn default() -> Self {
        Self::Held(Vec::new())
    }
}

/// A file and how it was when it was checked.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) layout: Layout,
    pub(super) columns: Columns,
    pub(super) stamp: Stamp,
}

/// What tells that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl Source {
    fn texts(&self, index: &Index, starts: &[u64], places: &[usize]) -> Result<Vec<String>, DataError> {
        let Some(first) = places.first() else { return Ok(Vec::new()) };
        let read = |source| DataError::Read { path: self.path.clone(), source };
        let changed = |place: usize, found| {
            Err(DataError::Changed { path: self.path.clone(), line: u64::from(index.lines[place]), found })
        };
        let mut file = File::open(&self.path).map_err(read)?;
        let now = Stamp::from(file.metadata().map_err(read)?);
        if now.length != self.stamp.length {
            return changed(*first, format!("it had {} bytes and has {}", self.stamp.length, now.length));
        }
        if now != self.stamp {
            return changed(*first, "it was written to".into());
        }
        let mut texts = Vec::with_capacity(places.len());
        for place in places {
            file.seek(SeekFrom::Start(starts[*place])).map_err(read)?;
            match self.row(BufReader::with_capacity(READ_AHEAD, &file))? {
                Some(row) if identity(&fold(&row.text)) == index.identities[index.texts[*place] as usize] => {
                    texts.push(row.text);
                }
                Some(_) => return changed(*place, "the row has another text".into()),
                None => return changed(*place, "no usable row begins there any more".into()),
            }
        }
        Ok(texts)
    }

    /// The row that begins where `input` stands; `None` if no usable one does.
    fn row(&self, input: BufReader<&File>) -> Result<Option<RawRow>, DataError> {
        match &self.layout {
            Layout::Csv(layout) => csv::row_at(&self.path, input, layout),
            Layout::Jsonl => jsonl::row_at(&self.path, input, self.columns.wanted()),
        }
    }
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or(self.index.labels.len(), Vec::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label of a row, as an index into the job's. Rows are counted from 0; one that is not there is a bug of the caller.
    pub fn label(&self, row: usize) -> usize {
        self.index.labels[self.origin(row)] as usize
    }

    /// The labels of all rows in order.
    pub fn labels(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).map(|row| self.label(row))
    }

    /// The first line of a row in its file, counted from 1.
    pub fn line(&self, row: usize) -> u64 {
        u64::from(self.index.lines[self.origin(row)])
    }

    /// The group of a row.
    pub fn group(&self, row: usize) -> Option<&str> {
        let number = self.group_number(row)?;
        self.index.group_names.get(number as usize).map(String::as_str)
    }

    /// The texts of some rows, in the order in which they are asked for.
    ///
    /// # Errors
    /// They are in a file which cannot be read, or is no longer as it was.
    pub fn texts(&self, rows: impl IntoIterator<Item = usize>) -> Result<Vec<Cow<'_, str>>, DataError> {
        let places = rows.into_iter().map(|row| self.origin(row));
        match &self.index.content {
            Content::Held(texts) => Ok(places.map(|place| Cow::Borrowed(texts[place].as_str())).collect()),
            Content::InFile { starts, file } => {
                let texts = file.texts(&self.index, starts, &places.collect::<Vec<_>>())?;
                Ok(texts.into_iter().map(Cow::Owned).collect())
            }
        }
    }

    /// A whole row.
    ///
    /// # Errors
    /// As [`Self::texts`].
    pub fn row(&self, row: usize) -> Result<Row, DataError> {
        let text = self.texts([row])?.into_iter().map(Cow::into_owned).collect();
        Ok(Row { text, label: self.label(row), line: self.line(row), group: self.group(row).map(str::to_owned) })
    }

    /// Whether the texts are in memory.
    pub fn held(&self) -> bool {
        matches!(self.index.content, Content::Held(_))
    }

    /// Some of these rows, in the order given; a row may be there several times.
    #[must_use]
    pub fn select(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        // A place fits: see `Gathering::add`.
        let chosen = rows.into_iter().map(|row| self.origin(row) as u32).collect();
        Self { index: Arc::clone(&self.index), chosen: Some(chosen) }
    }

    /// The place of a row among all rows of its file; equal for the repetitions of a row.
    pub(crate) fn origin(&self, row: usize) -> usize {
        self.chosen.as_ref().map_or(row, |chosen| chosen[row] as usize)
    }

    /// The number of rows of its file.
    pub(crate) fn origins(&self) -> usize {
        self.index.labels.len()
    }

    /// A number for each distinct text of the file.
    pub(super) fn text_number(&self, row: usize) -> u32 {
        self.index.texts[self.origin(row)]
    }

    /// A number for each group of the file.
    pub(super) fn group_number(&self, row: usize) -> Option<u32> {
        self.index.groups.get(self.origin(row)).and_then(|number| number.checked_sub(1))
    }

    /// What the text is known by.
    pub(super) fn identity(&self, row: usize) -> &Identity {
        &self.index.identities[self.text_number(row) as usize]
    }

    /// About how long a text is: its bytes, or those of an equal one.
    pub(crate) fn length(&self, row: usize) -> u32 {
        self.index.lengths[self.text_number(row) as usize]
    }
}

/// All in memory, for tests.
#[cfg(test)]
impl FromIterator<Row> for Rows {
    fn from_iter<I: IntoIterator<Item = Row>>(rows: I) -> Self {
        let mut gathering = Gathering::new(usize::MAX);
        for row in rows {
            gathering.add(row, 0);
        }
        gathering.held()
    }
}

/// How a row stands to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repetition {
    None,
    Whole,
    OtherLabel,
}

/// Rows while they are read.
pub(super) struct Gathering {
    index: Index,
    starts: Vec<u64>,
    held: Vec<String>,
    held_bytes: usize,
    /// Bytes of texts that may be held.
    most: usize,
    numbers: HashMap<Identity, u32>,
    /// The label with which a text first stood, by its number, and the others that it has.
    first_labels: Vec<u32>,
    other_labels: HashSet<(u32, u32)>,
    groups: HashMap<String, u32>,
    overflow: bool,
}

impl Gathering {
    pub(super) fn new(most: usize) -> Self {
        Self {
            index: Index::default(),
            starts: Vec::new(),
            held: Vec::new(),
            held_bytes: 0,
            most,
            numbers: HashMap::new(),
            first_labels: Vec::new(),
            other_labels: HashSet::new(),
            groups: HashMap::new(),
            overflow: false,
        }
    }

    /// Adds a row that begins at the byte `start` of the file.
    pub(super) fn add(&mut self, row: Row, start: u64) -> Repetition {
        let index = &mut self.index;
        let (Ok(line), Ok(label), Ok(place)) =
            (u32::try_from(row.line), u32::try_from(row.label), u32::try_from(index.labels.len()))
        else {
            self.overflow = true;
            return Repetition::None;
        };
        let known_by = identity(&fold(&row.text));
        // There are no more distinct texts, and no more groups, than rows.
        let next = index.identities.len() as u32;
        let number = *self.numbers.entry(known_by).or_insert(next);
        let repetition = if number == next {
            index.identities.push(known_by);
            index.lengths.push(u32::try_from(row.text.len()).unwrap_or(u32::MAX));
            self.first_labels.push(label);
            Repetition::None
        } else if self.first_labels[number as usize] == label || !self.other_labels.insert((number, label)) {
            Repetition::Whole
        } else {
            Repetition::OtherLabel
        };
        index.lines.push(line);
        index.labels.push(label);
        index.texts.push(number);
        if let Some(name) = row.group {
            index.groups.resize(place as usize, 0);
            let next = index.group_names.len() as u32 + 1;
            let number = *self.groups.entry(name).or_insert_with_key(|name| {
                index.group_names.push(name.clone());
                next
            });
            index.groups.push(number);
        }
        self.starts.push(start);
        self.held_bytes = self.held_bytes.saturating_add(row.text.len() + size_of::<String>());
        if self.held_bytes <= self.most {
            self.held.push(row.text);
        } else if !self.held.is_empty() {
            self.held = Vec::new();
        }
        repetition
    }

    /// The rows of a file, all of which have been added.
    pub(super) fn of_file(mut self, file: Source) -> Result<Rows, DataError> {
        if self.overflow {
            return Err(DataError::TooManyRows { path: file.path, most: u32::MAX });
        }
        if self.held_bytes > self.most {
            let starts = std::mem::take(&mut self.starts);
            self.index.content = Content::InFile { starts, file };
            return Ok(Rows { index: Arc::new(self.index), chosen: None });
        }
        Ok(self.held())
    }

    fn held(mut self) -> Rows {
        self.index.content = Content::Held(self.held);
        Rows { index: Arc::new(self.index), chosen: None }
    }
}
