//! The job's labels and a site's own names for them.

use std::collections::{BTreeMap, HashMap};

use super::error::DataError;

/// More distinct labels than any job may have.
pub const MAX_LABELS: usize = 10_000;

/// From a label as it stands in a file to its index.
#[derive(Debug, Clone)]
pub struct LabelMap {
    labels: Vec<String>,
    by_name: HashMap<String, usize>,
}

impl LabelMap {
    /// The job's labels, and the site's `data.labels` from local names to the job's.
    ///
    /// # Errors
    /// A local name is mapped to a label that the job does not have.
    pub fn new(labels: &[String], local: &BTreeMap<String, String>) -> Result<Self, DataError> {
        let mut by_name: HashMap<String, usize> =
            labels.iter().enumerate().map(|(index, label)| (label.clone(), index)).collect();
        let mut mapped = Vec::new();
        for (name, target) in local {
            let Some(index) = by_name.get(target) else {
                let (local, target, known) = (name.clone(), target.clone(), labels.to_vec());
                return Err(DataError::Mapping { local, target, known });
            };
            mapped.push((name.clone(), *index));
        }
        by_name.extend(mapped);
        Ok(Self { labels: labels.to_vec(), by_name })
    }

    /// The index of a label; surrounding white space does not matter, case does.
    pub fn index(&self, label: &str) -> Option<usize> {
        self.by_name.get(label).or_else(|| self.by_name.get(label.trim())).copied()
    }

    /// The job's labels.
    pub fn known(&self) -> Vec<String> {
        self.labels.clone()
    }

    /// The known name nearest to `label`, if one is near.
    pub fn nearest(&self, label: &str) -> Option<&str> {
        if label.len() > 200 {
            return None;
        }
        let lower = label.to_lowercase();
        self.by_name
            .keys()
            .map(|name| (strsim::damerau_levenshtein(&name.to_lowercase(), &lower), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
            .map(|(_, name)| name.as_str())
    }
}
