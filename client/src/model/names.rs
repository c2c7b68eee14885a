//! The tensors of a sequence classifier: canonical names (those of transformers' class for the architecture), shapes,
//! and which are trained.

use fedtune_config::job::Trainable;

use super::config::{Architecture, EncoderConfig};

/// The names of one architecture. Those of dense layers and norms are stems of `.weight` and `.bias`.
#[derive(Debug)]
pub(super) struct Names {
    /// What base models without a head may leave out.
    prefix: &'static str,
    pub(super) words: &'static str,
    pub(super) embeddings_norm: &'static str,
    /// What stands before the number of a layer.
    layers: &'static str,
    pub(super) encoder: EncoderNames,
    /// The dense layer between encoder and classifier.
    pub(super) pooler: &'static str,
    pub(super) pooler_norm: Option<&'static str>,
    pub(super) classifier: &'static str,
}

/// The names that encoders of one function share.
#[derive(Debug)]
pub(super) enum EncoderNames {
    Bert(BertNames),
    ModernBert(ModernBertNames),
}

/// Tables, and the parts of a layer, of BERT and its kin.
#[derive(Debug)]
pub(super) struct BertNames {
    pub(super) positions: &'static str,
    /// The token-type table, where there is one.
    pub(super) types: Option<&'static str>,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) output: &'static str,
    pub(super) output_norm: &'static str,
}

/// The parts of a layer of ModernBERT, none with a bias, and its last norm.
#[derive(Debug)]
pub(super) struct ModernBertNames {
    /// Absent in the first layer.
    pub(super) attention_norm: &'static str,
    /// Queries, keys and values, below each other.
    pub(super) qkv: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) output_norm: &'static str,
    /// What is activated, and below it what that is multiplied by.
    pub(super) intermediate: &'static str,
    pub(super) output: &'static str,
    pub(super) final_norm: &'static str,
}

const BERT_LAYER: BertNames = BertNames {
    positions: "bert.embeddings.position_embeddings.weight",
    types: Some("bert.embeddings.token_type_embeddings.weight"),
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    intermediate: "intermediate.dense",
    output: "output.dense",
    output_norm: "output.LayerNorm",
};

const BERT: Names = Names {
    prefix: "bert.",
    words: "bert.embeddings.word_embeddings.weight",
    embeddings_norm: "bert.embeddings.LayerNorm",
    layers: "bert.encoder.layer.",
    encoder: EncoderNames::Bert(BERT_LAYER),
    pooler: "bert.pooler.dense",
    pooler_norm: None,
    classifier: "classifier",
};

const ROBERTA: Names = Names {
    prefix: "roberta.",
    words: "roberta.embeddings.word_embeddings.weight",
    embeddings_norm: "roberta.embeddings.LayerNorm",
    layers: "roberta.encoder.layer.",
    encoder: EncoderNames::Bert(BertNames {
        positions: "roberta.embeddings.position_embeddings.weight",
        types: Some("roberta.embeddings.token_type_embeddings.weight"),
        ..BERT_LAYER
    }),
    pooler: "classifier.dense",
    pooler_norm: None,
    classifier: "classifier.out_proj",
};

const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    words: "distilbert.embeddings.word_embeddings.weight",
    embeddings_norm: "distilbert.embeddings.LayerNorm",
    layers: "distilbert.transformer.layer.",
    encoder: EncoderNames::Bert(BertNames {
        positions: "distilbert.embeddings.position_embeddings.weight",
        types: None,
        query: "attention.q_lin",
        key: "attention.k_lin",
        value: "attention.v_lin",
        attention_output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        intermediate: "ffn.lin1",
        output: "ffn.lin2",
        output_norm: "output_layer_norm",
    }),
    pooler: "pre_classifier",
    pooler_norm: None,
    classifier: "classifier",
};

const MODERNBERT: Names = Names {
    prefix: "model.",
    words: "model.embeddings.tok_embeddings.weight",
    embeddings_norm: "model.embeddings.norm",
    layers: "model.layers.",
    encoder: EncoderNames::ModernBert(ModernBertNames {
        attention_norm: "attn_norm",
        qkv: "attn.Wqkv",
        attention_output: "attn.Wo",
        output_norm: "mlp_norm",
        intermediate: "mlp.Wi",
        output: "mlp.Wo",
        final_norm: "model.final_norm",
    }),
    pooler: "head.dense",
    pooler_norm: Some("head.norm"),
    classifier: "classifier",
};

/// Stands for every dense layer of the encoder.
const ALL_LINEAR: &str = "all-linear";

/// The name of an adapter's matrix `A` `[rank, in]`.
pub(super) fn lora_a(stem: &str) -> String {
    format!("{stem}.lora_A.weight")
}

/// The name of an adapter's matrix `B` `[out, rank]`.
pub(super) fn lora_b(stem: &str) -> String {
    format!("{stem}.lora_B.weight")
}

impl Names {
    /// Those of an architecture.
    pub(super) fn of(architecture: Architecture) -> &'static Self {
        match architecture {
            Architecture::Bert => &BERT,
            Architecture::DistilBert => &DISTILBERT,
            Architecture::Roberta | Architecture::XlmRoberta => &ROBERTA,
            Architecture::ModernBert => &MODERNBERT,
        }
    }

    /// The name of a part of an encoder layer.
    pub(super) fn layer(&self, index: usize, part: &str) -> String {
        format!("{}{index}.{part}", self.layers)
    }

    /// The dense layers of an encoder layer, each with its inputs and outputs.
    fn dense_parts(&self, config: &EncoderConfig) -> Vec<(&'static str, [usize; 2])> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        match &self.encoder {
            EncoderNames::Bert(bert) => vec![
                (bert.query, [hidden, hidden]),
                (bert.key, [hidden, hidden]),
                (bert.value, [hidden, hidden]),
                (bert.attention_output, [hidden, hidden]),
                (bert.intermediate, [hidden, wide]),
                (bert.output, [wide, hidden]),
            ],
            EncoderNames::ModernBert(modern) => vec![
                (modern.qkv, [hidden, 3 * hidden]),
                (modern.attention_output, [hidden, hidden]),
                (modern.intermediate, [hidden, 2 * wide]),
                (modern.output, [wide, hidden]),
            ],
        }
    }

    /// The norms of an encoder layer.
    fn norm_parts(&self, index: usize) -> Vec<&'static str> {
        match &self.encoder {
            EncoderNames::Bert(bert) => vec![bert.attention_norm, bert.output_norm],
            EncoderNames::ModernBert(modern) if index == 0 => vec![modern.output_norm],
            EncoderNames::ModernBert(modern) => vec![modern.attention_norm, modern.output_norm],
        }
    }

    /// What adapters are put beside, in peft's terms: `targets` with [`ALL_LINEAR`] written out, or else queries and
    /// values, which are peft's default.
    pub(super) fn lora_targets(&self, config: &EncoderConfig, targets: &[String]) -> Vec<String> {
        if targets.is_empty() {
            let last = |part: &str| part.rsplit('.').next().unwrap_or(part).to_owned();
            return match &self.encoder {
                EncoderNames::Bert(bert) => vec![last(bert.query), last(bert.value)],
                EncoderNames::ModernBert(modern) => vec![last(modern.qkv)],
            };
        }
        let all = targets.iter().any(|target| target == ALL_LINEAR);
        let parts = || self.dense_parts(config).into_iter().map(|(part, _)| part.to_owned()).collect();
        if all { parts() } else { targets.to_vec() }
    }

    /// The dense layers of the encoder that `targets` name, each with its inputs and outputs. As in peft, a target fits
    /// every layer whose name ends with it.
    ///
    /// # Errors
    /// A target that fits no layer, with what would.
    pub(super) fn lora_layers(
        &self,
        config: &EncoderConfig,
        targets: &[String],
    ) -> Result<Vec<(String, [usize; 2])>, String> {
        let parts = self.dense_parts(config);
        let all: Vec<(String, [usize; 2])> = (0..config.num_hidden_layers)
            .flat_map(|index| parts.iter().map(move |(part, shape)| (self.layer(index, part), *shape)))
            .collect();
        let fits = |stem: &str, target: &str| {
            stem.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(target) = targets.iter().find(|target| !all.iter().any(|(stem, _)| fits(stem, target))) {
            let parts: Vec<String> = parts.iter().map(|(part, _)| format!("\"{part}\"")).collect();
            let parts = parts.join(", ");
            return Err(format!(
                "found {target:?}, which no dense layer ends with; expected some of {parts}, \"{ALL_LINEAR}\""
            ));
        }
        Ok(all.into_iter().filter(|(stem, _)| targets.iter().any(|target| fits(stem, target))).collect())
    }

    /// The parts outside the encoder that are trained and saved beside adapters, by peft's `modules_to_save`.
    pub(super) fn saved_beside_adapters(&self) -> Vec<String> {
        let module = |stem: &str| {
            let bare = stem.strip_prefix(self.prefix).unwrap_or(stem);
            bare.split('.').next().unwrap_or(bare).to_owned()
        };
        let mut modules = vec![module(self.pooler), module(self.classifier)];
        modules.dedup();
        modules
    }

    /// The encoder layer that a tensor belongs to; a norm behind the last of `layers` counts to that one.
    fn layer_of(&self, canonical: &str, layers: usize) -> Option<usize> {
        if let EncoderNames::ModernBert(modern) = &self.encoder
            && is_part(canonical, modern.final_norm)
        {
            return layers.checked_sub(1);
        }
        canonical.strip_prefix(self.layers)?.split('.').next()?.parse().ok()
    }

    /// Every tensor with its shape.
    pub(super) fn tensors(&self, config: &EncoderConfig, labels: usize) -> Vec<(String, Vec<usize>)> {
        let hidden = config.hidden_size;
        let mut all = vec![(self.words.to_owned(), vec![config.vocab_size, hidden])];
        let mut outer_norms = vec![self.embeddings_norm];
        let biased = match &self.encoder {
            EncoderNames::Bert(bert) => {
                all.push((bert.positions.to_owned(), vec![config.max_position_embeddings, hidden]));
                if let (Some(types), Some(entries)) = (bert.types, config.type_vocab_size) {
                    all.push((types.to_owned(), vec![entries, hidden]));
                }
                true
            }
            EncoderNames::ModernBert(modern) => {
                outer_norms.push(modern.final_norm);
                false
            }
        };
        let mut add = |name: String, weight: Vec<usize>, biased: bool| {
            if biased {
                all.push((format!("{name}.bias"), vec![weight[0]]));
            }
            all.push((format!("{name}.weight"), weight));
        };
        for norm in outer_norms {
            add(norm.to_owned(), vec![hidden], biased);
        }
        for index in 0..config.num_hidden_layers {
            for (part, [inputs, outputs]) in self.dense_parts(config) {
                add(self.layer(index, part), vec![outputs, inputs], biased);
            }
            for part in self.norm_parts(index) {
                add(self.layer(index, part), vec![hidden], biased);
            }
        }
        add(self.pooler.to_owned(), vec![hidden, hidden], biased);
        if let Some(norm) = self.pooler_norm {
            add(norm.to_owned(), vec![hidden], biased);
        }
        add(self.classifier.to_owned(), vec![labels, hidden], true);
        all
    }

    /// The names a tensor may have in a base model's file, in order of preference: with and without the architecture's
    /// prefix, and with the names of layer normalisation that conversions from TensorFlow used.
    pub(super) fn in_base(&self, canonical: &str) -> Vec<String> {
        let mut names = vec![canonical.to_owned()];
        if let Some(bare) = canonical.strip_prefix(self.prefix) {
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
    pub(super) fn is_head(&self, canonical: &str) -> bool {
        is_part(canonical, self.pooler)
            || self.pooler_norm.is_some_and(|norm| is_part(canonical, norm))
            || self.is_classifier(canonical)
    }

    /// Whether the tensor belongs to the classifier, whose shape depends on the labels.
    pub(super) fn is_classifier(&self, canonical: &str) -> bool {
        is_part(canonical, self.classifier)
    }

    /// How many layers from the top a tensor is, pooler and classifier being the top: 0 for these, 1 for the last of
    /// `layers` encoder layers, `layers + 1` for the embeddings.
    pub(super) fn depth(&self, canonical: &str, layers: usize) -> usize {
        match self.layer_of(canonical, layers) {
            Some(index) => layers.saturating_sub(index),
            None if self.is_head(canonical) => 0,
            None => layers + 1,
        }
    }

    /// Whether a tensor is trained.
    pub(super) fn is_trained(&self, canonical: &str, trainable: Trainable, layers: usize) -> bool {
        match trainable {
            Trainable::Full => true,
            Trainable::Head | Trainable::Lora => self.is_head(canonical),
            Trainable::Last(last) => {
                self.is_head(canonical) || self.layer_of(canonical, layers).is_some_and(|index| index + last >= layers)
            }
        }
    }
}

fn is_part(canonical: &str, stem: &str) -> bool {
    canonical.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether weight decay touches a tensor: neither biases nor layer normalisation, as transformers' trainer has it.
pub(crate) fn decays(canonical: &str) -> bool {
    !canonical.ends_with("bias") && !is_norm(canonical)
}

/// Whether a tensor belongs to a layer normalisation.
pub(super) fn is_norm(canonical: &str) -> bool {
    canonical.rsplit('.').nth(1).is_some_and(|stem| stem.to_ascii_lowercase().ends_with("norm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_layers_from_the_top() {
        for (architecture, name, depth) in [
            (Architecture::Bert, "classifier.weight", 0),
            (Architecture::Bert, "bert.pooler.dense.bias", 0),
            (Architecture::Bert, "bert.encoder.layer.1.output.dense.weight", 1),
            (Architecture::Bert, "bert.encoder.layer.0.attention.self.query.lora_A.weight", 2),
            (Architecture::Bert, "bert.embeddings.LayerNorm.weight", 3),
            (Architecture::Roberta, "classifier.dense.weight", 0),
            (Architecture::Roberta, "roberta.encoder.layer.0.output.dense.weight", 2),
            (Architecture::DistilBert, "pre_classifier.weight", 0),
            (Architecture::ModernBert, "head.norm.weight", 0),
            (Architecture::ModernBert, "model.final_norm.weight", 1),
            (Architecture::ModernBert, "model.layers.0.mlp.Wi.weight", 2),
            (Architecture::ModernBert, "model.embeddings.norm.weight", 3),
            (Architecture::DistilBert, "distilbert.transformer.layer.1.ffn.lin1.bias", 1),
        ] {
            assert_eq!(Names::of(architecture).depth(name, 2), depth, "{name}");
        }
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        for name in [
            "bert.embeddings.LayerNorm.weight",
            "distilbert.transformer.layer.0.sa_layer_norm.weight",
            "model.layers.1.attn_norm.weight",
            "head.norm.weight",
            "x.bias",
        ] {
            assert!(!decays(name), "{name}");
        }
        assert!(decays("classifier.weight") && decays("roberta.embeddings.word_embeddings.weight"));
    }
}
