//! The usable rows of a file: what is small of each in memory, the contents in memory or, where they are large together,
//! in the file.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::content::Content;
use super::error::DataError;
use super::fold::Identity;
use super::target::{Target, TargetColumn, TargetRef};
use super::{Columns, Layout, csv, jsonl, parquet};

/// How many bytes the contents of a file may take in memory; where they would take more, all of them stay in the file and
/// are read again when they are needed.
pub const HELD_TEXT: usize = 64 << 20;

/// How many bytes the encoded images of a file or folder may take in memory, likewise.
pub const HELD_IMAGES: usize = 256 << 20;

/// Bytes that are read at once of a row in a file; most rows are shorter.
const READ_AHEAD: usize = 8 << 10;

/// A usable row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// What a model is given.
    pub content: Content,
    /// What is to be learnt.
    pub target: Target,
    /// Its first line in the file, counted from 1.
    pub line: u64,
    /// The value of the group column, where one is read.
    pub group: Option<String>,
}

/// Usable rows, all of a file's or some of them. Twenty bytes a row and its target are in memory, some sixty for each
/// distinct content, and the contents unless they are in the file (see [`HELD_TEXT`]). Nothing but memory and time depends on where they are.
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
    targets: TargetColumn,
    /// Numbers of the distinct contents.
    texts: Vec<u32>,
    /// Numbers of the groups counted from 1, 0 for none; empty where no row has one.
    groups: Vec<u32>,
    group_names: Vec<String>,
    /// By the number of the content.
    identities: Vec<Identity>,
    /// Bytes of the content as it first stood, by its number.
    lengths: Vec<u32>,
    contents: Contents,
}

/// Where the contents are.
#[derive(Debug)]
enum Contents {
    Held(Vec<Content>),
    InFile { starts: Vec<u64>, file: Box<Source> },
}

impl Default for Contents {
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
    fn contents(&self, index: &Index, starts: &[u64], places: &[usize]) -> Result<Vec<Content>, DataError> {
        let Some(first) = places.first() else { return Ok(Vec::new()) };
        let changed = |place: usize, found: String| {
            let line = u64::from(index.lines[place]);
            let found = if let Layout::Folder(listing) = &self.layout {
                format!("{}: {found}", listing.name(line))
            } else {
                found
            };
            DataError::Changed { path: self.path.clone(), line, found }
        };
        let found = match &self.layout {
            Layout::Folder(listing) => {
                places.iter().map(|place| listing.picture(u64::from(index.lines[*place])).ok()).collect()
            }
            layout => {
                let read = |source| DataError::Read { path: self.path.clone(), source };
                let file = File::open(&self.path).map_err(read)?;
                let now = Stamp::from(file.metadata().map_err(read)?);
                if now.length != self.stamp.length {
                    let found = format!("it had {} bytes and has {}", self.stamp.length, now.length);
                    return Err(changed(*first, found));
                }
                if now != self.stamp {
                    return Err(changed(*first, "it was written to".into()));
                }
                match layout {
                    Layout::Parquet => self.parquet_rows(index, places)?,
                    _ => places
                        .iter()
                        .map(|place| self.text_row(&file, starts[*place]))
                        .collect::<Result<Vec<_>, _>>()?,
                }
            }
        };
        let checked = |(place, content): (&usize, Option<Content>)| match content {
            Some(content) if content.identity() == index.identities[index.texts[*place] as usize] => Ok(content),
            Some(Content::Image(_)) => Err(changed(*place, "it is another image".into())),
            Some(Content::Cells(_)) => Err(changed(*place, "the row has other cells".into())),
            Some(_) => Err(changed(*place, "the row has another text".into())),
            None => Err(changed(*place, "no usable row is there any more".into())),
        };
        places.iter().zip(found).map(checked).collect()
    }

    /// Each part of the file is read once.
    fn parquet_rows(&self, index: &Index, places: &[usize]) -> Result<Vec<Option<Content>>, DataError> {
        let number = |place: &usize| u64::from(index.lines[*place]);
        let mut numbers: Vec<u64> = places.iter().map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let contents = parquet::contents_at(&self.path, &self.columns.content, &numbers)?;
        let found: HashMap<u64, Option<Content>> = numbers.into_iter().zip(contents).collect();
        Ok(places.iter().map(|place| found.get(&number(place)).cloned().flatten()).collect())
    }

    /// The content of the row that begins at a byte of the file; `None` if no usable one does.
    fn text_row(&self, mut file: &File, start: u64) -> Result<Option<Content>, DataError> {
        file.seek(SeekFrom::Start(start)).map_err(|source| DataError::Read { path: self.path.clone(), source })?;
        let input = BufReader::with_capacity(READ_AHEAD, file);
        let row = match &self.layout {
            Layout::Csv(layout) => csv::row_at(&self.path, input, layout, &self.columns)?,
            _ => jsonl::row_at(&self.path, input, &self.columns)?,
        };
        Ok(row.map(|row| row.content))
    }
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or(self.index.lines.len(), Vec::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is to be learnt of a row. Rows are counted from 0; one that is not there is a bug of the caller.
    pub fn target(&self, row: usize) -> TargetRef<'_> {
        self.index.targets.get(self.origin(row))
    }

    /// The targets of all rows in order.
    pub fn targets(&self) -> impl Iterator<Item = TargetRef<'_>> {
        (0..self.len()).map(|row| self.target(row))
    }

    /// The label of every row in order, as an index into the job's; nothing where rows have other targets than one label.
    pub fn labels(&self) -> impl Iterator<Item = usize> {
        self.targets().filter_map(|target| if let TargetRef::Class(label) = target { Some(label) } else { None })
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

    /// The contents of some rows, in the order in which they are asked for.
    ///
    /// # Errors
    /// They are in a file which cannot be read, or is no longer as it was.
    pub fn contents(&self, rows: impl IntoIterator<Item = usize>) -> Result<Vec<Cow<'_, Content>>, DataError> {
        let places = rows.into_iter().map(|row| self.origin(row));
        match &self.index.contents {
            Contents::Held(contents) => Ok(places.map(|place| Cow::Borrowed(&contents[place])).collect()),
            Contents::InFile { starts, file } => {
                let contents = file.contents(&self.index, starts, &places.collect::<Vec<_>>())?;
                Ok(contents.into_iter().map(Cow::Owned).collect())
            }
        }
    }

    /// A whole row.
    ///
    /// # Errors
    /// As [`Self::contents`].
    pub fn row(&self, row: usize) -> Result<Row, DataError> {
        let content = self.contents([row])?.pop().map(Cow::into_owned).unwrap_or_default();
        let target = self.target(row).to_owned();
        Ok(Row { content, target, line: self.line(row), group: self.group(row).map(str::to_owned) })
    }

    /// Whether the contents are in memory.
    pub fn held(&self) -> bool {
        matches!(self.index.contents, Contents::Held(_))
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
        self.index.lines.len()
    }

    /// A number for each distinct content of the file.
    pub(super) fn text_number(&self, row: usize) -> u32 {
        self.index.texts[self.origin(row)]
    }

    /// A number for each group of the file.
    pub(super) fn group_number(&self, row: usize) -> Option<u32> {
        self.index.groups.get(self.origin(row)).and_then(|number| number.checked_sub(1))
    }

    /// What the content is known by.
    pub(super) fn identity(&self, row: usize) -> &Identity {
        &self.index.identities[self.text_number(row) as usize]
    }

    /// About how long a content is: its bytes, or those of an equal one.
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
    OtherTarget,
}

/// Rows while they are read.
pub(super) struct Gathering {
    index: Index,
    starts: Vec<u64>,
    held: Vec<Content>,
    held_bytes: usize,
    /// Bytes of contents that may be held.
    most: usize,
    numbers: HashMap<Identity, u32>,
    /// The target with which a content first stood, by its number, and the others that it has; by their keys.
    first_targets: Vec<u64>,
    other_targets: HashSet<(u32, u64)>,
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
            first_targets: Vec::new(),
            other_targets: HashSet::new(),
            groups: HashMap::new(),
            overflow: false,
        }
    }

    /// Adds a row that begins at the byte `start` of the file. A row whose target is of another kind than the first's is
    /// passed over; no reader of targets makes such.
    pub(super) fn add(&mut self, row: Row, start: u64) -> Repetition {
        let index = &mut self.index;
        let (Ok(line), Ok(place)) = (u32::try_from(row.line), u32::try_from(index.lines.len())) else {
            self.overflow = true;
            return Repetition::None;
        };
        if !index.targets.push(&row.target) {
            return Repetition::None;
        }
        let target = row.target.borrowed().key();
        let known_by = row.content.identity();
        // There are no more distinct contents, and no more groups, than rows.
        let next = index.identities.len() as u32;
        let number = *self.numbers.entry(known_by).or_insert(next);
        let repetition = if number == next {
            index.identities.push(known_by);
            index.lengths.push(u32::try_from(row.content.length()).unwrap_or(u32::MAX));
            self.first_targets.push(target);
            Repetition::None
        } else if self.first_targets[number as usize] == target || !self.other_targets.insert((number, target)) {
            Repetition::Whole
        } else {
            Repetition::OtherTarget
        };
        index.lines.push(line);
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
        self.held_bytes = self.held_bytes.saturating_add(row.content.memory());
        if self.held_bytes <= self.most {
            self.held.push(row.content);
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
            self.index.contents = Contents::InFile { starts, file: Box::new(file) };
            return Ok(Rows { index: Arc::new(self.index), chosen: None });
        }
        Ok(self.held())
    }

    fn held(mut self) -> Rows {
        self.index.contents = Contents::Held(self.held);
        Rows { index: Arc::new(self.index), chosen: None }
    }
}
