//! Decoders: the names of transformers, the same for all.

use super::{Anatomy, Dense, Place, Role, TensorSpec};
use crate::model::config::DecoderConfig;
use crate::model::error::ModelError;
use crate::model::objective::Objective;

/// What base models without an output layer may leave out.
const PREFIX: &str = "model.";
/// The table of words.
pub(in crate::model) const WORDS: &str = "model.embed_tokens.weight";
/// The output layer, where it is not the table of words.
pub(in crate::model) const OUTPUT: &str = "lm_head.weight";
/// The norm below the output layer.
pub(in crate::model) const FINAL_NORM: &str = "model.norm";

/// The name of a part of a layer.
pub(in crate::model) fn layer(index: usize, part: &str) -> String {
    format!("model.layers.{index}.{part}")
}

/// The dense layers of a layer, each with its inputs, its outputs and whether it has a bias.
fn dense_parts(config: &DecoderConfig) -> [(&'static str, [usize; 2], bool); 7] {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let (queries, keys, biased) = (config.query_width(), config.key_width(), config.decoder.has_biases());
    [
        ("self_attn.q_proj", [hidden, queries], biased),
        ("self_attn.k_proj", [hidden, keys], biased),
        ("self_attn.v_proj", [hidden, keys], biased),
        ("self_attn.o_proj", [queries, hidden], false),
        ("mlp.gate_proj", [hidden, wide], false),
        ("mlp.up_proj", [hidden, wide], false),
        ("mlp.down_proj", [wide, hidden], false),
    ]
}

/// What a decoder states of itself.
pub(super) fn anatomy(config: &DecoderConfig, objective: Objective) -> Result<Anatomy, ModelError> {
    let encoders = "an encoder (\"bert\", \"distilbert\", \"roberta\", \"xlm-roberta\", \"modernbert\")";
    let task = match objective {
        Objective::NextToken => None,
        Objective::Class => Some("text-classification"),
        Objective::Sets => Some("multi-label-classification"),
        Objective::Value => Some("text-regression"),
        Objective::Tokens => Some("token-classification"),
    };
    if let Some(task) = task {
        return Err(ModelError::Objective { task, takes: encoders });
    }
    let hidden = config.hidden_size;
    let mut tensors = Vec::new();
    let mut tensor = |name: String, shape: Vec<usize>, place, role| {
        let in_base = std::iter::once(name.as_str()).chain(name.strip_prefix(PREFIX)).map(str::to_owned).collect();
        tensors.push(TensorSpec { name, shape, in_base, place, role });
    };
    let table = vec![config.vocab_size, hidden];
    tensor(WORDS.into(), table.clone(), Place::Embeddings, Role::Weight);
    let mut dense = Vec::new();
    for index in 0..config.num_hidden_layers {
        let place = Place::Layer(index);
        for (part, [inputs, outputs], biased) in dense_parts(config) {
            let stem = layer(index, part);
            tensor(format!("{stem}.weight"), vec![outputs, inputs], place, Role::Weight);
            if biased {
                tensor(format!("{stem}.bias"), vec![outputs], place, Role::Bias);
            }
            dense.push(Dense { stem, part, module: None, inputs, outputs, place });
        }
        let heads = [("self_attn.q_norm", config.head_dim), ("self_attn.k_norm", config.head_dim)];
        let heads = heads.into_iter().filter(|_| config.decoder.has_head_norms());
        for (part, width) in
            [("input_layernorm", hidden), ("post_attention_layernorm", hidden)].into_iter().chain(heads)
        {
            tensor(format!("{}.weight", layer(index, part)), vec![width], place, Role::Norm);
        }
    }
    tensor(format!("{FINAL_NORM}.weight"), vec![hidden], Place::Output, Role::Norm);
    if !config.tie_word_embeddings {
        tensor(OUTPUT.into(), table, Place::Output, Role::Weight);
    }
    Ok(Anatomy {
        tensors,
        carried: Vec::new(),
        layers: config.num_hidden_layers,
        dense,
        default_targets: ["q_proj", "v_proj"].map(str::to_owned).to_vec(),
        beside_adapters: Vec::new(),
        words: Some(WORDS),
        class: format!("{}ForCausalLM", config.decoder.class_stem()),
        deviation: config.initializer_range,
    })
}
