//! The computing of a task. Files in, files and numbers out; no network here.

use std::path::{Path, PathBuf};

use candle_core::Device;
use fedtune_config::job::Job;
use fedtune_config::site::Duplicates;
use fedtune_config::{ConfigError, SiteConfig};
use fedtune_proto::v1;

use super::encode::{Encoded, encode};
use super::outbox::Attempt;
use crate::data::{self, Columns, DataError, DataReport, Rows, Sampling, TargetReader};
use crate::finetune::{self, Checkpoints, FinetuneError, FitReport, Observer, Plan};
use crate::model::{Classifier, ModelError, ModelSpec, taken_by};

/// Rows in a batch that is only scored.
const EVALUATION_BATCH: usize = 32;

/// A site: its configuration and its opened device.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) config: SiteConfig,
    pub(super) device: Device,
}

/// A task that could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    #[error("the job cannot be read: {0}")]
    Job(#[from] ConfigError),
    #[error("{0}")]
    Data(#[from] DataError),
    #[error("{0}")]
    Model(#[from] ModelError),
    #[error("{0}")]
    Finetune(#[from] FinetuneError),
    #[error("the update that was just written cannot be read: {0}")]
    Update(#[from] fedtune_proto::layout::LayoutError),
    #[error("the update cannot be encoded: {0}")]
    Encode(#[from] fedtune_proto::delta::DeltaError),
    #[error("this site has no {0} in its site.toml, which the task needs")]
    NoData(&'static str),
    #[error("the task from the aggregator is malformed: {0}")]
    Malformed(String),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the computation panicked; please report it: {0}")]
    Panicked(String),
}

impl WorkError {
    /// Whether asking this site again is useless.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Job(_)
                | Self::Data(_)
                | Self::NoData(_)
                | Self::Malformed(_)
                | Self::Finetune(
                    FinetuneError::NothingPretrained { .. }
                        | FinetuneError::NothingToProbe { .. }
                        | FinetuneError::OtherTargets
                        | FinetuneError::Model(ModelError::Recompute)
                )
        )
    }

    /// What the aggregator is told of it. The site's own log has all; what it says of data (values, names, paths) stays here.
    pub(super) fn told(&self) -> String {
        let what = match self {
            Self::Data(e) => e.kind(),
            Self::Finetune(FinetuneError::Data(e)) => e.kind(),
            Self::Finetune(FinetuneError::Image(_)) => "an image cannot be used any more",
            Self::Finetune(FinetuneError::Checkpoint { .. }) => "a checkpoint cannot be used or written",
            Self::File { source, .. } => return format!("a file of this site: {source}; its own log says which"),
            Self::Panicked(_) => "the computation panicked",
            other => return other.to_string(),
        };
        format!("{what}; the site's own log says more")
    }

    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Finetune(FinetuneError::Cancelled { .. }))
    }
}

impl Site {
    /// The job of a task, as the aggregator's operator wrote it.
    pub(super) fn job(&self, task: &v1::Task) -> Result<Job, WorkError> {
        let found = fedtune_proto::digest::Digest::of(task.job_text.as_bytes()).to_string();
        if found != task.job_digest {
            return Err(WorkError::Malformed("the job's text does not have the digest it should".into()));
        }
        let mut job: Job = fedtune_config::parse("the job".as_ref(), &task.job_text, std::iter::empty())?;
        match task.learning_rate_factor {
            0.0 => {}
            factor if factor > 0.0 && factor <= 1.0 => job.training.learning_rate *= factor,
            factor => return Err(WorkError::Malformed(format!("it multiplies the learning rate by {factor}"))),
        }
        Ok(job)
    }

    /// Writes the first state of a job. Returns its export recipe as JSON.
    pub(super) fn initialize(&self, job: &Job, model: &Path, state: &Path) -> Result<String, WorkError> {
        let classifier = Classifier::load(model, &ModelSpec::from(job), &self.device)?;
        classifier.check_excluded(&job.aggregation.exclude)?;
        classifier.write_state(state)?;
        serde_json::to_string(&classifier.export_recipe()).map_err(|e| WorkError::Malformed(e.to_string()))
    }

    /// Fine-tunes a state on the site's training rows for a round and writes what changed, as it is to be sent. Goes on from
    /// the checkpoint of an earlier run of the same attempt.
    pub(super) fn train(
        &self,
        job: &Job,
        round: u32,
        model: &Path,
        state: &Path,
        attempt: &Attempt,
        observer: &mut dyn Observer,
    ) -> Result<(FitReport, Encoded), WorkError> {
        let data = &self.config.data;
        let sampling = Sampling { per_label: data.per_label, oversample: data.oversample };
        let rows = sampling.apply(self.rows(job, model)?.0, job.training.seed)?;
        let mut classifier = Classifier::load(model, &ModelSpec::from(job), &self.device)?;
        let start = |classifier: &mut Classifier| -> Result<(), WorkError> {
            classifier.load_state(state)?;
            attempt.own.iter().try_for_each(|own| classifier.load_own(own))?;
            Ok(())
        };
        start(&mut classifier)?;
        let steps = job.training.steps_per_round(rows.len());
        let plan = Plan {
            first_step: (round.max(1) as usize - 1) * steps,
            steps,
            total_steps: job.rounds.count as usize * steps,
            round,
        };
        let every = self.config.storage.checkpoint_steps;
        let report = if every > 0 && steps > every {
            let folder = attempt.checkpoint();
            let checkpoints = Checkpoints::new(&folder, every, job, model, &rows, None)?;
            let mut fit = |classifier: &mut Classifier| {
                finetune::fit_saved(classifier, &rows, &job.training, plan, None, &checkpoints, observer)
            };
            match fit(&mut classifier) {
                Err(damaged @ FinetuneError::Checkpoint { .. }) => {
                    tracing::warn!("{damaged}; training from the beginning");
                    std::fs::remove_dir_all(&folder)
                        .and_then(|()| std::fs::create_dir(&folder))
                        .map_err(|source| WorkError::File { path: folder.clone(), source })?;
                    start(&mut classifier)?;
                    fit(&mut classifier)?
                }
                fitted => fitted?,
            }
        } else {
            finetune::fit(&mut classifier, &rows, &job.training, plan, observer)?
        };
        if report.resumed_steps > 0 {
            tracing::info!(step = report.resumed_steps, of = steps, "went on from the checkpoint");
        }
        let excluded = &job.aggregation.exclude;
        if !excluded.is_empty() {
            classifier.write_own(excluded, &attempt.new_own())?;
        }
        classifier.write_delta(state, excluded, &attempt.update())?;
        Ok((report, encode(&job.updates, attempt)?))
    }

    /// Scores a state, with what stays here in its place: an evaluator on its test file, a training site on its validation
    /// split.
    pub(super) fn evaluate(
        &self,
        job: &Job,
        model: &Path,
        state: &Path,
        own: Option<&Path>,
        observer: &mut dyn Observer,
    ) -> Result<finetune::Evaluation, WorkError> {
        let rows = match &self.config.data.test {
            Some(test) => self.read(job, test, &self.columns(job, model)?.ungrouped())?.0,
            None => self.rows(job, model)?.1,
        };
        if rows.is_empty() {
            return Err(WorkError::NoData("data.test, and no data.validation_fraction above 0,"));
        }
        let mut classifier = Classifier::load(model, &ModelSpec::from(job), &self.device)?;
        classifier.load_state(state)?;
        if let Some(own) = own {
            classifier.load_own(own)?;
        }
        Ok(finetune::evaluate_sums(&classifier, &rows, EVALUATION_BATCH, observer)?)
    }

    /// Training rows and validation rows, for the base model in a folder.
    fn rows(&self, job: &Job, model: &Path) -> Result<(Rows, Rows), WorkError> {
        let train = self.config.data.train.as_ref().ok_or(WorkError::NoData("data.train"))?;
        let (mut rows, mut report) = self.read(job, train, &self.columns(job, model)?)?;
        if self.config.data.duplicates == Duplicates::Remove {
            rows = report.remove_duplicates(&rows);
            if report.removed > 0 {
                tracing::info!(removed = report.removed, rows = report.used, "duplicate training rows removed");
            }
        }
        Ok(data::split(rows, self.config.data.validation_fraction))
    }

    fn columns(&self, job: &Job, model: &Path) -> Result<Columns, WorkError> {
        Ok(taken_by(model, Columns::resolve(job, &self.config.data))?)
    }

    fn read(&self, job: &Job, path: &Path, columns: &Columns) -> Result<(Rows, DataReport), WorkError> {
        let targets = TargetReader::new(&job.task, &self.config.data.labels)?;
        let (rows, report) = data::read(path, columns, &targets)?;
        if report.skipped() > 0 {
            tracing::warn!("{report}");
        }
        Ok((rows, report))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_the_aggregator_is_told_holds_nothing_of_the_data() {
        let path = PathBuf::from("/srv/ward-7/jane-doe.csv");
        let source = || std::io::Error::other("disk failure");
        let mapping = DataError::Mapping { local: "jane doe".into(), target: "ill".into(), known: vec!["yes".into()] };
        let errors = [
            WorkError::Data(mapping),
            WorkError::Data(DataError::Empty { path: path.clone() }),
            WorkError::Finetune(FinetuneError::Data(Box::new(DataError::Empty { path: path.clone() }))),
            WorkError::Finetune(FinetuneError::Image("jane doe.png".into())),
            WorkError::Finetune(FinetuneError::Checkpoint { path: path.clone(), message: "of jane doe".into() }),
            WorkError::File { path, source: source() },
            WorkError::Panicked("at jane doe".into()),
        ];
        for error in errors {
            let (all, told) = (error.to_string(), error.told());
            assert!(all.contains("jane"), "the site's log names it: {all}");
            assert!(!told.contains("jane") && !told.contains("ward") && told.contains("log says"), "{told}");
        }
    }
}
