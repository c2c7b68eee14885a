//! How the tensors of a state or an update lie in its file, which is a safetensors file.
//!
//! The aggregator reads only this header and then bytes; it needs no tensor library. Parsing is bounded: a header of at
//! most [`HEADER_BYTES_MAX`] bytes, tensors that lie end to end without holes or overlaps up to the end of the file.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The longest accepted safetensors header, in bytes.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type as safetensors names it, such as `F32`.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// The tensors of a safetensors file, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Every tensor, ordered by `start`.
    pub tensors: Vec<TensorEntry>,
    /// First byte of the tensors: the header's own length prefix and text come before.
    pub data_start: u64,
    /// Size of the whole file in bytes.
    pub file_bytes: u64,
}

/// A file that is not a sound safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not a safetensors file.
    #[error("{path}: not a sound safetensors file: {reason}", path = path.display())]
    Unsound {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Layout {
    /// Reads the header of the safetensors file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is not sound.
    pub fn read(path: &Path) -> Result<Self, LayoutError> {
        let io = |source| LayoutError::Io { path: path.to_path_buf(), source };
        let unsound = |reason| LayoutError::Unsound { path: path.to_path_buf(), reason };
        let mut file = std::fs::File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut prefix = [0; 8];
        if size < 8 {
            return Err(unsound(format!("it has {size} bytes; expected at least 8")));
        }
        file.read_exact(&mut prefix).map_err(io)?;
        let length = header_length(prefix, size).map_err(unsound)?;
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).map_err(io)?;
        Self::parse(&header, size).map_err(unsound)
    }

    /// The layout described by a header text, for a file of `file_bytes` bytes in all.
    ///
    /// # Errors
    /// What was found and what was expected.
    pub fn parse(header: &[u8], file_bytes: u64) -> Result<Self, String> {
        // Raw values, so that a hostile header takes no more memory than its own bytes.
        let raw: BTreeMap<String, &serde_json::value::RawValue> =
            serde_json::from_slice(header).map_err(|e| format!("its header is not a JSON object: {e}"))?;
        let data_start = 8 + header.len() as u64;
        let mut tensors = Vec::with_capacity(raw.len());
        for (name, value) in raw {
            if name == "__metadata__" {
                continue;
            }
            let entry: RawEntry = serde_json::from_str(value.get()).map_err(|e| format!("tensor {name:?}: {e}"))?;
            let (begin, end) = entry.data_offsets;
            let width = dtype_bytes(&entry.dtype)
                .ok_or_else(|| format!("tensor {name:?} has the unknown element type {:?}", entry.dtype))?;
            let expected = entry.shape.iter().try_fold(width, |product, dim| product.checked_mul(*dim));
            if end < begin || expected != Some(end - begin) {
                return Err(format!("tensor {name:?} of shape {:?} has the byte range {begin}..{end}", entry.shape));
            }
            let (Some(start), Some(end)) = (begin.checked_add(data_start), end.checked_add(data_start)) else {
                return Err(format!("tensor {name:?} has the byte range {begin}..{end}"));
            };
            tensors.push(TensorEntry { name, dtype: entry.dtype, shape: entry.shape, start, end });
        }
        tensors.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
        let mut at = data_start;
        for tensor in &tensors {
            if tensor.start != at {
                return Err(format!("tensor {:?} starts at byte {}; expected {at}", tensor.name, tensor.start));
            }
            at = tensor.end;
        }
        if at != file_bytes {
            return Err(format!("its tensors end at byte {at}, the file at {file_bytes}; it may be truncated"));
        }
        Ok(Self { tensors, data_start, file_bytes })
    }

    /// Lays tensors end to end in the order given; offsets in the entries are ignored and set.
    pub fn of_tensors(tensors: impl IntoIterator<Item = (String, String, Vec<u64>)>) -> Option<Self> {
        let mut at = 0_u64;
        let mut entries = Vec::new();
        for (name, dtype, shape) in tensors {
            let bytes = shape.iter().try_fold(dtype_bytes(&dtype)?, |product, dim| product.checked_mul(*dim))?;
            let end = at.checked_add(bytes)?;
            entries.push(TensorEntry { name, dtype, shape, start: at, end });
            at = end;
        }
        let mut layout = Self { tensors: entries, data_start: 0, file_bytes: at };
        let data_start = layout.header().len() as u64;
        for tensor in &mut layout.tensors {
            tensor.start += data_start;
            tensor.end += data_start;
        }
        layout.data_start = data_start;
        layout.file_bytes += data_start;
        Some(layout)
    }

    /// The bytes before the tensors: length prefix and header, padded with spaces to a multiple of 8.
    pub fn header(&self) -> Vec<u8> {
        let mut map = serde_json::Map::new();
        map.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
        for t in &self.tensors {
            let offsets = (t.start - self.data_start, t.end - self.data_start);
            map.insert(
                t.name.clone(),
                serde_json::json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": offsets }),
            );
        }
        let mut text = serde_json::Value::Object(map).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut text);
        bytes
    }

    /// Checks that `other` has the same tensors: names, element types, shapes, and the order of their bytes.
    ///
    /// # Errors
    /// The first difference.
    pub fn same_tensors(&self, other: &Self) -> Result<(), Mismatch> {
        for (i, ours) in self.tensors.iter().enumerate() {
            let Some(theirs) = other.tensors.get(i) else {
                return Err(Mismatch(format!("tensor {:?} is missing", ours.name)));
            };
            if ours.name != theirs.name {
                let missing = !other.tensors.iter().any(|t| t.name == ours.name);
                return Err(Mismatch(if missing {
                    format!("tensor {:?} is missing", ours.name)
                } else {
                    format!("tensor {:?} stands where {:?} is expected", theirs.name, ours.name)
                }));
            }
            if ours.dtype != theirs.dtype || ours.shape != theirs.shape {
                return Err(Mismatch(format!(
                    "tensor {:?} is {} {:?}; expected {} {:?}",
                    ours.name, theirs.dtype, theirs.shape, ours.dtype, ours.shape
                )));
            }
        }
        match other.tensors.get(self.tensors.len()) {
            Some(extra) => Err(Mismatch(format!("tensor {:?} is not in the state", extra.name))),
            None => Ok(()),
        }
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// How two layouts differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

fn header_length(prefix: [u8; 8], file_bytes: u64) -> Result<u64, String> {
    let length = u64::from_le_bytes(prefix);
    if length > HEADER_BYTES_MAX || length > file_bytes - 8 {
        return Err(format!(
            "its header claims {length} bytes; expected at most {}",
            HEADER_BYTES_MAX.min(file_bytes - 8)
        ));
    }
    Ok(length)
}

/// Bytes of one element of a safetensors dtype; `None` if it is unknown.
pub fn dtype_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "F64" | "I64" | "U64" => Some(8),
        "F32" | "I32" | "U32" => Some(4),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "I8" | "U8" | "BOOL" => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Layout {
        Layout::of_tensors([
            ("a".to_owned(), "F32".to_owned(), vec![2, 3]),
            ("b".to_owned(), "F16".to_owned(), vec![5]),
            ("c".to_owned(), "F32".to_owned(), vec![]),
        ])
        .expect("small")
    }

    #[test]
    fn a_written_header_reads_back() {
        let layout = sample();
        let header = layout.header();
        assert_eq!(header.len() as u64, layout.data_start);
        assert_eq!(Layout::parse(&header[8..], layout.file_bytes), Ok(layout));
    }

    #[test]
    fn each_difference_is_named() {
        let ours = sample();
        let with = |change: &dyn Fn(&mut Layout)| {
            let mut theirs = sample();
            change(&mut theirs);
            ours.same_tensors(&theirs).expect_err("differs").to_string()
        };
        assert!(with(&|l| drop(l.tensors.remove(1))).contains("\"b\" is missing"));
        assert!(with(&|l| l.tensors.swap(0, 1)).contains("stands where"));
        assert!(with(&|l| l.tensors[0].shape = vec![3, 2]).contains("[3, 2]; expected F32 [2, 3]"));
        assert!(with(&|l| l.tensors[0].dtype = "F16".into()).contains("F16"));
        assert!(with(&|l| l.tensors.push(TensorEntry { name: "x".into(), ..l.tensors[2].clone() })).contains("\"x\""));
    }

    #[test]
    fn unsound_headers_are_refused() {
        for (header, size) in [
            (r#"[]"#, 10),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 66),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 70),
            (r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 66),
            (r#"{"a":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,4]}}"#, 90),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 60),
        ] {
            assert!(Layout::parse(header.as_bytes(), size).is_err(), "{header}");
        }
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        for bytes in [&b""[..], b"1234567", &[255; 64]] {
            std::fs::write(&path, bytes).expect("write");
            assert!(matches!(Layout::read(&path), Err(LayoutError::Unsound { .. })));
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
            let _ = Layout::parse(&bytes, size);
        }

        #[test]
        fn no_numbers_make_the_parser_panic(dims in proptest::collection::vec(any::<u64>(), 0..4), begin in any::<u64>(), end in any::<u64>(), size in any::<u64>()) {
            let header = serde_json::json!({"t": {"dtype": "F32", "shape": dims, "data_offsets": [begin, end]}});
            let _ = Layout::parse(header.to_string().as_bytes(), size);
        }

        #[test]
        fn every_layout_reads_back(shapes in proptest::collection::vec(proptest::collection::vec(0_u64..5, 0..4), 0..6)) {
            let tensors = shapes.into_iter().enumerate().map(|(i, s)| (format!("t{i:02}"), "F32".to_owned(), s));
            let layout = Layout::of_tensors(tensors).expect("small");
            let header = layout.header();
            prop_assert_eq!(Layout::parse(&header[8..], layout.file_bytes), Ok(layout));
        }
    }
}
