//! The state (exactly the trained tensors) and the delta as files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use fedtune_config::job::Patterns;

use super::adapters::PREFIX;
use super::error::ModelError;
use super::network::{Network, Parameter};
use super::tensor_file::{self, Named, TensorFile, check_finite};

/// So many names of tensors are told where none of a job's was found.
const NAMED: usize = 8;

impl Network {
    /// Names and shapes of the trained tensors, sorted by name.
    pub fn state_tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.parameters()
            .iter()
            .filter(|(_, parameter)| parameter.trained)
            .map(|(name, parameter)| (name.clone(), parameter.var.dims().to_vec()))
            .collect()
    }

    /// Writes the trained tensors as safetensors, f32, canonical names.
    ///
    /// # Errors
    /// A value is not finite, or the file cannot be written.
    pub fn write_state(&self, path: &Path) -> Result<(), ModelError> {
        tensor_file::write(path, &self.state()?, &[])
    }

    /// Replaces the trained tensors by those of a state file. On an error nothing has changed.
    ///
    /// # Errors
    /// Damaged file, other names or shapes, another type than f32, or a value that is not finite.
    pub fn load_state(&mut self, path: &Path) -> Result<(), ModelError> {
        let tensors = self
            .read_state(path)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, Tensor::from_vec(tensor.values, tensor.shape, self.device())?)))
            .collect::<Result<Vec<_>, ModelError>>()?;
        for (name, tensor) in &tensors {
            if let Some(parameter) = self.parameters().get(name) {
                parameter.var.set(tensor)?;
            }
        }
        Ok(())
    }

    /// Replaces the adapters and the head by those of a file in peft's layout. A part of the head that the file lacks
    /// stays as the base model has it; `in_base` names what came from there.
    ///
    /// # Errors
    /// Damaged file, absent or other tensors, another shape, or a value that is not finite.
    pub(super) fn load_adapters(&mut self, path: &Path, in_base: &BTreeMap<String, String>) -> Result<(), ModelError> {
        let mut file = TensorFile::open(path)?;
        let mut left: BTreeSet<String> = file.names().into_iter().collect();
        for (name, shape) in self.state_tensors() {
            // Older versions of transformers call some layers as checkpoints do.
            let names = [self.anatomy().peft_name(&name), name.clone()].map(|name| format!("{PREFIX}{name}"));
            let [named, plain] = names;
            let stored = if left.contains(&named) { named } else { plain };
            if !left.remove(&stored) && in_base.contains_key(&name) {
                continue;
            }
            let values = file.read(&stored, &shape)?;
            if let Some(parameter) = self.parameters().get(&name) {
                parameter.var.set(&Tensor::from_vec(values, shape, self.device())?)?;
            }
        }
        match left.into_iter().next() {
            Some(name) => Err(ModelError::TensorUnexpected { path: path.to_path_buf(), name }),
            None => Ok(()),
        }
    }

    /// Checks that each pattern of what is not averaged fits a trained tensor, and that something is left to average.
    ///
    /// # Errors
    /// One fits none, or all are excluded.
    pub fn check_excluded(&self, excluded: &Patterns) -> Result<(), ModelError> {
        let tensors = self.state_tensors();
        let names = tensors.iter().map(|(name, _)| name.as_str());
        if let Some(pattern) = excluded.idle(names.clone()) {
            let names = names.take(NAMED).collect::<Vec<_>>().join(", ");
            return Err(ModelError::ExcludedNothing { pattern: pattern.to_owned(), names });
        }
        if names.clone().all(|name| excluded.matches(name)) {
            return Err(ModelError::ExcludedAll);
        }
        Ok(())
    }

    /// Writes those of the trained tensors that are not averaged, in the layout of a state.
    ///
    /// # Errors
    /// A value is not finite, or the file cannot be written.
    pub fn write_own(&self, excluded: &Patterns, path: &Path) -> Result<(), ModelError> {
        let own = self.values(|name, parameter| parameter.trained && excluded.matches(name))?;
        tensor_file::write(path, &own, &[])
    }

    /// Replaces tensors by those of a file of [`Self::write_own`]. On an error nothing has changed.
    ///
    /// # Errors
    /// Damaged file, tensors that the model does not have, other shapes, or a value that is not finite.
    pub fn load_own(&mut self, path: &Path) -> Result<(), ModelError> {
        let mut file = TensorFile::open(path)?;
        let mut own = Vec::new();
        for name in file.names() {
            let Some(parameter) = self.parameters().get(&name) else {
                return Err(ModelError::TensorUnexpected { path: path.to_path_buf(), name });
            };
            let shape = parameter.var.dims().to_vec();
            own.push((name.clone(), Tensor::from_vec(file.read(&name, &shape)?, shape, self.device())?));
        }
        for (name, tensor) in own {
            if let Some(parameter) = self.parameters().get(&name) {
                parameter.var.set(&tensor)?;
            }
        }
        Ok(())
    }

    /// Writes `trained tensors − state_before` in the layout of a state; zeros for what is not averaged.
    ///
    /// # Errors
    /// As [`Self::load_state`] for `state_before`; also when a difference is not finite or cannot be written.
    pub fn write_delta(&self, state_before: &Path, excluded: &Patterns, out: &Path) -> Result<(), ModelError> {
        let mut before = self.read_state(state_before)?;
        let mut delta = self.state()?;
        for tensor in &mut delta {
            let Some(before) = before.remove(&tensor.name) else { continue };
            if excluded.matches(&tensor.name) {
                tensor.values.fill(0.0);
                continue;
            }
            for (after, before) in tensor.values.iter_mut().zip(before.values) {
                *after -= before;
            }
            check_finite("the update", &tensor.name, &tensor.values)?;
        }
        tensor_file::write(out, &delta, &[])
    }

    /// The trained tensors.
    pub(crate) fn state(&self) -> Result<Vec<Named>, ModelError> {
        self.values(|_, parameter| parameter.trained)
    }

    /// Every tensor.
    pub(super) fn tensors(&self) -> Result<Vec<Named>, ModelError> {
        self.values(|_, _| true)
    }

    fn values(&self, wanted: impl Fn(&str, &Parameter) -> bool) -> Result<Vec<Named>, ModelError> {
        self.parameters()
            .iter()
            .filter(|(name, parameter)| wanted(name, parameter))
            .map(|(name, parameter)| {
                let values = parameter.var.as_detached_tensor().flatten_all()?.to_vec1::<f32>()?;
                check_finite("the trained model", name, &values)?;
                Ok(Named { name: name.clone(), shape: parameter.var.dims().to_vec(), values })
            })
            .collect()
    }

    fn read_state(&self, path: &Path) -> Result<BTreeMap<String, Named>, ModelError> {
        let mut file = TensorFile::open(path)?;
        let expected: BTreeMap<_, _> = self.state_tensors().into_iter().collect();
        for name in file.names() {
            if !expected.contains_key(&name) {
                return Err(ModelError::TensorUnexpected { path: path.to_path_buf(), name });
            }
            if !file.is_f32(&name) {
                let (path, found) = (path.to_path_buf(), "another one".into());
                return Err(ModelError::TensorType { path, name, found, expected: "F32" });
            }
        }
        expected
            .into_iter()
            .map(|(name, shape)| {
                let values = file.read(&name, &shape)?;
                Ok((name.clone(), Named { name, shape, values }))
            })
            .collect()
    }
}
