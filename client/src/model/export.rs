//! The whole model in Hugging Face layout: as a recipe for the aggregator, and as files.

use std::path::Path;

use fedtune_proto::recipe::{ExportRecipe, ExportTensor, TensorSource};
use serde_json::{Map, Value, json};

use super::adapters::PREFIX;
use super::error::ModelError;
use super::objective::Objective;
use super::tensor_file::TensorFile;
use super::{Classifier, folder, tensor_file};

/// The key of `config.json` under which we keep what transformers has no field for.
pub(super) const OWN_KEY: &str = "fedtune";

impl Classifier {
    /// How the model is written out of the base model's tensors and a state's: adapters in peft's layout where there are
    /// any, or else the whole model.
    pub fn export_recipe(&self) -> ExportRecipe {
        let adapters = self.adapter_config();
        let tensors =
            self.network.parameters().iter().filter(|(_, parameter)| parameter.trained || adapters.is_none()).map(
                |(name, parameter)| match self.base_names.get(name) {
                    Some(base) if !parameter.trained => {
                        ExportTensor { name: name.clone(), source: TensorSource::Base(base.clone()) }
                    }
                    _ => ExportTensor { name: self.exported_name(name), source: TensorSource::State(name.clone()) },
                },
            );
        let carried = self
            .carried()
            .map(|(name, base)| ExportTensor { name: name.to_owned(), source: TensorSource::Base(base.to_owned()) });
        let tensors = tensors.chain(carried).collect();
        ExportRecipe { config_json: self.exported_config(), adapter_config_json: adapters, tensors }
    }

    /// What a whole model has of the base model's file as it is: names, and those in the file.
    fn carried(&self) -> impl Iterator<Item = (&str, &str)> {
        let whole = self.network.adapters().is_none();
        let carried = self.network.anatomy().carried.iter().filter(move |_| whole);
        carried.filter_map(|(name, _)| Some((name.as_str(), self.base_names.get(name)?.as_str())))
    }

    fn adapter_config(&self) -> Option<String> {
        self.network.adapters().map(|adapters| adapters.config_json(self.network.anatomy(), self.network.objective()))
    }

    fn exported_name(&self, name: &str) -> String {
        match self.network.adapters() {
            Some(_) => format!("{PREFIX}{}", self.network.anatomy().peft_name(name)),
            None => name.to_owned(),
        }
    }

    fn exported_config(&self) -> String {
        let mut config = self.base_config.clone();
        config.insert("architectures".into(), json!([self.network.anatomy().class]));
        let objective = self.network.objective();
        // transformers gives a regression one output by one made-up label.
        let number = ["LABEL_0".to_owned()];
        let labels = if objective == Objective::Value { number.as_slice() } else { &self.labels };
        if objective != Objective::NextToken {
            let ids: Map<String, Value> = labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
            let labels: Map<String, Value> = labels.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
            config.insert("id2label".into(), Value::Object(ids));
            config.insert("label2id".into(), Value::Object(labels));
        }
        match objective.problem_type() {
            Some(kind) => _ = config.insert("problem_type".into(), json!(kind)),
            None => _ = config.shift_remove("problem_type"),
        }
        // Written by older versions, they would contradict id2label.
        config.shift_remove("num_labels");
        config.shift_remove("_num_labels");
        for key in ["torch_dtype", "dtype"] {
            if config.contains_key(key) {
                config.insert(key.into(), json!("float32"));
            }
        }
        config.shift_remove(OWN_KEY);
        if let Some(length) = self.max_length() {
            let mut own = json!({ "max_length": length });
            if !self.template.is_empty() {
                own["template"] = json!(self.template);
            }
            config.insert(OWN_KEY.into(), own);
        }
        let mut text = serde_json::to_string_pretty(&config).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Writes the model, or its adapters and head in peft's layout, and the files of its tokenizer or image processor into `folder`, which is made
    /// if it is absent. Each file is written under another name first, so an interrupted save leaves no half file under
    /// its own.
    ///
    /// # Errors
    /// A value is not finite, or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let write = |path: &Path, source| ModelError::Write { path: path.to_path_buf(), source };
        std::fs::create_dir_all(folder).map_err(|e| write(folder, e))?;
        let adapters = self.adapter_config();
        let mut tensors = match &adapters {
            Some(_) => self.network.state()?,
            None => self.network.tensors()?,
        };
        tensors.iter_mut().for_each(|tensor| tensor.name = self.exported_name(&tensor.name));
        let place = |file: &str, fill: &dyn Fn(&Path) -> Result<(), ModelError>| -> Result<(), ModelError> {
            let (temporary, path) = (folder.join(format!("{file}.part")), folder.join(file));
            fill(&temporary)?;
            std::fs::rename(&temporary, &path).map_err(|e| write(&path, e))
        };
        for file in folder::TOKENIZER_EXTRAS.into_iter().chain([folder::TOKENIZER, folder::PREPROCESSOR]) {
            let source = self.folder.join(file);
            if source.is_file() {
                let bytes = folder::read(source, u64::MAX)?;
                place(file, &|path| std::fs::write(path, &bytes).map_err(|e| write(path, e)))?;
            }
        }
        let config = self.exported_config();
        place(folder::CONFIG, &|path| std::fs::write(path, &config).map_err(|e| write(path, e)))?;
        let file = match &adapters {
            Some(text) => {
                place(folder::ADAPTER_CONFIG, &|path| std::fs::write(path, text).map_err(|e| write(path, e)))?;
                folder::ADAPTER_TENSORS
            }
            None => folder::TENSORS,
        };
        let mut carried = Vec::new();
        for (name, base) in self.carried() {
            carried.push(TensorFile::open(&self.folder.join(folder::TENSORS))?.copy(base, name)?);
        }
        place(file, &|path| tensor_file::write(path, &tensors, &carried))
    }
}
