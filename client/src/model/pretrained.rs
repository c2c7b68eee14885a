//! The base model's weights, as they were before any training.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::error::ModelError;
use super::names::Names;
use super::tensor_file::TensorFile;
use super::{Classifier, folder};

impl Classifier {
    /// The trained tensors as the base model's file has them, less the classifier and what the file lacks.
    ///
    /// # Errors
    /// The file has changed or can no longer be read.
    pub fn pretrained(&self) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let names = Names::of(self.network.config().architecture);
        let mut file = TensorFile::open(&self.folder.join(folder::TENSORS))?;
        let mut tensors = BTreeMap::new();
        for (name, parameter) in self.network.parameters().iter().filter(|(_, parameter)| parameter.trained) {
            let Some(base) = self.base_names.get(name).filter(|_| !names.is_classifier(name)) else { continue };
            let shape = parameter.var.dims();
            let values = file.read(base, shape)?;
            tensors.insert(name.clone(), Tensor::from_vec(values, shape, self.network.device())?);
        }
        Ok(tensors)
    }
}
