//! The usable images of a Parquet file or a folder: what is small of each in memory, the encoded bytes in memory or, where
//! they are large together, where they are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::error::{DataError, Fault};
use super::fold::Identity;
use super::folder::Listing;
use super::image::{ImageFault, Pixels, decode};
use super::labels::{LabelMap, MAX_LABELS};
use super::parquet;
use super::report::DataReport;
use super::rows::Stamp;

/// How many bytes the encoded images of a file or folder may take in memory; where they would take more, all of them are
/// read again when they are needed.
pub const HELD_IMAGES: usize = 256 << 20;

/// Encoded bytes that are decoded together when a file is checked.
const DECODED_TOGETHER: usize = 16 << 20;
/// Images that are decoded together.
const MOST_TOGETHER: usize = 256;

/// The names of the needed columns of a Parquet file; a folder has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageColumns {
    /// The column with the image: bytes, or a struct with the fields `bytes` and `path`.
    pub image: String,
    /// The column with the label.
    pub label: String,
    /// The column whose equal values keep rows on one side of a split (a patient's number), if there is one.
    pub group: Option<String>,
}

impl Default for ImageColumns {
    fn default() -> Self {
        Self { image: "image".into(), label: "label".into(), group: None }
    }
}

/// An image before it is decoded and its label is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawImage {
    /// The encoded bytes; never empty.
    pub bytes: Bytes,
    /// The label.
    pub label: String,
    /// The group, where one is asked for.
    pub group: Option<String>,
}

/// Usable images. Some forty bytes a row are in memory, and the encoded images unless they take more than is allowed (see
/// [`HELD_IMAGES`]). Nothing but memory and time depends on where they are.
#[derive(Debug, Clone)]
pub struct Images {
    index: Arc<Index>,
}

#[derive(Debug)]
struct Index {
    /// Numbers of the rows in their file or folder, counted from 1.
    numbers: Vec<u32>,
    labels: Vec<u32>,
    /// Of the decoded pixels.
    identities: Vec<Identity>,
    /// Numbers of the groups counted from 1; empty where no row has one.
    groups: Vec<u32>,
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Held(Vec<Bytes>),
    Parquet { column: String, stamp: Stamp },
    Folder(Listing),
}

impl Images {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.index.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label of each, by index into the job's labels.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.index.labels.iter().map(|label| *label as usize)
    }

    /// The number of a row in its file, or of a file in its folder, counted from 1.
    pub fn number(&self, row: usize) -> u64 {
        u64::from(self.index.numbers[row])
    }

    /// What an image is known by: equal for images of the same size and pixels, however they are encoded.
    pub fn identity(&self, row: usize) -> &Identity {
        &self.index.identities[row]
    }

    /// The number of the row's group, counted from 0, where groups are read.
    pub fn group(&self, row: usize) -> Option<u32> {
        self.index.groups.get(row).and_then(|group| group.checked_sub(1))
    }

    /// Whether the encoded images are in memory.
    pub fn are_held(&self) -> bool {
        matches!(self.index.content, Content::Held(_))
    }

    /// The decoded images of some rows, in the order asked for.
    ///
    /// # Errors
    /// The images are not in memory, and the file or folder cannot be read or is no longer what was checked.
    pub fn pixels(&self, rows: &[usize]) -> Result<Vec<Pixels>, DataError> {
        let encoded = self.encoded(rows)?;
        rows.par_iter()
            .zip(encoded)
            .map(|(row, bytes)| {
                let pixels = decode(&bytes).map_err(|fault| self.changed(*row, fault.to_string()))?;
                if identity(&pixels) == self.index.identities[*row] {
                    Ok(pixels)
                } else {
                    Err(self.changed(*row, "it is another image".into()))
                }
            })
            .collect()
    }

    /// The encoded images of some rows, in the order asked for.
    fn encoded(&self, wanted: &[usize]) -> Result<Vec<Bytes>, DataError> {
        match &self.index.content {
            Content::Held(images) => Ok(wanted.iter().map(|row| images[*row].clone()).collect()),
            Content::Folder(listing) => wanted
                .iter()
                .map(|row| match listing.image(self.number(*row)) {
                    Ok(image) => Ok(image.bytes),
                    Err(fault) => Err(self.changed(*row, fault.to_string())),
                })
                .collect(),
            Content::Parquet { column, stamp } => {
                let Some(first) = wanted.first() else { return Ok(Vec::new()) };
                let read = |source| DataError::Read { path: self.index.path.clone(), source };
                if Stamp::from(std::fs::metadata(&self.index.path).map_err(read)?) != *stamp {
                    return Err(self.changed(*first, "it was written to".into()));
                }
                // In the order of the file each part of it is read once.
                let mut numbers: Vec<u64> = wanted.iter().map(|row| self.number(*row)).collect();
                numbers.sort_unstable();
                numbers.dedup();
                let images = parquet::images_at(&self.index.path, column, &numbers)?;
                let found: HashMap<u64, Bytes> =
                    numbers.into_iter().zip(images).filter_map(|(number, image)| Some((number, image?))).collect();
                wanted
                    .iter()
                    .map(|row| {
                        let image = found.get(&self.number(*row)).cloned();
                        image.ok_or_else(|| self.changed(*row, "no usable image is there any more".into()))
                    })
                    .collect()
            }
        }
    }

    fn changed(&self, row: usize, found: String) -> DataError {
        let number = self.number(row);
        let found = match &self.index.content {
            Content::Folder(listing) => format!("{}: {found}", listing.name(number)),
            _ => found,
        };
        DataError::Changed { path: self.index.path.clone(), line: number, found }
    }
}

/// Checks every image of a Parquet file or a folder: gives the usable ones, and reports the others. Every image is decoded
/// once. Encoded images are held in memory up to [`HELD_IMAGES`].
///
/// # Errors
/// The file or folder as a whole is unusable, or no image is.
pub fn read(path: &Path, columns: &ImageColumns, labels: &LabelMap) -> Result<(Images, DataReport), DataError> {
    read_holding(path, columns, labels, HELD_IMAGES)
}

/// As [`read`], with another limit than [`HELD_IMAGES`], in bytes. Where the images are not held nothing must change on the
/// disk as long as they are used.
///
/// # Errors
/// As [`read`].
pub fn read_holding(
    path: &Path,
    columns: &ImageColumns,
    labels: &LabelMap,
    most: usize,
) -> Result<(Images, DataReport), DataError> {
    let source = Source::open(path)?;
    let mut gathering = Gathering::new(path, labels, &source, most);
    source.scan(path, columns, &mut |number, row| gathering.add(number, row))?;
    gathering.decode();
    let Gathering { report, rows, held, held_bytes, overflow, .. } = gathering;
    if overflow || report.rows > u64::from(u32::MAX) {
        return Err(DataError::TooManyRows { path: path.into(), most: u32::MAX });
    }
    if report.rows == 0 {
        return Err(DataError::NoRows { path: path.into() });
    }
    if report.used == 0 {
        return Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: labels.known() });
    }
    let content = match source {
        _ if held_bytes <= most => Content::Held(held),
        Source::Parquet(stamp) => Content::Parquet { column: columns.image.clone(), stamp },
        Source::Folder(listing) => Content::Folder(listing),
    };
    Ok((Images { index: Arc::new(Index { content, ..rows }) }, report))
}

/// The distinct labels, in order: for a Parquet file with names of classes these, otherwise those that occur, sorted.
///
/// # Errors
/// The file or folder as a whole is unusable, or has fewer than two labels.
pub fn labels_in(path: &Path, columns: &ImageColumns) -> Result<Vec<String>, DataError> {
    let source = Source::open(path)?;
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    match &source {
        Source::Folder(listing) => return several(path, columns, listing.labels().to_vec()),
        Source::Parquet(_) => {
            if let Some(names) = parquet::class_names(path, &columns.label)? {
                return several(path, columns, names);
            }
        }
    }
    source.scan(path, columns, &mut |_, row| {
        if let Ok(row) = row
            && seen.len() <= MAX_LABELS
        {
            seen.insert(row.label, ());
        }
    })?;
    several(path, columns, seen.into_keys().collect())
}

fn several(path: &Path, columns: &ImageColumns, mut labels: Vec<String>) -> Result<Vec<String>, DataError> {
    let (path, column) = (path.to_path_buf(), columns.label.clone());
    match labels.len() {
        0 => Err(DataError::NoRows { path }),
        1 => Err(DataError::OneLabel { path, label: labels.remove(0), column }),
        found if found > MAX_LABELS => Err(DataError::TooManyLabels { path, column, most: MAX_LABELS }),
        _ => Ok(labels),
    }
}

/// Where images come from.
enum Source {
    Parquet(Stamp),
    Folder(Listing),
}

impl Source {
    fn open(path: &Path) -> Result<Self, DataError> {
        let metadata = std::fs::metadata(path).map_err(|source| DataError::Read { path: path.into(), source })?;
        if metadata.is_dir() { Ok(Self::Folder(Listing::of(path)?)) } else { Ok(Self::Parquet(metadata.into())) }
    }

    /// The file of an image, where each has one.
    fn name(&self, number: u64) -> Option<String> {
        match self {
            Self::Parquet(_) => None,
            Self::Folder(listing) => Some(listing.name(number)),
        }
    }

    fn scan(
        &self,
        path: &Path,
        columns: &ImageColumns,
        each: &mut dyn FnMut(u64, Result<RawImage, Fault>),
    ) -> Result<(), DataError> {
        match self {
            Self::Parquet(_) => parquet::scan_images(path, columns, each),
            Self::Folder(listing) => {
                (1..=listing.len() as u64).for_each(|number| each(number, listing.image(number)));
                Ok(())
            }
        }
    }
}

/// Images while they are read.
struct Gathering<'a> {
    labels: &'a LabelMap,
    source: &'a Source,
    report: DataReport,
    rows: Index,
    held: Vec<Bytes>,
    held_bytes: usize,
    /// Bytes that may be held.
    most: usize,
    /// Read and not yet decoded.
    waiting: Vec<(u64, Result<RawImage, Fault>)>,
    waiting_bytes: usize,
    group_numbers: HashMap<String, u32>,
    /// The labels with which an image stood.
    seen: HashMap<Identity, HashSet<u32>>,
    overflow: bool,
}

impl<'a> Gathering<'a> {
    fn new(path: &Path, labels: &'a LabelMap, source: &'a Source, most: usize) -> Self {
        let rows = Index {
            numbers: Vec::new(),
            labels: Vec::new(),
            identities: Vec::new(),
            groups: Vec::new(),
            path: path.into(),
            content: Content::Held(Vec::new()),
        };
        Self {
            labels,
            source,
            report: DataReport::new(path),
            rows,
            held: Vec::new(),
            held_bytes: 0,
            most,
            waiting: Vec::new(),
            waiting_bytes: 0,
            group_numbers: HashMap::new(),
            seen: HashMap::new(),
            overflow: false,
        }
    }

    fn add(&mut self, number: u64, row: Result<RawImage, Fault>) {
        self.waiting_bytes += row.as_ref().map_or(0, |row| row.bytes.len());
        self.waiting.push((number, row));
        if self.waiting_bytes >= DECODED_TOGETHER || self.waiting.len() >= MOST_TOGETHER {
            self.decode();
        }
    }

    /// Decodes what is waiting, and takes it in the order of the file.
    fn decode(&mut self) {
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let identities: Vec<Option<Result<Identity, ImageFault>>> = waiting
            .par_iter()
            .map(|(_, row)| row.as_ref().ok().map(|row| decode(&row.bytes).map(|pixels| identity(&pixels))))
            .collect();
        for ((number, row), identity) in waiting.into_iter().zip(identities) {
            match (row, identity) {
                (Err(fault), _) => self.report.fault(number, fault),
                (Ok(_), Some(Err(fault))) => {
                    self.report.fault(number, Fault::Image { file: self.source.name(number), fault });
                }
                (Ok(row), Some(Ok(identity))) => self.take(number, row, identity),
                (Ok(_), None) => {}
            }
        }
    }

    fn take(&mut self, number: u64, row: RawImage, identity: Identity) {
        let Some(label) = self.labels.index(&row.label) else {
            return self.report.unknown_label(number, &row.label, self.labels);
        };
        let (Ok(number), Ok(index)) = (u32::try_from(number), u32::try_from(label)) else {
            self.overflow = true;
            return;
        };
        self.report.use_row(label);
        let labels = self.seen.entry(identity).or_default();
        match (labels.is_empty(), labels.insert(index)) {
            (true, _) => {}
            (false, true) => self.report.conflicts += 1,
            (false, false) => self.report.duplicates += 1,
        }
        self.rows.numbers.push(number);
        self.rows.labels.push(index);
        self.rows.identities.push(identity);
        if let Some(group) = row.group {
            let next = self.group_numbers.len() as u32 + 1;
            self.rows.groups.push(*self.group_numbers.entry(group).or_insert(next));
        }
        self.held_bytes = self.held_bytes.saturating_add(row.bytes.len() + size_of::<Bytes>());
        if self.held_bytes <= self.most {
            self.held.push(row.bytes);
        } else if !self.held.is_empty() {
            self.held = Vec::new();
        }
    }
}

/// BLAKE3 of size and pixels, cut to 128 bits.
fn identity(pixels: &Pixels) -> Identity {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&pixels.width().to_le_bytes()).update(&pixels.height().to_le_bytes()).update(pixels.rgb());
    let mut identity = [0; 16];
    identity.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    identity
}
