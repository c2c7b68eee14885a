//! The files of a model folder in Hugging Face layout, and of adapters in peft's.

/// The settings.
pub const CONFIG: &str = "config.json";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The tensors of a whole model.
pub const TENSORS: &str = "model.safetensors";
/// How images are prepared.
pub const PREPROCESSOR: &str = "preprocessor_config.json";

/// What a base model must have; one of images has no tokenizer.
pub fn needed(images: bool) -> [&'static str; 3] {
    [CONFIG, if images { PREPROCESSOR } else { TOKENIZER }, TENSORS]
}

/// What tokenizers of other programs read beside [`TOKENIZER`]; it goes along where it is there.
pub const TOKENIZER_EXTRAS: [&str; 7] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
];

/// The settings of adapters.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The tensors of adapters.
pub const ADAPTER_TENSORS: &str = "adapter_model.safetensors";
