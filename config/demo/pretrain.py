#!/usr/bin/env python3
"""Pre-train the tiny BERT encoder of the demo and write it to `model/`.

The model is small on purpose: it is embedded in the repository, and a laptop
fine-tunes it in seconds. Two objectives are trained together:

* masked-language modelling on the token states (80/10/10 masking of 15 % of
  the tokens), and
* a contrastive one on the pooler: two passages of one text have to find each
  other among the texts of the batch, so that the pooler, which masked-language
  modelling alone would leave at its random initial values, is of use.

Only the *training* files of freely licensed sets are read (see CORPORA), and
never the notes of the demo itself. Everything is seeded; results still differ
a little between machines and library versions.

Needs: torch, transformers, tokenizers, safetensors.
"""

import argparse
import csv
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# Folder, share of the batches, column that groups rows into one text (or None).
CORPORA = [
    ("medquad", 0.60, None),
    ("pubmed_roles", 0.20, "pmid"),
    ("banking77", 0.10, None),
    ("clinc150", 0.10, None),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
MAX_BYTES = 3_000_000
MODEL_CARD = """\
# Demo encoder

A tiny BERT (uncased; hidden size {hidden}, {layers} layers, {heads} heads, {vocab} WordPieces, {positions} positions,
{parameters:,} parameters, float32) for fedtune's demo and tests. It is no useful language model, only one that is small
enough to be embedded and fine-tuned in seconds. It is not for medical use.

Trained by `config/demo/pretrain.py` on one CPU core, {steps} steps of {batch} chunks of up to {length} tokens, with
masked-language modelling and a contrastive objective on the pooler (two passages of one text have to find each other).
On the 2 % of the texts held out: masked-language-model loss {mlm:.2f} (perplexity {perplexity:.0f} over masked
WordPieces), contrastive loss {contrast:.2f} among {pairs} pairs.

    python3 config/demo/pretrain.py --data FOLDER_OF_THE_SETS

A new run gives a similar model, not the same bytes: building the vocabulary breaks ties in an order of its own.

## Texts

The training parts of four sets, white space normalised and cut into chunks; the labels were not used, and neither were
the demo's notes. The weights hold no copy of the texts.

| set | what | licence | attribution |
| --- | --- | --- | --- |
| MedQuAD | health answers of NIH sites | CC BY 4.0 | Ben Abacha, Demner-Fushman: *A Question-Entailment Approach to Question Answering*, BMC Bioinformatics 20:511, 2019. <https://github.com/abachaa/MedQuAD> |
| PubMedQA, labelled part | sentences of medical abstracts | MIT | Jin, Dhingra, Liu, Cohen, Lu: *PubMedQA*, EMNLP-IJCNLP 2019. <https://github.com/pubmedqa/pubmedqa> |
| BANKING77 | questions to a bank | CC BY 4.0 | Casanueva, Temčinas, Gerz, Henderson, Vulić: *Efficient Intent Detection with Dual Sentence Encoders*, NLP4ConvAI 2020. <https://github.com/PolyAI-LDN/task-specific-datasets> |
| CLINC150 | requests to an assistant | CC BY 3.0 | Larson et al.: *An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction*, EMNLP-IJCNLP 2019. <https://github.com/clinc/oos-eval> |
"""


def read_texts(folder, group_by):
    """The texts of a set's training file; rows of one group are joined."""
    texts = defaultdict(list)
    with open(folder / "train.csv", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            texts[row[group_by] if group_by else number].append(row["text"])
    return [" ".join(parts) for parts in texts.values()]


def train_tokenizer(texts, vocab_size):
    """A lower-casing WordPiece tokenizer, as BERT's uncased models have."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, limit_alphabet=80,
        special_tokens=SPECIAL, continuing_subword_prefix="##", show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def save_tokenizer(tokenizer, folder, max_length):
    """Write the files a Hugging Face tokenizer folder has."""
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocab), encoding="utf-8")
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {
        **special, "do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None,
        "tokenizer_class": "BertTokenizer", "model_max_length": max_length,
    })


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_card(folder, config, args, parameters, losses):
    """Write the model's README."""
    (folder / "README.md").write_text(MODEL_CARD.format(
        hidden=config.hidden_size, layers=config.num_hidden_layers, heads=config.num_attention_heads,
        vocab=config.vocab_size, positions=config.max_position_embeddings, parameters=parameters,
        steps=args.steps, batch=args.batch, length=args.length, pairs=args.batch // 2,
        mlm=losses[0], perplexity=math.exp(losses[0]), contrast=losses[1],
    ), encoding="utf-8")


def encode_chunks(tokenizer, texts, length):
    """Every text as a list of even token chunks, each with [CLS] and [SEP]."""
    result = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids = encoding.ids
        parts = max(1, math.ceil(len(ids) / (length - 2)))
        size = math.ceil(len(ids) / parts)
        chunks = [ids[start:start + size] for start in range(0, len(ids), size)]
        result.append([[CLS, *chunk, SEP] for chunk in chunks])
    return result


def draw_batch(texts, pairs, rng):
    """`pairs` texts, two chunks of each: rows 0..pairs, then their partners."""
    first, second = [], []
    for text in rng.sample(texts, pairs):
        if len(text) > 1:
            one, two = rng.sample(text, 2)
        else:
            one = two = text[0]  # a short text twice: only the masks differ
        first.append(one)
        second.append(two)
    rows = first + second
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def mask_tokens(ids, vocab_size, generator):
    """BERT's masking: returns the corrupted ids and where a token is predicted."""
    chance = torch.rand(ids.shape, generator=generator)
    predicted = (chance < 0.15) & (ids >= len(SPECIAL))
    kind = torch.rand(ids.shape, generator=generator)
    noise = torch.randint(len(SPECIAL), vocab_size, ids.shape, generator=generator)
    corrupted = torch.where(predicted & (kind < 0.8), torch.full_like(ids, MASK), ids)
    corrupted = torch.where(predicted & (kind >= 0.9), noise, corrupted)
    return corrupted, predicted


class Pretraining(torch.nn.Module):
    """The encoder and the heads that are thrown away after pre-training."""

    def __init__(self, config):
        super().__init__()
        self.bert = BertModel(config)
        self.transform = torch.nn.Sequential(
            torch.nn.Linear(config.hidden_size, config.hidden_size), torch.nn.GELU(),
            torch.nn.LayerNorm(config.hidden_size),
        )
        self.bias = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, ids, generator):
        """Masked-language-model loss and contrastive loss of a batch of pairs."""
        corrupted, predicted = mask_tokens(ids, len(self.bias), generator)
        output = self.bert(corrupted, attention_mask=(ids != PAD).long())
        states = self.transform(output.last_hidden_state[predicted])
        logits = F.linear(states, self.bert.embeddings.word_embeddings.weight, self.bias)
        mlm = F.cross_entropy(logits, ids[predicted])
        one, two = F.normalize(output.pooler_output, dim=-1).chunk(2)
        likeness = one @ two.T / 0.07
        own = torch.arange(len(one))
        contrast = (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2
        return mlm, contrast


def evaluate(model, held_out, pairs):
    """Mean losses over held-out texts, always with the same chunks and masks."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    weights = [weight for _, weight, _ in CORPORA]
    model.eval()
    with torch.no_grad():
        sums = torch.zeros(2)
        for texts, weight in zip(held_out, weights):
            losses = [model(draw_batch(texts, pairs, rng), generator) for _ in range(5)]
            sums += weight * torch.tensor(losses).mean(0)
    model.train()
    return sums.tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder that holds the sets")
    parser.add_argument("--out", type=Path, default=HERE / "model", help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32, help="rows per step; half as many pairs")
    parser.add_argument("--length", type=int, default=64, help="tokens per chunk, [CLS] and [SEP] included")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--contrast", type=float, default=0.3, help="weight of the contrastive loss")
    parser.add_argument("--vocab", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    pairs = args.batch // 2

    texts = [read_texts(args.data / name, group) for name, _, group in CORPORA]
    tokenizer = train_tokenizer([text for group in texts for text in group], args.vocab)
    training, held_out = [], []
    for group in texts:
        chunks = encode_chunks(tokenizer, group, args.length)
        rng.shuffle(chunks)
        cut = max(pairs, len(chunks) // 50)  # 2 % of the texts watch the loss
        held_out.append(chunks[:cut])
        training.append(chunks[cut:])
    tokens = [sum(len(chunk) for text in group for chunk in text) for group in training]
    print("tokens:", dict(zip([name for name, _, _ in CORPORA], tokens)), flush=True)

    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=96, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=384, max_position_embeddings=128, type_vocab_size=2, hidden_act="gelu",
        initializer_range=0.06,  # BERT's 0.02 suits a width of 768; so narrow a model learns far slower from it
        layer_norm_eps=1e-12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=PAD,
    )
    model = Pretraining(config)
    parameters = sum(parameter.numel() for parameter in model.bert.parameters())
    print(f"encoder: {parameters} parameters", flush=True)
    assert 4 * parameters + 20_000 < MAX_BYTES, "the encoder is too large for the demo"

    decay = [p for p in model.parameters() if p.dim() > 1]
    no_decay = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.98),
    )
    warmup = args.steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (args.steps - step) / (args.steps - warmup)))

    started = time.monotonic()
    for step in range(args.steps):
        corpus = rng.choices(range(len(CORPORA)), [weight for _, weight, _ in CORPORA])[0]
        mlm, contrast = model(draw_batch(training[corpus], pairs, rng), generator)
        optimizer.zero_grad()
        (mlm + args.contrast * contrast).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            losses = evaluate(model, held_out, pairs)
            seconds = time.monotonic() - started
            print(f"step {step + 1}  held-out mlm {losses[0]:.4f}  contrast {losses[1]:.4f}  {seconds:.0f} s", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, args.out, config.max_position_embeddings)
    write_json(args.out / "config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings, "type_vocab_size": config.type_vocab_size,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "pad_token_id": PAD,
        "position_embedding_type": "absolute", "torch_dtype": "float32",
    })
    write_card(args.out, config, args, parameters, losses)
    tensors = {name: tensor.contiguous() for name, tensor in model.bert.state_dict().items()
               if tensor.is_floating_point()}
    path = args.out / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    written = path.stat().st_size
    print(f"{path.name}: {written} bytes", flush=True)
    assert written <= MAX_BYTES


if __name__ == "__main__":
    main()
