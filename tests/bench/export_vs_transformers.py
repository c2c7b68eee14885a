#!/usr/bin/env python3
"""Check that what fedtune exports says the same in transformers and in peft.

With --model: loads that folder with `AutoModelForSequenceClassification` and
`AutoTokenizer`, computes the logits of the first texts of a CSV file (column
`text`), and compares them with those that `fedtune-client predict --logits`
writes.

Without --model: does so for every architecture that fedtune trains. A small
model with random weights is made by transformers, `fedtune-client finetune`
trains it a few steps, in full and with adapters, and transformers (for the
adapters peft, and transformers again after `fedtune-client merge`) must agree.
Decoders write no logits: the mean loss of the responses is compared, which
`fedtune-client evaluate` prints.

Prints the largest absolute differences; ends with status 1 when one is above
1e-4.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import python_env

TOLERANCE = 1e-4
DEMO = python_env.REPOSITORY / "config" / "demo" / "data"

SIZES = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
ARCHITECTURES = {
    "bert": SIZES | dict(max_position_embeddings=64),
    "distilbert": dict(dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64),
    # Positions begin behind that of the padding token.
    "roberta": SIZES | dict(max_position_embeddings=66, type_vocab_size=1, pad_token_id=1),
    "xlm-roberta": SIZES | dict(max_position_embeddings=66, type_vocab_size=1, pad_token_id=1),
    # Texts are longer than the window.
    "modernbert": SIZES | dict(max_position_embeddings=64, num_hidden_layers=4, local_attention=8),
}

DECODER = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
               max_position_embeddings=128, bos_token_id=0, eos_token_id=0)
DECODERS = {
    "llama": DECODER | dict(tie_word_embeddings=False),
    "qwen2": DECODER | dict(tie_word_embeddings=True),
    "qwen3": DECODER | dict(head_dim=32, tie_word_embeddings=True),
}
END = "<|endoftext|>"
SIDE = 32
VISION = {
    "resnet": dict(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic"),
    "vit": SIZES | dict(image_size=SIDE, patch_size=8),
}

JOB = """
name = "export"
[model]
path = "model"
[task]
{task}
max_length = {max_length}
[training]
trainable = "{trainable}"
learning_rate = 1e-2
steps = 4
[rounds]
count = 1
"""


def read_column(path, column, count=None):
    with open(path, encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)][:count]


def make_tokenizer(folder, texts):
    """A WordPiece tokenizer learnt from the texts, with the special tokens where both families expect them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD0]", "[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}')
    return tokenizer.get_vocab_size()


def make_model(architecture, folder, texts):
    import torch
    from transformers import AutoConfig, AutoModel

    folder.mkdir()
    torch.manual_seed(1)
    sizes = {"pad_token_id": 1} | ARCHITECTURES[architecture] | {"vocab_size": make_tokenizer(folder, texts)}
    AutoModel.from_config(AutoConfig.for_model(architecture, **sizes)).save_pretrained(folder)


def reference_logits(folder, texts, max_length, base=None):
    """Logits of every text, and the labels in the order of the columns. With a base, the folder holds adapters."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    if base is None:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    else:
        from peft import PeftModel
        model = AutoModelForSequenceClassification.from_pretrained(
            base, dtype=torch.float32, num_labels=config.num_labels)
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    typed = config.model_type not in ("distilbert", "modernbert")
    known = set(tokenizer.model_input_names) - (set() if typed else {"token_type_ids"})
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), 16):
            batch = tokenizer(texts[start:start + 16], truncation=True, max_length=max_length,
                              padding=True, return_tensors="pt")
            rows += model(**{key: value for key, value in batch.items() if key in known}).logits.tolist()
    return rows, [config.id2label[index] for index in range(config.num_labels)]


def client(binary, *arguments):
    status = subprocess.run([binary.resolve(), *arguments], stdout=sys.stderr).returncode
    if status != 0:
        sys.exit(f"fedtune-client {arguments[0]} failed with status {status}")


def fedtune_logits(binary, folder, texts, labels, base=None):
    """The same from the client, which is given exactly these texts."""
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch) / "texts.csv", Path(scratch) / "predictions.csv"
        with open(data, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["text"], *([text] for text in texts)])
        client(binary, "predict", "--model", folder.resolve(), "--data", data, "--out", out, "--logits",
               *(["--base", base] if base else []))
        with open(out, encoding="utf-8", newline="") as file:
            return [([float(row[f"logit_{label}"]) for label in labels], row["label"]) for row in csv.DictReader(file)]


def compare(name, expected, labels, found):
    """Prints the largest difference; says whether it is small enough."""
    if not expected or len(found) != len(expected):
        sys.exit(f"{name}: {len(expected)} rows, {len(found)} predictions")
    worst = max(abs(one - two) for row, (logits, _) in zip(expected, found) for one, two in zip(row, logits))
    differing = sum(labels[max(range(len(labels)), key=logits.__getitem__)] != label for logits, label in found)
    print(f"{name}: {len(expected)} rows, largest difference of a logit {worst:.2e}")
    if differing:
        sys.exit(f"{name}: {differing} labels are not those of the largest logit")
    return worst <= TOLERANCE  # not (worst > TOLERANCE), so that NaN fails


def check_architecture(architecture, binary, scratch, texts):
    base = scratch / architecture
    make_model(architecture, base, read_column(DEMO / "train.csv", "text"))
    labels = sorted(set(read_column(DEMO / "train.csv", "label")))
    good = True
    for trainable in ("full", "lora"):
        job, out = scratch / f"{architecture}-{trainable}.toml", scratch / f"{architecture}-{trainable}"
        task = f'kind = "text-classification"\nlabels = {json.dumps(labels)}'
        job.write_text(JOB.format(task=task, max_length=64, trainable=trainable))
        client(binary, "finetune", "--model", base, "--train", DEMO / "train.csv", "--job", job, "--out", out)
        adapted = base if trainable == "lora" else None
        expected, names = reference_logits(out, texts, 64, adapted)
        found = fedtune_logits(binary, out, texts, names, adapted)
        good &= compare(f"{architecture} {trainable}", expected, names, found)
        if adapted:
            whole = scratch / f"{architecture}-whole"
            client(binary, "merge", "--adapters", out, "--base", base, "--out", whole)
            expected, names = reference_logits(whole, texts, 64)
            good &= compare(f"{architecture} lora, merged", expected, names, found)
    return good


def make_decoder(architecture, folder, texts):
    """A model with random weights, and a tokenizer of bytes learnt from the texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    torch.manual_seed(1)
    sizes = DECODERS[architecture] | {"vocab_size": tokenizer.get_vocab_size()}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).save_pretrained(folder)


def reference_loss(folder, rows, base=None):
    """Mean loss over the tokens of the responses. With a base, the folder holds adapters."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    # AutoTokenizer would cut the texts of a Qwen2 as its own tokenizer does, whatever tokenizer.json says.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END)
    model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
    if base is not None:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            prefix = row["prompt"] + "\n"
            found = tokenizer(prefix + row["response"], return_offsets_mapping=True)
            ids = torch.tensor([found["input_ids"] + [tokenizer.eos_token_id]])
            counts = torch.tensor([start >= len(prefix) for start, _ in found["offset_mapping"]] + [True])
            logits = model(input_ids=ids).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits[counts[1:]], ids[0, 1:][counts[1:]], reduction="sum").item()
            count += int(counts[1:].sum())
    return total / count


def fedtune_loss(binary, folder, data, base=None):
    command = [binary.resolve(), "evaluate", "--model", folder, "--data", data, "--output", "json"]
    done = subprocess.run(command + (["--base", base] if base else []), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"fedtune-client evaluate failed with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])["evaluation"]["loss"]


def check_decoder(architecture, binary, scratch, texts):
    base, data = scratch / architecture, scratch / "responses.jsonl"
    answers = read_column(DEMO / "test.csv", "label", len(texts))
    rows = [{"prompt": text, "response": f"Send this note to {answer}."} for text, answer in zip(texts, answers)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_decoder(architecture, base, texts)
    good = True
    for trainable in ("full", "lora"):
        job, out = scratch / f"{architecture}-{trainable}.toml", scratch / f"{architecture}-{trainable}"
        job.write_text(JOB.format(task='kind = "causal-lm"', max_length=128, trainable=trainable))
        client(binary, "finetune", "--model", base, "--train", data, "--job", job, "--out", out)
        cases = [(trainable, out, base if trainable == "lora" else None)]
        if trainable == "lora":
            whole = scratch / f"{architecture}-whole"
            client(binary, "merge", "--adapters", out, "--base", base, "--out", whole)
            cases.append(("lora, merged", whole, None))
        for name, folder, adapted in cases:
            expected, found = reference_loss(folder, rows, adapted), fedtune_loss(binary, folder, data, adapted)
            print(f"{architecture} {name}: loss of {len(rows)} responses {expected:.6f}, difference {abs(found - expected):.2e}")
            good &= abs(found - expected) <= TOLERANCE
    return good


def make_images(folder, count=24):
    """PNGs of noise, darker in one folder than in the other; they have the model's size, so nothing is resized."""
    import numpy
    from PIL import Image

    draw, pixels = numpy.random.default_rng(1), {}
    for label, brightest in (("bright", 256), ("dark", 160)):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = draw.integers(0, brightest, (SIDE, SIDE, 3), dtype=numpy.uint8)
            Image.fromarray(image).save(folder / label / f"{number:02}.png")
            pixels[f"{label}/{number:02}.png"] = image
    return pixels


def check_vision(architecture, binary, scratch):
    import numpy
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    base, data = scratch / architecture, scratch / f"{architecture}-images"
    pixels = make_images(data)
    torch.manual_seed(1)
    AutoModelForImageClassification.from_config(
        AutoConfig.for_model(architecture, **VISION[architecture])).save_pretrained(base)
    (base / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    good = True
    for trainable in ("full", "lora") if architecture == "vit" else ("full",):
        job, out = scratch / f"{architecture}-{trainable}.toml", scratch / f"{architecture}-{trainable}"
        task = 'kind = "image-classification"\nlabels = ["bright", "dark"]'
        job.write_text(JOB.format(task=task, max_length=128, trainable=trainable))
        client(binary, "finetune", "--model", base, "--train", data, "--job", job, "--out", out)
        cases = [(trainable, out, base if trainable == "lora" else None)]
        if trainable == "lora":
            whole = scratch / f"{architecture}-whole"
            client(binary, "merge", "--adapters", out, "--base", base, "--out", whole)
            cases.append(("lora, merged", whole, None))
        for name, folder, adapted in cases:
            predictions = scratch / f"{architecture}-{trainable}.csv"
            more = ["--base", adapted] if adapted else []
            client(binary, "predict", "--model", folder, "--data", data, "--out", predictions, "--logits", *more)
            with open(predictions, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            labels = AutoConfig.from_pretrained(folder).id2label
            model = AutoModelForImageClassification.from_pretrained(adapted or folder, dtype=torch.float32)
            if adapted is not None:
                from peft import PeftModel
                model = PeftModel.from_pretrained(model, folder)
            names = [labels[index] for index in range(2)]
            inputs = numpy.stack([pixels[row["file"]] for row in rows]).transpose(0, 3, 1, 2).astype(numpy.float32)
            with torch.no_grad():
                expected = model.eval()(torch.from_numpy(inputs / 127.5 - 1)).logits.tolist()
            found = [([float(row[f"logit_{label}"]) for label in names], row["label"]) for row in rows]
            good &= compare(f"{architecture} {name}", expected, names, found)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python_env.add_arguments(parser)
    parser.add_argument("--model", type=Path, help="folder of an exported model; without it, every architecture")
    parser.add_argument("--base", type=Path, help="folder of its base model, where --model holds adapters")
    parser.add_argument("--data", type=Path, default=DEMO / "test.csv", help="CSV file with a column `text`")
    parser.add_argument("--count", type=int, default=64, help="texts to compare (default: 64)")
    parser.add_argument("--max-length", type=int, default=128)
    args = parser.parse_args()
    python_env.enter(args.venv)

    texts = read_column(args.data, "text", args.count)
    if args.model:
        expected, labels = reference_logits(args.model, texts, args.max_length, args.base)
        good = compare(str(args.model), expected, labels,
                       fedtune_logits(args.fedtune, args.model, texts, labels, args.base))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            good = all([check_architecture(name, args.fedtune, Path(scratch), texts) for name in ARCHITECTURES]
                       + [check_decoder(name, args.fedtune, Path(scratch), texts) for name in DECODERS]
                       + [check_vision(name, args.fedtune, Path(scratch)) for name in VISION])
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
