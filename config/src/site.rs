//! `site.toml`: what the site engineer writes. Where the aggregator is, which data to train on, what may leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Problems;
use crate::load::Document;
use crate::units::Span;

/// Most times a row is repeated; above it a model learns the few rows by heart.
pub const OVERSAMPLE_MAX: f64 = 100.0;

/// The configuration of one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// The aggregator.
    pub aggregator: Aggregator,
    /// The site's data.
    pub data: Data,
    /// Where tensors live.
    #[serde(default)]
    pub device: Device,
    /// Where the site keeps models and unsent updates.
    #[serde(default)]
    pub storage: Storage,
    /// What may leave the site.
    #[serde(default)]
    pub policy: Policy,
}

/// How the aggregator is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregator {
    /// `https://host:port`
    pub address: String,
    /// The folder that `fedtune-server site add` wrote: ca.pem, site.pem, site-key.pem.
    pub bundle: PathBuf,
    /// A link on which the aggregator gives no sign for so long, though it is asked for one, counts as broken.
    #[serde(default = "Aggregator::default_timeout")]
    pub timeout: Span,
}

impl Aggregator {
    /// Long enough for a link that is slow and full.
    pub fn default_timeout() -> Span {
        Span::seconds(60)
    }
}

/// The labelled files of a site. A training site has `train`, an evaluator has `test`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// CSV, JSONL or Parquet (by its ending) with the rows to train on, or a folder of images: `<label>/<file>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// The same with the rows an evaluator scores states on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Column with the text, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Column with the label, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// Column with the second text of a pair, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_column: Option<String>,
    /// Column with the words of a row, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_column: Option<String>,
    /// Column with the prompt, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_column: Option<String>,
    /// Column with the response, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_column: Option<String>,
    /// Column with the encoded image in a Parquet file, where it differs from the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Column of the training file whose equal values (a subject's number) keep rows on one side of the split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_column: Option<String>,
    /// Local names of labels, mapped to the job's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Share of the training rows of each label kept for validation, chosen by a hash of the text or the group.
    pub validation_fraction: f64,
    /// What is done with training rows whose text and label stand in an earlier row.
    pub duplicates: Duplicates,
    /// Train on at most so many rows of each label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_label: Option<usize>,
    /// How many times as many the training rows of a rare label become, at most, by repeating them; 1 repeats none.
    pub oversample: f64,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: None,
            test: None,
            text_column: None,
            label_column: None,
            pair_column: None,
            tokens_column: None,
            prompt_column: None,
            response_column: None,
            image_column: None,
            group_column: None,
            labels: BTreeMap::new(),
            validation_fraction: 0.0,
            duplicates: Duplicates::Keep,
            per_label: None,
            oversample: 1.0,
        }
    }
}

/// What is done with a row whose text (but for Unicode form, case and white space) and label stand in an earlier row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    /// It is trained on like any other.
    #[default]
    Keep,
    /// It is left out.
    Remove,
}

/// The kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU; needs a program built with the `cuda` feature.
    Cuda,
}

/// Where the site trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// CPU or CUDA.
    pub kind: DeviceKind,
    /// Which GPU, counted from 0.
    pub index: usize,
    /// CPU threads; 0 means one per core.
    pub threads: usize,
}

impl Default for Device {
    fn default() -> Self {
        Self { kind: DeviceKind::Cpu, index: 0, threads: 0 }
    }
}

/// The site's own folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Downloaded models and states, and updates not yet acknowledged.
    pub work: PathBuf,
    /// A task that takes more optimiser steps than this writes a checkpoint after every so many of them, from which it goes on
    /// when the program is started again; 0 for never.
    pub checkpoint_steps: usize,
}

impl Default for Storage {
    fn default() -> Self {
        Self { work: "work".into(), checkpoint_steps: 200 }
    }
}

/// What may leave the site beside the update itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Whether the number of examples per label is told to the aggregator.
    pub share_label_counts: bool,
}

impl Document for SiteConfig {
    const ENV_PREFIX: Option<&'static str> = Some("FEDTUNE_SITE");

    fn validate(&self, p: &mut Problems) {
        let address = &self.aggregator.address;
        p.check(address.starts_with("https://") && address.len() > 8, "aggregator.address", || {
            format!("found {address:?}; expected \"https://host:port\" (there is no plaintext mode)")
        });
        let timeout = self.aggregator.timeout;
        p.check(timeout.0.as_secs() >= 1, "aggregator.timeout", || {
            format!("found {timeout}; expected at least \"1s\"")
        });
        p.check(self.data.train.is_some() || self.data.test.is_some(), "data", || {
            "names neither `train` nor `test`; a training site needs `train`, an evaluator needs `test`".into()
        });
        let fraction = self.data.validation_fraction;
        p.check((0.0..0.9).contains(&fraction), "data.validation_fraction", || {
            format!("found {fraction}; expected 0 or more and less than 0.9")
        });
        let group = self.data.group_column.as_deref();
        p.check(group != Some(""), "data.group_column", || "is empty; expected a column name".into());
        p.check(group.is_none() || self.data.train.is_some(), "data.group_column", || {
            "stands without data.train, whose rows it keeps together; remove it, or give data.train".into()
        });
        p.check(self.data.per_label != Some(0), "data.per_label", || "found 0; expected 1 or more".into());
        let times = self.data.oversample;
        p.check((1.0..=OVERSAMPLE_MAX).contains(&times), "data.oversample", || {
            format!("found {times}; expected 1 to {OVERSAMPLE_MAX}")
        });
        let threads = self.device.threads;
        p.check(threads <= 1024, "device.threads", || format!("found {threads}; expected 0 (all cores) to 1024"));
    }

    fn resolve(&mut self, folder: &Path) {
        self.aggregator.bundle = folder.join(&self.aggregator.bundle);
        self.storage.work = folder.join(&self.storage.work);
        for file in [&mut self.data.train, &mut self.data.test].into_iter().flatten() {
            *file = folder.join(&file);
        }
    }
}
