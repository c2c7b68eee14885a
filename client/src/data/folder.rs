//! Folders of images: `<folder>/<label>/<file>`, and where no label is read `<folder>/<file>` too.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::content::{Content, Picture};
use super::error::{DataError, Fault};
use super::image::{ImageFault, MAX_BYTES};
use super::labels::MAX_LABELS;

/// The images of a folder in the order of labels and file names, byte by byte, which is the same on every machine.
#[derive(Debug)]
pub(super) struct Listing {
    root: PathBuf,
    /// The folder without links, in which every image must be.
    inside: PathBuf,
    labels: Vec<String>,
    /// Place of the label, `None` for a file beside the labels' folders, and the file's name.
    files: Vec<(Option<u32>, std::ffi::OsString)>,
}

impl Listing {
    /// Looks at the names in a folder. Those that begin with a dot are passed over. A file beside the labels' folders is an
    /// image if the rows are not `labelled`, otherwise an error, since it would go unnoticed.
    pub(super) fn of(root: &Path, labelled: bool) -> Result<Self, DataError> {
        let read = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DataError::Read { path: path.clone(), source }
        };
        let not = |found: String| DataError::ImageFolder { path: root.into(), found };
        let inside = root.canonicalize().map_err(read(root))?;
        let (mut labels, mut files) = (Vec::new(), Vec::new());
        for name in names(root).map_err(read(root))? {
            let path = root.join(&name);
            if !labelled && !path.is_dir() {
                files.push((None, name));
                continue;
            }
            let Some(label) = name.to_str().map(String::from) else {
                return Err(not(format!("the name {name:?}, which is not UTF-8")));
            };
            if !path.metadata().map_err(read(&path))?.is_dir() {
                return Err(not(format!("{label:?}, which is not a folder")));
            }
            if !path.canonicalize().map_err(read(&path))?.starts_with(&inside) {
                return Err(not(format!("{label:?}, a link to a folder outside")));
            }
            labels.push(label);
            if labels.len() > MAX_LABELS {
                return Err(not(format!("more than {MAX_LABELS} folders")));
            }
        }
        if labels.is_empty() && files.is_empty() {
            return Err(not(if labelled { "no folder" } else { "nothing" }.into()));
        }
        for (place, label) in labels.iter().enumerate() {
            let folder = root.join(label);
            files.extend(names(&folder).map_err(read(&folder))?.into_iter().map(|name| (Some(place as u32), name)));
            if u32::try_from(files.len()).is_err() {
                return Err(DataError::TooManyRows { path: root.into(), most: u32::MAX });
            }
        }
        Ok(Self { root: root.into(), inside, labels, files })
    }

    /// How many files there are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// The labels, sorted.
    pub(super) fn into_labels(self) -> Vec<String> {
        self.labels
    }

    /// The image with a number, counted from 1.
    pub(super) fn picture(&self, number: u64) -> Result<Content, Fault> {
        let Some(path) = self.path(number) else {
            return Err(Fault::Image { file: None, fault: ImageFault::Absent });
        };
        let file = Some(path.display().to_string());
        match self.bytes(&self.root.join(&path)) {
            Ok(bytes) => Ok(Content::Image(Box::new(Picture { bytes, file }))),
            Err(fault) => Err(Fault::Image { file, fault }),
        }
    }

    /// The label of an image.
    pub(super) fn label(&self, number: u64) -> Option<&str> {
        let label = self.file(number)?.0?;
        self.labels.get(label as usize).map(String::as_str)
    }

    /// The path of a file below the folder, for messages.
    pub(super) fn name(&self, number: u64) -> String {
        self.path(number).map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn file(&self, number: u64) -> Option<&(Option<u32>, std::ffi::OsString)> {
        self.files.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    fn path(&self, number: u64) -> Option<PathBuf> {
        let label = self.label(number).unwrap_or_default();
        Some(Path::new(label).join(&self.file(number)?.1))
    }

    fn bytes(&self, path: &Path) -> Result<Bytes, ImageFault> {
        let unreadable = |message: String| ImageFault::Unreadable { message };
        let io = |e: std::io::Error| unreadable(format!("it cannot be read: {e}"));
        if !path.canonicalize().map_err(io)?.starts_with(&self.inside) {
            return Err(unreadable("it is a link to a file outside of the folder, expected an image file".into()));
        }
        // A pipe would never end, so what it is comes before opening it.
        let metadata = path.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(unreadable("it is a folder, expected an image file".into()));
        }
        if !metadata.is_file() {
            return Err(unreadable("it is a device or a pipe, expected an image file".into()));
        }
        if metadata.len() > MAX_BYTES as u64 {
            return Err(ImageFault::TooManyBytes { bytes: metadata.len() });
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        File::open(path).map_err(io)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        match bytes.len() {
            0 => Err(ImageFault::Empty),
            length if length > MAX_BYTES => Err(ImageFault::TooManyBytes { bytes: length as u64 }),
            _ => Ok(bytes.into()),
        }
    }
}

/// The names in a folder that do not begin with a dot, sorted.
fn names(folder: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
