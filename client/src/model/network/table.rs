//! Dense layers over the inputs of a table.

use candle_core::{Result, Tensor};

use super::{Mode, Network};
use crate::model::anatomy::table;
use crate::model::config::TableConfig;
use crate::model::ops;

/// The outputs `[rows, outputs]` of the inputs `[rows, inputs]`.
pub(super) fn forward(network: &Network, config: &TableConfig, inputs: &Tensor, mode: &Mode) -> Result<Tensor> {
    let mut hidden = inputs.clone();
    for index in 0..config.hidden_sizes.len() {
        hidden = network.linear(&hidden, &table::layer(index), mode)?;
        hidden = ops::activation(&mode.tape, &hidden, config.hidden_act)?;
        hidden = ops::dropout(&mode.tape, &hidden, mode.dropout(index, 0))?;
    }
    network.linear(&hidden, table::CLASSIFIER, mode)
}
