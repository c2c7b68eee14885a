//! The files of a model folder in Hugging Face layout, and of adapters in peft's.

/// The settings.
pub const CONFIG: &str = "config.json";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The tensors of a whole model.
pub const TENSORS: &str = "model.safetensors";
/// How images are prepared.
pub const PREPROCESSOR: &str = "preprocessor_config.json";

/// What a base model must have that reads texts, or images, or (tables) neither.
pub fn needed(texts: bool, images: bool) -> Vec<&'static str> {
    let prepared_by = [(texts, TOKENIZER), (images, PREPROCESSOR)];
    let prepared_by = prepared_by.into_iter().filter(|(read, _)| *read).map(|(_, name)| name);
    std::iter::once(CONFIG).chain(prepared_by).chain([TENSORS]).collect()
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
