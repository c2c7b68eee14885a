//! Reading and writing safetensors files, tensor by tensor, with everything checked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

use super::error::ModelError;

/// A named f32 tensor in memory.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// A named tensor of any type, as a file has it.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// As in the safetensors format.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file; tensors are read one at a time.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: BufReader<File>,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Opens and checks the header against the size of the file.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_path_buf(), source };
        let damaged = |message: String| ModelError::Damaged { path: path.to_path_buf(), message };
        let file = File::open(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        let mut file = BufReader::new(file);
        let mut length = [0; 8];
        if size < 8 {
            return Err(damaged(format!("found {size} bytes; expected a header")));
        }
        file.read_exact(&mut length).map_err(read)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > size - 8 {
            return Err(damaged(format!("its header claims {length} bytes, the file has {size}")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| damaged(format!("its header cannot be read: {e}")))?;
        let expected = (8 + length).saturating_add(header.data_len() as u64);
        if size != expected {
            return Err(damaged(format!("found {size} bytes; its header announces {expected}")));
        }
        Ok(Self { path: path.to_path_buf(), file, header, data_start: 8 + length })
    }

    /// Names in the order of the alphabet.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }

    /// What the header says beside its tensors, by its key.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The shape of a tensor; `None` when it is absent.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// Whether the tensor is stored as f32.
    pub(crate) fn is_f32(&self, name: &str) -> bool {
        self.header.info(name).is_some_and(|info| info.dtype == Dtype::F32)
    }

    /// The values of a tensor of exactly this shape as f32; f16, bf16 and f64 are converted.
    ///
    /// # Errors
    /// Absent, another shape, another type, or a value that is not finite.
    pub(crate) fn read(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>, ModelError> {
        let Some(info) = self.header.info(name).cloned() else {
            return Err(ModelError::TensorMissing {
                path: self.path.clone(),
                name: name.into(),
                expected: expected.to_vec(),
            });
        };
        if info.shape != expected {
            return Err(ModelError::TensorShape {
                path: self.path.clone(),
                name: name.into(),
                found: info.shape,
                expected: expected.to_vec(),
            });
        }
        let bytes = self.bytes(&info)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(ModelError::TensorType {
                    path: self.path.clone(),
                    name: name.into(),
                    found: format!("{other:?}"),
                    expected: "F32, F16, BF16 or F64",
                });
            }
        };
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?;
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        check_finite(&self.path.display().to_string(), name, &values)?;
        Ok(values)
    }

    /// A tensor as it is, under another name.
    ///
    /// # Errors
    /// Absent, or the file cannot be read.
    pub(crate) fn copy(&mut self, name: &str, new_name: &str) -> Result<Copied, ModelError> {
        let Some(info) = self.header.info(name).cloned() else {
            let (path, expected) = (self.path.clone(), Vec::new());
            return Err(ModelError::TensorMissing { path, name: name.into(), expected });
        };
        let bytes = self.bytes(&info)?;
        Ok(Copied { name: new_name.into(), dtype: info.dtype, shape: info.shape, bytes })
    }

    fn bytes(&mut self, info: &TensorInfo) -> Result<Vec<u8>, ModelError> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|source| ModelError::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }
}

/// Fails on NaN and infinity.
pub(crate) fn check_finite(place: &str, name: &str, values: &[f32]) -> Result<(), ModelError> {
    if values.iter().all(|x| x.is_finite()) {
        Ok(())
    } else {
        Err(ModelError::NotFinite { place: place.into(), name: name.into() })
    }
}

/// Writes f32 tensors, and others as they were read.
pub(crate) fn write(path: &Path, tensors: &[Named], copied: &[Copied]) -> Result<(), ModelError> {
    // Readers outside this project look for the framework's name.
    write_noted(path, tensors, copied, HashMap::from([("format".to_owned(), "pt".to_owned())]))
}

/// The same, with what the header is to say beside its tensors.
pub(crate) fn write_noted(
    path: &Path,
    tensors: &[Named],
    copied: &[Copied],
    notes: HashMap<String, String>,
) -> Result<(), ModelError> {
    let failed = |e: safetensors::SafeTensorError| ModelError::Write {
        path: path.to_path_buf(),
        source: match e {
            safetensors::SafeTensorError::IoError(source) => source,
            other => std::io::Error::other(other.to_string()),
        },
    };
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|tensor| tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let own = tensors.iter().zip(&bytes).map(|(tensor, bytes)| (&tensor.name, Dtype::F32, &tensor.shape, bytes));
    let views = own
        .chain(copied.iter().map(|tensor| (&tensor.name, tensor.dtype, &tensor.shape, &tensor.bytes)))
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    // A file is as readable as any other that is made here, whatever the crate makes of it.
    let readable = File::create(path).and_then(|file| Ok(file.metadata()?.permissions()));
    let unwritten = |source| ModelError::Write { path: path.to_path_buf(), source };
    let readable = readable.map_err(unwritten)?;
    safetensors::serialize_to_file(views, Some(notes), path).map_err(failed)?;
    std::fs::set_permissions(path, readable).map_err(unwritten)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_copied_tensor_keeps_type_and_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (base, out) = (folder.path().join("base"), folder.path().join("out"));
        let counter = 17i64.to_le_bytes();
        let view = TensorView::new(Dtype::I64, vec![], &counter).unwrap();
        safetensors::serialize_to_file([("norm.num_batches_tracked", view)], None, &base).unwrap();
        let mut base = TensorFile::open(&base).unwrap();
        let copied = base.copy("norm.num_batches_tracked", "model.norm.num_batches_tracked").unwrap();
        let weight = Named { name: "weight".into(), shape: vec![3], values: vec![1.0, 2.0, 3.0] };
        write(&out, &[weight], &[copied]).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = found.tensor("model.norm.num_batches_tracked").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape(), tensor.data()), (Dtype::I64, &[][..], &counter[..]));
        assert_eq!(TensorFile::open(&out).unwrap().read("weight", &[3]).unwrap(), [1.0, 2.0, 3.0]);
        assert!(base.copy("absent", "absent").is_err());
    }
}
