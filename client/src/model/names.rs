//! The tensors of a BERT sequence classifier: canonical names (those of transformers'
//! `BertForSequenceClassification`), shapes, and which are trained.

use fedtune_config::job::Trainable;

use super::config::BertConfig;

/// Dense layers of an encoder layer, each with `.weight` and `.bias`.
pub(super) const QUERY: &str = "attention.self.query";
pub(super) const KEY: &str = "attention.self.key";
pub(super) const VALUE: &str = "attention.self.value";
pub(super) const ATTENTION_OUTPUT: &str = "attention.output.dense";
pub(super) const ATTENTION_NORM: &str = "attention.output.LayerNorm";
pub(super) const INTERMEDIATE: &str = "intermediate.dense";
pub(super) const OUTPUT: &str = "output.dense";
pub(super) const OUTPUT_NORM: &str = "output.LayerNorm";

pub(super) const WORDS: &str = "bert.embeddings.word_embeddings.weight";
pub(super) const POSITIONS: &str = "bert.embeddings.position_embeddings.weight";
pub(super) const TYPES: &str = "bert.embeddings.token_type_embeddings.weight";
pub(super) const EMBEDDINGS_NORM: &str = "bert.embeddings.LayerNorm";
pub(super) const POOLER: &str = "bert.pooler.dense";
pub(super) const CLASSIFIER: &str = "classifier";

/// The name of a part of an encoder layer.
pub(super) fn layer(index: usize, part: &str) -> String {
    format!("bert.encoder.layer.{index}.{part}")
}

/// Every tensor with its shape.
pub(super) fn tensors(config: &BertConfig, labels: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let mut all = vec![
        (WORDS.to_owned(), vec![config.vocab_size, hidden]),
        (POSITIONS.to_owned(), vec![config.max_position_embeddings, hidden]),
        (TYPES.to_owned(), vec![config.type_vocab_size, hidden]),
    ];
    let mut pair = |name: String, weight: Vec<usize>| {
        all.push((format!("{name}.bias"), vec![weight[0]]));
        all.push((format!("{name}.weight"), weight));
    };
    pair(EMBEDDINGS_NORM.to_owned(), vec![hidden]);
    for index in 0..config.num_hidden_layers {
        for part in [QUERY, KEY, VALUE, ATTENTION_OUTPUT] {
            pair(layer(index, part), vec![hidden, hidden]);
        }
        pair(layer(index, INTERMEDIATE), vec![wide, hidden]);
        pair(layer(index, OUTPUT), vec![hidden, wide]);
        pair(layer(index, ATTENTION_NORM), vec![hidden]);
        pair(layer(index, OUTPUT_NORM), vec![hidden]);
    }
    pair(POOLER.to_owned(), vec![hidden, hidden]);
    pair(CLASSIFIER.to_owned(), vec![labels, hidden]);
    all
}

/// The names a tensor may have in a base model's file, in order of preference: with and without the `bert.` prefix,
/// and with the names of layer normalisation that conversions from TensorFlow used.
pub(super) fn in_base(canonical: &str) -> Vec<String> {
    let mut names = vec![canonical.to_owned()];
    if let Some(bare) = canonical.strip_prefix("bert.") {
        names.push(bare.to_owned());
    }
    for name in names.clone() {
        if let Some(start) = name.strip_suffix("LayerNorm.weight") {
            names.push(format!("{start}LayerNorm.gamma"));
        } else if let Some(start) = name.strip_suffix("LayerNorm.bias") {
            names.push(format!("{start}LayerNorm.beta"));
        }
    }
    names
}

/// Whether the tensor belongs to pooler or classifier, which a base model need not have.
pub(super) fn is_head(canonical: &str) -> bool {
    canonical.starts_with(POOLER) || is_classifier(canonical)
}

/// Whether the tensor belongs to the classifier, whose shape depends on the labels.
pub(super) fn is_classifier(canonical: &str) -> bool {
    canonical.starts_with("classifier.")
}

/// Whether a tensor is trained.
pub(super) fn is_trained(canonical: &str, trainable: Trainable, layers: usize) -> bool {
    match trainable {
        Trainable::Full => true,
        Trainable::Head => is_head(canonical),
        Trainable::Last(last) => {
            is_head(canonical)
                || canonical
                    .strip_prefix("bert.encoder.layer.")
                    .and_then(|rest| rest.split('.').next())
                    .and_then(|index| index.parse::<usize>().ok())
                    .is_some_and(|index| index + last >= layers)
        }
    }
}

/// Whether weight decay touches a tensor: neither biases nor layer normalisation, as transformers' trainer has it.
pub(crate) fn decays(canonical: &str) -> bool {
    !canonical.ends_with("bias") && !canonical.contains("LayerNorm")
}

/// How many layers from the top a tensor is, pooler and classifier being the top: 0 for these, 1 for the last of `layers`
/// encoder layers, `layers + 1` for the embeddings. The first number in a name is its layer's.
pub(crate) fn depth(canonical: &str, layers: usize) -> usize {
    if is_head(canonical) {
        return 0;
    }
    match canonical.split('.').find_map(|part| part.parse::<usize>().ok()) {
        Some(index) => layers.saturating_sub(index),
        None => layers + 1,
    }
}
