//! How much rows of each label count in a site's loss.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;

const FIELD: &str = "training.class_weights";

/// Weights of the labels in the loss; the mean over a batch is divided by the sum of its rows' weights.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassWeights {
    /// `rows / (labels · rows of the label)` at each site, over the labels it has: all its labels count alike.
    Balanced,
    /// One for each label, in the order of `task.labels`.
    List(Vec<f64>),
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Balanced => serializer.serialize_str("balanced"),
            Self::List(weights) => weights.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = ClassWeights;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("\"balanced\" or a list of numbers, one for each label")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ClassWeights, E> {
                match text {
                    "balanced" => Ok(ClassWeights::Balanced),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<ClassWeights, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(ClassWeights::List)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl ClassWeights {
    pub(super) fn validate(&self, problems: &mut Problems, labels: usize, logit_adjustment: f64) {
        match self {
            Self::Balanced => problems.check(logit_adjustment == 0.0, FIELD, || {
                "is \"balanced\" beside training.logit_adjustment; both allow for the labels that a site happens to have, \
                 so give one of the two"
                    .into()
            }),
            Self::List(weights) => {
                problems.check(weights.len() == labels, FIELD, || {
                    format!("found {} numbers; expected one for each of the {labels} labels", weights.len())
                });
                problems.check(weights.iter().all(|weight| weight.is_finite() && *weight > 0.0), FIELD, || {
                    format!("found {weights:?}; expected numbers above 0")
                });
            }
        }
    }
}
