//! Encoders: names, and the head that each objective has.

use super::{Anatomy, Dense, Place, Role, TensorSpec};
use crate::model::config::{Architecture, EncoderConfig};
use crate::model::error::ModelError;
use crate::model::objective::Objective;

/// The names of one architecture. Those of dense layers and norms are stems of `.weight` and `.bias`.
#[derive(Debug)]
pub(in crate::model) struct Names {
    /// What base models without a head may leave out.
    prefix: &'static str,
    pub(in crate::model) words: &'static str,
    pub(in crate::model) embeddings_norm: &'static str,
    /// What stands before the number of a layer.
    layers: &'static str,
    pub(in crate::model) function: Function,
    /// The head of a whole text.
    of_text: HeadNames,
    /// The head of every token.
    of_tokens: HeadNames,
}

/// The names of what stands above an encoder.
#[derive(Debug)]
pub(in crate::model) struct HeadNames {
    /// The dense layer before the classifier.
    pub(in crate::model) pooler: Option<&'static str>,
    /// The norm behind that.
    pub(in crate::model) pooler_norm: Option<&'static str>,
    pub(in crate::model) classifier: &'static str,
}

/// The names that encoders of one function share.
#[derive(Debug)]
pub(in crate::model) enum Function {
    Bert(BertNames),
    ModernBert(ModernBertNames),
}

/// Tables, and the parts of a layer, of BERT and its kin.
#[derive(Debug)]
pub(in crate::model) struct BertNames {
    pub(in crate::model) positions: &'static str,
    /// The token-type table, where there is one.
    pub(in crate::model) types: Option<&'static str>,
    pub(in crate::model) query: &'static str,
    pub(in crate::model) key: &'static str,
    pub(in crate::model) value: &'static str,
    pub(in crate::model) attention_output: &'static str,
    pub(in crate::model) attention_norm: &'static str,
    pub(in crate::model) intermediate: &'static str,
    pub(in crate::model) output: &'static str,
    pub(in crate::model) output_norm: &'static str,
}

/// The parts of a layer of ModernBERT, none with a bias, and its last norm.
#[derive(Debug)]
pub(in crate::model) struct ModernBertNames {
    /// Absent in the first layer.
    pub(in crate::model) attention_norm: &'static str,
    /// Queries, keys and values, below each other.
    pub(in crate::model) qkv: &'static str,
    pub(in crate::model) attention_output: &'static str,
    pub(in crate::model) output_norm: &'static str,
    /// What is activated, and below it what that is multiplied by.
    pub(in crate::model) intermediate: &'static str,
    pub(in crate::model) output: &'static str,
    pub(in crate::model) final_norm: &'static str,
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
    function: Function::Bert(BERT_LAYER),
    of_text: HeadNames { pooler: Some("bert.pooler.dense"), pooler_norm: None, classifier: "classifier" },
    of_tokens: HeadNames { pooler: None, pooler_norm: None, classifier: "classifier" },
};

const ROBERTA: Names = Names {
    prefix: "roberta.",
    words: "roberta.embeddings.word_embeddings.weight",
    embeddings_norm: "roberta.embeddings.LayerNorm",
    layers: "roberta.encoder.layer.",
    function: Function::Bert(BertNames {
        positions: "roberta.embeddings.position_embeddings.weight",
        types: Some("roberta.embeddings.token_type_embeddings.weight"),
        ..BERT_LAYER
    }),
    of_text: HeadNames { pooler: Some("classifier.dense"), pooler_norm: None, classifier: "classifier.out_proj" },
    of_tokens: HeadNames { pooler: None, pooler_norm: None, classifier: "classifier" },
};

const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    words: "distilbert.embeddings.word_embeddings.weight",
    embeddings_norm: "distilbert.embeddings.LayerNorm",
    layers: "distilbert.transformer.layer.",
    function: Function::Bert(BertNames {
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
    of_text: HeadNames { pooler: Some("pre_classifier"), pooler_norm: None, classifier: "classifier" },
    of_tokens: HeadNames { pooler: None, pooler_norm: None, classifier: "classifier" },
};

const MODERNBERT: Names = Names {
    prefix: "model.",
    words: "model.embeddings.tok_embeddings.weight",
    embeddings_norm: "model.embeddings.norm",
    layers: "model.layers.",
    function: Function::ModernBert(ModernBertNames {
        attention_norm: "attn_norm",
        qkv: "attn.Wqkv",
        attention_output: "attn.Wo",
        output_norm: "mlp_norm",
        intermediate: "mlp.Wi",
        output: "mlp.Wo",
        final_norm: "model.final_norm",
    }),
    of_text: HeadNames { pooler: Some("head.dense"), pooler_norm: Some("head.norm"), classifier: "classifier" },
    of_tokens: HeadNames { pooler: Some("head.dense"), pooler_norm: Some("head.norm"), classifier: "classifier" },
};

impl Names {
    /// Those of an architecture.
    pub(in crate::model) fn of(architecture: Architecture) -> &'static Self {
        match architecture {
            Architecture::Bert => &BERT,
            Architecture::DistilBert => &DISTILBERT,
            Architecture::Roberta | Architecture::XlmRoberta => &ROBERTA,
            Architecture::ModernBert => &MODERNBERT,
        }
    }

    /// The name of a part of an encoder layer.
    pub(in crate::model) fn layer(&self, index: usize, part: &str) -> String {
        format!("{}{index}.{part}", self.layers)
    }

    /// The head for an objective.
    pub(in crate::model) fn head(&self, objective: Objective) -> &HeadNames {
        if objective == Objective::Tokens { &self.of_tokens } else { &self.of_text }
    }

    /// The dense layers of an encoder layer, each with its inputs and outputs.
    fn dense_parts(&self, config: &EncoderConfig) -> Vec<(&'static str, [usize; 2])> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        match &self.function {
            Function::Bert(bert) => vec![
                (bert.query, [hidden, hidden]),
                (bert.key, [hidden, hidden]),
                (bert.value, [hidden, hidden]),
                (bert.attention_output, [hidden, hidden]),
                (bert.intermediate, [hidden, wide]),
                (bert.output, [wide, hidden]),
            ],
            Function::ModernBert(modern) => vec![
                (modern.qkv, [hidden, 3 * hidden]),
                (modern.attention_output, [hidden, hidden]),
                (modern.intermediate, [hidden, 2 * wide]),
                (modern.output, [wide, hidden]),
            ],
        }
    }

    /// The norms of an encoder layer.
    fn norm_parts(&self, index: usize) -> Vec<&'static str> {
        match &self.function {
            Function::Bert(bert) => vec![bert.attention_norm, bert.output_norm],
            Function::ModernBert(modern) if index == 0 => vec![modern.output_norm],
            Function::ModernBert(modern) => vec![modern.attention_norm, modern.output_norm],
        }
    }

    /// Queries and values, which are peft's default.
    fn default_targets(&self) -> Vec<String> {
        let last = |part: &str| part.rsplit('.').next().unwrap_or(part).to_owned();
        match &self.function {
            Function::Bert(bert) => vec![last(bert.query), last(bert.value)],
            Function::ModernBert(modern) => vec![last(modern.qkv)],
        }
    }

    /// With and without the architecture's prefix, and with the names of layer normalisation that conversions from
    /// TensorFlow used.
    fn in_base(&self, canonical: &str) -> Vec<String> {
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
}

/// Collects the tensors of an encoder.
struct Collector {
    names: &'static Names,
    tensors: Vec<TensorSpec>,
}

impl Collector {
    fn tensor(&mut self, name: String, shape: Vec<usize>, place: Place, role: Role) {
        let in_base = self.names.in_base(&name);
        self.tensors.push(TensorSpec { name, shape, in_base, place, role });
    }

    fn dense(&mut self, stem: &str, [inputs, outputs]: [usize; 2], biased: bool, place: Place) {
        self.tensor(format!("{stem}.weight"), vec![outputs, inputs], place, Role::Weight);
        if biased {
            self.tensor(format!("{stem}.bias"), vec![outputs], place, Role::Bias);
        }
    }

    fn norm(&mut self, stem: &str, width: usize, biased: bool, place: Place) {
        self.tensor(format!("{stem}.weight"), vec![width], place, Role::Norm);
        if biased {
            self.tensor(format!("{stem}.bias"), vec![width], place, Role::Bias);
        }
    }
}

/// What an encoder states of itself.
pub(super) fn anatomy(config: &EncoderConfig, objective: Objective, outputs: usize) -> Result<Anatomy, ModelError> {
    let kind = match objective {
        Objective::Class | Objective::Sets | Objective::Value => "SequenceClassification",
        Objective::Tokens => "TokenClassification",
        Objective::NextToken => {
            return Err(ModelError::Objective {
                task: "causal-lm",
                takes: "a decoder (\"qwen2\", \"qwen3\", \"llama\")",
            });
        }
    };
    let names = Names::of(config.architecture);
    let (hidden, layers) = (config.hidden_size, config.num_hidden_layers);
    let mut all = Collector { names, tensors: Vec::new() };
    let embeddings = Place::Embeddings;
    all.tensor(names.words.into(), vec![config.vocab_size, hidden], embeddings, Role::Weight);
    let biased = match &names.function {
        Function::Bert(bert) => {
            let positions = vec![config.max_position_embeddings, hidden];
            all.tensor(bert.positions.into(), positions, embeddings, Role::Weight);
            if let (Some(types), Some(entries)) = (bert.types, config.type_vocab_size) {
                all.tensor(types.into(), vec![entries, hidden], embeddings, Role::Weight);
            }
            true
        }
        Function::ModernBert(modern) => {
            // A norm behind the last layer counts to that one.
            all.norm(modern.final_norm, hidden, false, Place::Layer(layers - 1));
            false
        }
    };
    all.norm(names.embeddings_norm, hidden, biased, embeddings);
    let mut dense = Vec::new();
    for index in 0..layers {
        let place = Place::Layer(index);
        for (part, [inputs, outputs]) in names.dense_parts(config) {
            let stem = names.layer(index, part);
            all.dense(&stem, [inputs, outputs], biased, place);
            dense.push(Dense { stem, part, module: None, inputs, outputs, place });
        }
        for part in names.norm_parts(index) {
            all.norm(&names.layer(index, part), hidden, biased, place);
        }
    }
    let head = names.head(objective);
    if let Some(pooler) = head.pooler {
        all.dense(pooler, [hidden, hidden], biased, Place::Head);
    }
    if let Some(norm) = head.pooler_norm {
        all.norm(norm, hidden, biased, Place::Head);
    }
    all.dense(head.classifier, [hidden, outputs], true, Place::Classifier);
    let module = |stem: &str| {
        let bare = stem.strip_prefix(names.prefix).unwrap_or(stem);
        bare.split('.').next().unwrap_or(bare).to_owned()
    };
    let mut beside_adapters: Vec<String> = head.pooler.into_iter().chain([head.classifier]).map(module).collect();
    beside_adapters.dedup();
    Ok(Anatomy {
        tensors: all.tensors,
        carried: Vec::new(),
        layers,
        dense,
        default_targets: names.default_targets(),
        beside_adapters,
        words: Some(names.words),
        class: format!("{}For{kind}", config.architecture.class_stem()),
        deviation: config.initializer_range,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::config::Config;

    fn config(architecture: Architecture) -> EncoderConfig {
        let kind = match architecture {
            Architecture::ModernBert => "modernbert",
            Architecture::DistilBert => "distilbert",
            Architecture::Roberta => "roberta",
            _ => "bert",
        };
        let text = format!(
            r#"{{"model_type": "{kind}", "vocab_size": 9, "hidden_size": 8, "dim": 8, "num_hidden_layers": 2, "n_layers": 2,
            "num_attention_heads": 2, "n_heads": 2, "intermediate_size": 16, "hidden_dim": 16,
            "max_position_embeddings": 12}}"#
        );
        match Config::parse(Path::new("config.json"), text.as_bytes()).unwrap().0 {
            Config::Encoder(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn depth_counts_layers_from_the_top() {
        for (architecture, name, depth) in [
            (Architecture::Bert, "classifier.weight", 0),
            (Architecture::Bert, "bert.pooler.dense.bias", 0),
            (Architecture::Bert, "bert.encoder.layer.1.output.dense.weight", 1),
            (Architecture::Bert, "bert.encoder.layer.0.attention.self.query.weight", 2),
            (Architecture::Bert, "bert.embeddings.LayerNorm.weight", 3),
            (Architecture::Roberta, "classifier.dense.weight", 0),
            (Architecture::Roberta, "roberta.encoder.layer.0.output.dense.weight", 2),
            (Architecture::DistilBert, "pre_classifier.weight", 0),
            (Architecture::DistilBert, "distilbert.transformer.layer.1.ffn.lin1.bias", 1),
            (Architecture::ModernBert, "head.norm.weight", 0),
            (Architecture::ModernBert, "model.final_norm.weight", 1),
            (Architecture::ModernBert, "model.layers.0.mlp.Wi.weight", 2),
            (Architecture::ModernBert, "model.embeddings.norm.weight", 3),
        ] {
            let anatomy = anatomy(&config(architecture), Objective::Class, 3).unwrap();
            let tensor = anatomy.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            assert_eq!(anatomy.depth(tensor.place), depth, "{name}");
        }
    }

    #[test]
    fn weights_decay_and_norms_and_biases_do_not() {
        for architecture in
            [Architecture::Bert, Architecture::DistilBert, Architecture::Roberta, Architecture::ModernBert]
        {
            for tensor in anatomy(&config(architecture), Objective::Class, 3).unwrap().tensors {
                let TensorSpec { name, shape, role, .. } = tensor;
                assert_eq!(role.decays(), shape.len() == 2, "{name}");
            }
        }
    }

    #[test]
    fn token_heads_have_the_tensors_of_transformers() {
        for (architecture, class, head) in [
            (Architecture::Bert, "BertForTokenClassification", vec!["classifier.weight", "classifier.bias"]),
            (Architecture::Roberta, "RobertaForTokenClassification", vec!["classifier.weight", "classifier.bias"]),
            (
                Architecture::ModernBert,
                "ModernBertForTokenClassification",
                vec!["head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"],
            ),
        ] {
            let anatomy = anatomy(&config(architecture), Objective::Tokens, 3).unwrap();
            assert_eq!(anatomy.class, class);
            let found: Vec<&str> =
                anatomy.tensors.iter().filter(|tensor| tensor.is_head()).map(|tensor| tensor.name.as_str()).collect();
            assert_eq!(found, head);
        }
    }
}
