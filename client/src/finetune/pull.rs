//! Terms `strength/2·|w − anchor|²` of the loss, by their gradient `strength·(w − anchor)`.

use std::collections::BTreeMap;

use candle_core::{Error, Tensor, bail};
use fedtune_config::job::Training;
use rayon::prelude::*;

use super::error::FinetuneError;
use super::gradients::BLOCK;
use crate::model::Classifier;
use crate::model::network::{Gradient, Parameter};
use crate::model::ops::{read_values, vectorised};

/// What holds the trained parameters near where they were.
#[derive(Debug)]
pub(super) struct Pulls(Vec<Pull>);

#[derive(Debug)]
struct Pull {
    strength: f64,
    anchors: BTreeMap<String, Tensor>,
}

impl Pulls {
    /// The job's terms: FedProx (Li et al. 2018, 1812.06127) towards the classifier as it is now, L2-SP (Li et al. 2018,
    /// 1802.01483) towards the base model.
    ///
    /// # Errors
    /// L2-SP is asked for and no trained tensor came from the base model, or that can no longer be read.
    pub(super) fn new(training: &Training, classifier: &Classifier) -> Result<Self, FinetuneError> {
        let mut pulls = Vec::new();
        if training.proximal > 0.0 {
            let trained = classifier.network().parameters().iter().filter(|(_, parameter)| parameter.learns());
            let anchors = trained
                .map(|(name, parameter)| Ok((name.clone(), parameter.var.as_detached_tensor().copy()?)))
                .collect::<Result<_, Error>>()?;
            pulls.push(Pull { strength: training.proximal, anchors });
        }
        if training.l2_sp > 0.0 {
            let anchors = classifier.pretrained()?;
            if anchors.is_empty() {
                return Err(FinetuneError::NothingPretrained { trainable: training.trainable.to_string() });
            }
            pulls.push(Pull { strength: training.l2_sp, anchors });
        }
        Ok(Self(pulls))
    }

    /// Adds the gradients of the terms; while `probing` those of what moves. Says whether there are any terms.
    ///
    /// # Errors
    /// A failure of the device.
    pub(super) fn add(
        &self,
        parameters: &BTreeMap<String, Parameter>,
        gradients: &mut BTreeMap<String, Gradient>,
        probing: bool,
    ) -> Result<bool, Error> {
        for Pull { strength, anchors } in &self.0 {
            for (name, anchor) in anchors {
                let (Some(gradient), Some(parameter)) = (gradients.get_mut(name), parameters.get(name)) else {
                    if parameters.get(name).is_some_and(|parameter| !parameter.moves(probing)) {
                        continue;
                    }
                    bail!("the trained tensor {name} has no gradient");
                };
                let values = parameter.var.as_detached_tensor();
                let sum = match &*gradient {
                    Gradient::Dense(gradient) if !gradient.device().is_cpu() => {
                        (gradient + ((values - anchor)? * *strength)?)?
                    }
                    gradient => pulled(gradient, &values, anchor, *strength as f32)?,
                };
                *gradient = Gradient::Dense(sum);
            }
        }
        Ok(!self.0.is_empty())
    }
}

/// `gradient + strength·(values − anchor)`; dense, because a row that the batch does not use is pulled as well.
fn pulled(gradient: &Gradient, values: &Tensor, anchor: &Tensor, strength: f32) -> Result<Tensor, Error> {
    let mut sum = match gradient {
        Gradient::Dense(gradient) => read_values(gradient, |gradient| Ok(gradient.to_vec()))?,
        Gradient::Rows { rows, values: used } => {
            let mut all = vec![0.0; values.elem_count()];
            let width = used.dim(1)?;
            read_values(used, |used| {
                for (row, used) in rows.iter().zip(used.chunks_exact(width.max(1))) {
                    let Some(place) = all.get_mut(*row as usize * width..(*row as usize + 1) * width) else {
                        bail!("a gradient for row {row} of a table of {} values", values.elem_count());
                    };
                    place.copy_from_slice(used);
                }
                Ok(())
            })?;
            all
        }
    };
    read_values(values, |w| {
        read_values(anchor, |anchor| {
            if sum.len() != w.len() || sum.len() != anchor.len() {
                bail!("{} gradients, {} parameters, {} anchors", sum.len(), w.len(), anchor.len());
            }
            sum.par_chunks_mut(BLOCK).zip(w.par_chunks(BLOCK)).zip(anchor.par_chunks(BLOCK)).for_each(
                |((sum, w), anchor)| {
                    vectorised(|| {
                        for ((sum, w), anchor) in sum.iter_mut().zip(w).zip(anchor) {
                            *sum += strength * (w - anchor);
                        }
                    });
                },
            );
            Ok(())
        })
    })?;
    Tensor::from_vec(sum, values.shape(), values.device())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::Role;

    #[test]
    fn every_row_is_pulled_towards_its_anchor() {
        let tensor = |values: &[[f32; 2]; 3]| Tensor::new(values, &Device::Cpu).unwrap();
        let values = tensor(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
        let parameters = BTreeMap::from([(
            "words".to_owned(),
            Parameter { var: Var::from_tensor(&values).unwrap(), trained: true, depth: 0, role: Role::Weight },
        )]);
        let anchors = BTreeMap::from([("words".to_owned(), tensor(&[[1.0, 0.0], [1.0, 4.0], [5.0, 10.0]]))]);
        let pulls = Pulls(vec![Pull { strength: 0.5, anchors }]);
        let used = Tensor::new(&[[10.0f32, 20.0]], &Device::Cpu).unwrap();
        let all = tensor(&[[0.0, 0.0], [10.0, 20.0], [0.0, 0.0]]);
        for gradient in [Gradient::Rows { rows: vec![1], values: used.clone() }, Gradient::Dense(all)] {
            let mut gradients = BTreeMap::from([("words".to_owned(), gradient)]);
            pulls.add(&parameters, &mut gradients, false).unwrap();
            let Gradient::Dense(sum) = &gradients["words"] else { panic!("a pull is dense") };
            assert_eq!(sum.to_vec2::<f32>().unwrap(), [[0.0, 1.0], [11.0, 20.0], [0.0, -2.0]]);
        }
        assert!(pulls.add(&parameters, &mut BTreeMap::new(), false).is_err());
        // At depth 0 it moves in any case.
        assert!(pulls.add(&parameters, &mut BTreeMap::new(), true).is_err());
        let outside = Gradient::Rows { rows: vec![3], values: used };
        assert!(pulls.add(&parameters, &mut BTreeMap::from([("words".to_owned(), outside)]), false).is_err());
    }
}
