//! Where a run of training is, in a file from which the same run goes on with the same bits.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use fedtune_config::Job;
use fedtune_config::job::Precision;
use fedtune_config::job::Reads;
use fedtune_proto::digest::ArtifactRef;
use serde::{Deserialize, Serialize};

use super::early_stopping::EarlyStopping;
use super::error::FinetuneError;
use super::loss_scale::LossScale;
use super::metrics::Evaluation;
use super::optimizer::Optimizer;
use crate::data::Rows;
use crate::model::Classifier;
use crate::model::tensor_file::{self, Named, TensorFile};

/// The file in the folder of checkpoints.
const FILE: &str = "checkpoint.safetensors";
/// The same while it is written.
const PART: &str = "checkpoint.part";
/// The key of [`Record`] in the file's header.
const RECORD: &str = "fedtune";
/// Form of the file.
const VERSION: u32 = 2;
/// Rows of which the contents are in memory at once while they are hashed.
const HASHED_AT_ONCE: usize = 256;

/// What a run is made of, each part as a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    version: u32,
    program: String,
    job: String,
    model: String,
    data: String,
    validation: Option<String>,
}

impl Identity {
    fn of(job: &Job, model: &Path, rows: &Rows, stopping: Option<&EarlyStopping<'_>>) -> Result<Self, FinetuneError> {
        // The model's files count, wherever they are.
        let mut job = job.clone();
        job.model.path = PathBuf::from("model");
        let mut files = blake3::Hasher::new();
        for name in fedtune_proto::folder::needed(job.task.kind.reads() == Reads::Texts, job.task.kind.reads_images()) {
            let path = model.join(name);
            let artifact = ArtifactRef::of_file(&path).map_err(|e| failed(&path, format!("cannot be read: {e}")))?;
            files.update(artifact.digest.to_string().as_bytes());
        }
        let validation = match stopping.map(EarlyStopping::rule) {
            Some((rows, rule)) => Some(format!("{}, {rule}", digest(rows)?)),
            None => None,
        };
        Ok(Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            job: blake3::hash(job.to_toml().as_bytes()).to_hex().to_string(),
            model: files.finalize().to_hex().to_string(),
            data: digest(rows)?,
            validation,
        })
    }

    /// What of another run is not as in this one.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            (self.version != other.version || self.program != other.program, "another version of this program"),
            (self.job != other.job, "another job: a setting or an option is not what it was"),
            (self.model != other.model, "another base model"),
            (self.data != other.data, "other training rows"),
            (self.validation != other.validation, "other rows to validate on, or another patience"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// What a checkpoint says beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    identity: Identity,
    /// Steps done.
    step: usize,
    /// The bits of the sum of their losses.
    loss_sum: u64,
    /// What their losses are multiplied by.
    scale: Option<LossScale>,
    /// How often the optimiser changed each parameter.
    changed: BTreeMap<String, i32>,
    /// How the epochs did on validation rows.
    epochs: Vec<Evaluation>,
    /// The best of them, counted from 1; 0 for none.
    best_epoch: usize,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Position {
    /// Steps done.
    pub(super) steps: usize,
    /// The sum of their losses.
    pub(super) loss_sum: f64,
    /// What the loss is multiplied by; `None` at the beginning.
    pub(super) scale: Option<LossScale>,
}

/// Writes a checkpoint now and then, and goes on from the one that is there. Seeds, order and dropout follow from the job
/// and the step, so the trained tensors and the optimiser's numbers are all there is to keep.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    every: usize,
    precision: Precision,
    identity: Identity,
}

impl Checkpoints {
    /// In this folder, after every so many steps, for a run of the job on the base model in the folder `model` and on these
    /// rows, with this early stopping. Reads every row.
    ///
    /// # Errors
    /// The model or the rows cannot be read, or nothing can be written into the folder.
    pub fn new(
        folder: &Path,
        every: usize,
        job: &Job,
        model: &Path,
        rows: &Rows,
        stopping: Option<&EarlyStopping<'_>>,
    ) -> Result<Self, FinetuneError> {
        let unwritable = |e| failed(folder, format!("cannot be written into: {e}"));
        std::fs::create_dir_all(folder).map_err(unwritable)?;
        tempfile::tempfile_in(folder).map_err(unwritable)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            every: every.max(1),
            precision: job.training.precision,
            identity: Identity::of(job, model, rows, stopping)?,
        })
    }

    /// Whether it is time for one.
    pub(super) fn due(&self, step: usize) -> bool {
        step.is_multiple_of(self.every)
    }

    /// Writes the checkpoint in place of the last. What is there is always a whole one.
    pub(super) fn save(
        &self,
        classifier: &Classifier,
        optimizer: &Optimizer,
        stopping: Option<&EarlyStopping<'_>>,
        position: Position,
    ) -> Result<(), FinetuneError> {
        let mut tensors = classifier.network().state()?;
        tensors.iter_mut().for_each(|tensor| tensor.name = state_name(&tensor.name));
        let mut changed = BTreeMap::new();
        for (name, steps, numbers) in optimizer.numbers()? {
            changed.insert(name.to_owned(), steps);
            for (place, values) in numbers.into_iter().enumerate() {
                tensors.push(Named { name: number_name(place, name), shape: vec![values.len()], values });
            }
        }
        let (epochs, best) = (stopping.map(EarlyStopping::epochs), stopping.and_then(EarlyStopping::best));
        for (name, weights) in best.iter().flat_map(|(_, weights)| weights.iter()) {
            let (name, shape) = (best_name(name), weights.dims().to_vec());
            tensors.push(Named { name, shape, values: weights.flatten_all()?.to_vec1()? });
        }
        let record = Record {
            identity: self.identity.clone(),
            step: position.steps,
            loss_sum: position.loss_sum.to_bits(),
            scale: position.scale,
            changed,
            epochs: epochs.unwrap_or_default().to_vec(),
            best_epoch: best.map_or(0, |(epoch, _)| epoch),
        };
        let (part, file) = (self.folder.join(PART), self.folder.join(FILE));
        let unwritten = |e: std::io::Error| failed(&file, format!("cannot be written: {e}"));
        let record = serde_json::to_string(&record).map_err(|e| unwritten(e.into()))?;
        tensor_file::write_noted(&part, &tensors, &[], HashMap::from([(RECORD.to_owned(), record)]))?;
        let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
        sync(&part).and_then(|()| std::fs::rename(&part, &file)).and_then(|()| sync(&self.folder)).map_err(unwritten)
    }

    /// Puts model and optimiser where the checkpoint has them, if there is one.
    ///
    /// # Errors
    /// It is damaged, or of another run.
    pub(super) fn resume(
        &self,
        classifier: &Classifier,
        optimizer: &mut Optimizer,
        stopping: Option<&mut EarlyStopping<'_>>,
        steps: usize,
    ) -> Result<Position, FinetuneError> {
        let path = self.folder.join(FILE);
        if !path.exists() {
            return Ok(Position::default());
        }
        let refused = |message: String| failed(&path, format!("{message}; remove it to train from the beginning"));
        let damaged = |what: &dyn std::fmt::Display| refused(format!("is no whole checkpoint: {what}"));
        let mut file = TensorFile::open(&path).map_err(|e| damaged(&e))?;
        let record = file.note(RECORD).ok_or_else(|| damaged(&"its header does not say what it is of"))?;
        let record: Record = serde_json::from_str(record).map_err(|e| damaged(&e))?;
        if let Some(difference) = self.identity.difference(&record.identity) {
            return Err(refused(format!("is of {difference}")));
        }
        if record.step > steps {
            return Err(damaged(&format!("{} steps were done of {steps}", record.step)));
        }
        if record.scale.is_some_and(|scale| !scale.fits(self.precision)) {
            return Err(damaged(&"the scale of its losses is none of this run"));
        }
        // All is read before anything changes.
        let (parameters, device) = (classifier.network().parameters(), classifier.network().device());
        let mut values = Vec::new();
        for (name, shape) in classifier.state_tensors() {
            let found = file.read(&state_name(&name), &shape).map_err(|e| damaged(&e))?;
            values.push((name, Tensor::from_vec(found, shape, device)?));
        }
        let mut kept = Vec::new();
        for (name, steps) in &record.changed {
            let Some(parameter) = parameters.get(name).filter(|parameter| parameter.learns()) else {
                return Err(damaged(&format!("it has numbers for {name}, which is not trained")));
            };
            let count = parameter.var.elem_count();
            let numbers = (0..optimizer.kept())
                .map(|place| file.read(&number_name(place, name), &[count]).map_err(|e| damaged(&e)))
                .collect::<Result<Vec<_>, _>>()?;
            kept.push((name, parameter, *steps, numbers));
        }
        let mut best = BTreeMap::new();
        if record.best_epoch > 0 {
            for (name, shape) in classifier.state_tensors() {
                let found = file.read(&best_name(&name), &shape).map_err(|e| damaged(&e))?;
                best.insert(name, Tensor::from_vec(found, shape, device)?);
            }
        }
        if let Some(stopping) = stopping {
            stopping.restore(record.epochs, record.best_epoch, best);
        }
        for (name, values) in values {
            if let Some(parameter) = parameters.get(&name) {
                parameter.var.set(&values)?;
            }
        }
        for (name, parameter, steps, numbers) in kept {
            optimizer.restore(name, parameter, steps, numbers)?;
        }
        Ok(Position { steps: record.step, loss_sum: f64::from_bits(record.loss_sum), scale: record.scale })
    }

    /// Removes the checkpoint of a run whose model is saved.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<(), FinetuneError> {
        let path = self.folder.join(FILE);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, format!("cannot be removed: {e}"))),
            _ => Ok(()),
        }
    }
}

/// Of all contents and targets, in order.
fn digest(rows: &Rows) -> Result<String, FinetuneError> {
    let mut hasher = blake3::Hasher::new();
    for start in (0..rows.len()).step_by(HASHED_AT_ONCE) {
        let places = start..(start + HASHED_AT_ONCE).min(rows.len());
        for (row, content) in places.clone().zip(rows.contents(places)?) {
            // Escaped and quoted, so that no two rows have one text.
            hasher.update(format!("{content:?} {:?}\n", rows.target(row)).as_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn failed(path: &Path, message: String) -> FinetuneError {
    FinetuneError::Checkpoint { path: path.to_path_buf(), message }
}

fn state_name(name: &str) -> String {
    format!("state.{name}")
}

fn best_name(name: &str) -> String {
    format!("best.{name}")
}

fn number_name(place: usize, name: &str) -> String {
    format!("optimizer.{place}.{name}")
}
