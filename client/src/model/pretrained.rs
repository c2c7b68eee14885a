//! The base model's weights, as they were before any training.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::anatomy::Place;
use super::error::ModelError;
use super::tensor_file::TensorFile;
use super::{Classifier, folder};

impl Classifier {
    /// The tensors that learn, as the base model's file has them, less the classifier and what the file lacks.
    ///
    /// # Errors
    /// The file has changed or can no longer be read.
    pub fn pretrained(&self) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let tensors = &self.network.anatomy().tensors;
        let classifier =
            |name: &str| tensors.iter().any(|tensor| tensor.place == Place::Classifier && tensor.name == name);
        let mut file = TensorFile::open(&self.folder.join(folder::TENSORS))?;
        let mut pretrained = BTreeMap::new();
        for (name, parameter) in self.network.parameters().iter().filter(|(_, parameter)| parameter.learns()) {
            let Some(base) = self.base_names.get(name).filter(|_| !classifier(name)) else { continue };
            let shape = parameter.var.dims();
            let values = file.read(base, shape)?;
            pretrained.insert(name.clone(), Tensor::from_vec(values, shape, self.network.device())?);
        }
        Ok(pretrained)
    }
}
