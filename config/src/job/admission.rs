//! `[admission]`: what an update must be like to count, beyond being whole, of the state's layout and finite.

use serde::{Deserialize, Serialize};

use super::range;
use crate::error::Problems;

/// What becomes of updates that are equal byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copies {
    /// One of them counts.
    LeaveOut,
    /// All of them count.
    Count,
}

/// What an update must be like to count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// The largest L2 norm of an update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_max: Option<f64>,
    /// An update whose norm is so many times the median of its round is left out; 0 is off.
    pub norm_ratio_max: f64,
    /// What becomes of updates that are equal.
    pub copies: Copies,
    /// A site is not asked again in this job after so many of its updates were refused or left out; 0 is never.
    pub strikes: u32,
}

impl Default for Admission {
    fn default() -> Self {
        Self { norm_max: None, norm_ratio_max: 50.0, copies: Copies::LeaveOut, strikes: 3 }
    }
}

impl Admission {
    pub(super) fn validate(&self, p: &mut Problems) {
        let norm = self.norm_max.unwrap_or(1.0);
        p.check(norm.is_finite() && norm > 0.0, "admission.norm_max", || format!("found {norm}; expected more than 0"));
        let ratio = self.norm_ratio_max;
        p.check(ratio.is_finite() && (ratio == 0.0 || ratio > 1.0), "admission.norm_ratio_max", || {
            format!("found {ratio}; expected more than 1, or 0 (off)")
        });
        range(p, "admission.strikes", self.strikes, 0, 1_000);
    }
}
