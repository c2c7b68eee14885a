#!/usr/bin/env python3
"""Fine-tune the same model with PyTorch and with fedtune, and compare what is learnt.

Both sides start from the same folder and follow the same recipe: AdamW (betas
0.9 and 0.999, eps 1e-8, decay 0.01 on all but biases and norms), gradients
clipped to norm 1, a linear schedule with a tenth of the steps as warm-up. Order,
dropout and new classifiers depend on the seed, differently on each side, so only
means over several seeds can be compared.

* `classify`: CSV with `text` and `label`, a BERT; accuracy and macro-F1
* `regress`: CSV with `text`, `text_pair` and a number as `label`, a BERT; Pearson
  correlation and mean squared error
* `images`: Parquet with `image` and `label`, a ResNet-18 of random weights, made
  by this script from the seed, in pixels of 64 x 64; accuracy and macro-F1
* `respond`: JSONL with `prompt` and `response`, a small Llama of random weights
  and a tokenizer, made by this script; loss per counted token and perplexity

A row is printed per seed and side, then the means and their difference.
"""

import argparse
import csv
import io
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import python_env

JOB = """\
name = "bench"
[model]
path = {model}
[task]
kind = "{kind}"
{labels}{columns}max_length = {max_length}
[training]
trainable = "full"
epochs = {epochs}
batch_size = {batch}
learning_rate = {lr}
schedule = "linear"
warmup = 0.1
weight_decay = 0.01
clip_norm = 1.0
dropout = {dropout}
[rounds]
count = 1
"""
SHARED = python_env.REPOSITORY / "../shared"
MINILM = SHARED / "models/all-MiniLM-L6-v2"
VOCABULARY = 4096


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def class_scores(truth, predicted, classes):
    """Accuracy and macro-F1; a class that nobody has or predicts is left out."""
    f1 = []
    for label in range(classes):
        hits = sum(t == p == label for t, p in zip(truth, predicted))
        total = truth.count(label) + predicted.count(label)
        if total:
            f1.append(2 * hits / total)
    return sum(t == p for t, p in zip(truth, predicted)) / len(truth), statistics.fmean(f1)


def padded(rows, padding):
    """Token lists as one tensor, and its mask."""
    import torch

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for number, tokens in enumerate(rows):
        ids[number, :len(tokens)] = torch.tensor(tokens)
        mask[number, :len(tokens)] = 1
    return ids, mask


class Texts:
    """What single texts and pairs have in common: a BERT with a new classifier."""

    data, dropout, model, columns = None, 0.1, MINILM, ""
    defaults = dict(lr=1e-4, epochs=3, batch=16, max_length=128)

    def __init__(self, args):
        self.args = args

    def prepare(self, folder, seed):
        return self.args.model or MINILM

    def build(self, folder, outputs):
        import torch
        from transformers import AutoTokenizer, BertForSequenceClassification

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = BertForSequenceClassification.from_pretrained(
            folder, num_labels=outputs, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
            classifier_dropout=0.1,
        )
        with torch.no_grad():
            model.classifier.weight.normal_(0.0, 0.02)
            model.classifier.bias.zero_()
        return model

    def inputs(self, rows):
        ids, mask = padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id)
        types, _ = padded([row["token_type_ids"] for row in rows], 0)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def encode(self, rows):
        pairs = [[row["text"], row["text_pair"]] if "text_pair" in row else row["text"] for row in rows]
        return [dict(self.tokenizer(pair if isinstance(pair, str) else pair[0], None if isinstance(pair, str) else pair[1],
                                    truncation=True, max_length=self.args.max_length), label=row["label"])
                for pair, row in zip(pairs, rows)]


class Classify(Texts):
    kind, metrics, train, test = "text-classification", ("accuracy", "macro_f1"), "pubmed_roles/train.csv", "pubmed_roles/test.csv"

    def labels(self):
        return sorted({row["label"] for path in (self.args.train, self.args.test) for row in read_csv(path)})

    def load(self, folder):
        names = self.labels()
        model = self.build(folder, len(names))
        rows = [[row | {"label": names.index(row["label"])} for row in read_csv(path)]
                for path in (self.args.train, self.args.test)]
        return model, self.encode(rows[0]), self.encode(rows[1])

    def loss(self, model, rows):
        import torch

        return torch.nn.functional.cross_entropy(model(**self.inputs(rows)).logits, torch.tensor([row["label"] for row in rows]))

    def evaluate(self, model, rows):
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        predicted = []
        for start in range(0, len(rows), 64):
            predicted += model(**self.inputs(rows[start:start + 64])).logits.argmax(-1).tolist()
        return class_scores([row["label"] for row in rows], predicted, len(self.labels()))


class Regress(Texts):
    kind, metrics, train, test = "text-regression", ("pearson", "mse"), "stsb/train.csv", "stsb/test.csv"
    columns = 'pair_column = "text_pair"\n'

    def labels(self):
        return []

    def load(self, folder):
        model = self.build(folder, 1)
        rows = [[row | {"label": float(row["label"])} for row in read_csv(path)]
                for path in (self.args.train, self.args.test)]
        return model, self.encode(rows[0]), self.encode(rows[1])

    def loss(self, model, rows):
        import torch

        return torch.nn.functional.mse_loss(model(**self.inputs(rows)).logits[:, 0], torch.tensor([row["label"] for row in rows]))

    def evaluate(self, model, rows):
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        predicted = []
        for start in range(0, len(rows), 64):
            predicted += model(**self.inputs(rows[start:start + 64])).logits[:, 0].tolist()
        truth = [row["label"] for row in rows]
        return statistics.correlation(truth, predicted), statistics.fmean((t - p) ** 2 for t, p in zip(truth, predicted))


class Images:
    kind, metrics, train, test = "image-classification", ("accuracy", "macro_f1"), "bccd_cells/train.parquet", "bccd_cells/test.parquet"
    dropout, columns = 0.0, ""
    defaults = dict(lr=1e-3, epochs=5, batch=16, max_length=128)

    def __init__(self, args):
        self.args = args

    def prepare(self, folder, seed):
        """A ResNet-18 of random weights, as transformers draws them."""
        import torch
        from transformers import ResNetConfig, ResNetForImageClassification

        torch.manual_seed(seed)
        names = self.labels()
        config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
                              id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
        ResNetForImageClassification(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 64, "width": 64},
            "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        }))
        return folder

    def labels(self):
        import pyarrow.parquet

        described = json.loads(pyarrow.parquet.read_schema(self.args.train).metadata[b"huggingface"])
        return described["info"]["features"]["label"]["names"]

    def load(self, folder):
        import numpy
        import pyarrow.parquet
        import torch
        from PIL import Image
        from transformers import ResNetForImageClassification

        def rows(path):
            table = pyarrow.parquet.read_table(path).to_pylist()
            pixels = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((64, 64), Image.BILINEAR) for row in table]
            return [{"pixels": torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1, "label": row["label"]}
                    for image, row in zip(pixels, table)]

        return ResNetForImageClassification.from_pretrained(folder), rows(self.args.train), rows(self.args.test)

    def logits(self, model, rows):
        import torch

        return model(torch.stack([row["pixels"] for row in rows])).logits

    def loss(self, model, rows):
        import torch

        return torch.nn.functional.cross_entropy(self.logits(model, rows), torch.tensor([row["label"] for row in rows]))

    def evaluate(self, model, rows):
        predicted = []
        for start in range(0, len(rows), 64):
            predicted += self.logits(model, rows[start:start + 64]).argmax(-1).tolist()
        return class_scores([row["label"] for row in rows], predicted, len(self.labels()))


class Respond:
    kind, metrics, train, test = "causal-lm", ("loss", "perplexity"), "medquad_sft/train.jsonl", "medquad_sft/test.jsonl"
    dropout, columns = 0.0, ""
    defaults = dict(lr=1e-3, epochs=3, batch=16, max_length=256)

    def __init__(self, args):
        self.args = args

    def rows(self, path):
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def labels(self):
        return []

    def prepare(self, folder, seed):
        """A small Llama of random weights, and a tokenizer of the training texts."""
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator((text for row in self.rows(self.args.train) for text in (row["prompt"], row["response"])), trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
                             num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
                             tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
        LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    def load(self, folder):
        from transformers import AutoTokenizer, LlamaForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(folder)

        def encode(rows):
            encoded = []
            for row in rows:
                prefix = row["prompt"] + "\n"
                found = tokenizer(prefix + row["response"], return_offsets_mapping=True)
                ids = found["input_ids"] + [tokenizer.eos_token_id]
                counts = [start >= len(prefix) for start, _ in found["offset_mapping"]] + [True]
                ids, counts = ids[:self.args.max_length], counts[:self.args.max_length]
                encoded.append({"input_ids": ids, "labels": [token if count else -100 for token, count in zip(ids, counts)]})
            return encoded

        return LlamaForCausalLM.from_pretrained(folder), encode(self.rows(self.args.train)), encode(self.rows(self.args.test))

    def loss(self, model, rows, reduction="mean"):
        import torch

        ids, mask = padded([row["input_ids"] for row in rows], 0)
        labels, _ = padded([row["labels"] for row in rows], -100)
        logits = model(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)

    def evaluate(self, model, rows):
        total = sum(self.loss(model, rows[start:start + 16], "sum").item() for start in range(0, len(rows), 16))
        mean = total / sum(label != -100 for row in rows for label in row["labels"][1:])
        return mean, math.exp(mean)


TASKS = {"classify": Classify, "regress": Regress, "images": Images, "respond": Respond}


def finetune_pytorch(task, folder, args, seed):
    """Train and evaluate one seed; returns the two metrics and the seconds of training."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(args.threads)
    model, train, test = task.load(folder)
    is_plain = lambda name, parameter: name.endswith("bias") or parameter.dim() == 1
    plain = [p for name, p in model.named_parameters() if is_plain(name, p)]
    others = [p for name, p in model.named_parameters() if not is_plain(name, p)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.999), eps=1e-8,
    )
    steps = math.ceil(len(train) / args.batch) * args.epochs
    warmup = int(0.1 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / warmup if step < warmup else (steps - step) / (steps - warmup))
    order, started = random.Random(seed), time.monotonic()
    model.train()
    for _ in range(args.epochs):
        order.shuffle(train)
        for start in range(0, len(train), args.batch):
            loss = task.loss(model, train[start:start + args.batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.monotonic() - started
    model.eval()
    with torch.no_grad():
        return *task.evaluate(model, test), seconds


def finetune_fedtune(task, folder, args, seed):
    """Run the client on the same recipe; returns the same."""
    labels = task.labels()
    with tempfile.TemporaryDirectory() as place:
        job = Path(place) / "job.toml"
        job.write_text(JOB.format(
            model=json.dumps(str(folder.resolve())), kind=task.kind, columns=task.columns, dropout=task.dropout,
            labels=f"labels = {json.dumps(labels, ensure_ascii=False)}\n" if labels else "",
            max_length=args.max_length, epochs=args.epochs, batch=args.batch, lr=args.lr), encoding="utf-8")
        command = [
            args.fedtune.resolve(), "finetune", "--model", folder.resolve(), "--train", args.train.resolve(),
            "--test", args.test.resolve(), "--job", job, "--seed", str(seed), "--threads", str(args.threads),
            "--out", Path(place) / "model", "--output", "json",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"fedtune-client finetune failed with status {done.returncode}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return *(report["evaluation"][metric] for metric in task.metrics), report["train_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python_env.add_arguments(parser)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--model", type=Path, help="folder of the base model of texts (default: all-MiniLM-L6-v2)")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["both", "pytorch", "fedtune"], default="both")
    args = parser.parse_args()
    kind = TASKS[args.task]
    for name, value in kind.defaults.items():
        setattr(args, name, getattr(args, name) or value)
    args.train, args.test = (given or SHARED / "data" / name
                             for given, name in ((args.train, kind.train), (args.test, kind.test)))
    if args.side != "pytorch" and not args.fedtune.exists():
        parser.error(f"{args.fedtune} does not exist; build it or pass --fedtune or --side pytorch")
    python_env.enter(args.venv)

    sides = {"pytorch": finetune_pytorch, "fedtune": finetune_fedtune}
    names = list(sides) if args.side == "both" else [args.side]
    results, task = {name: [] for name in names}, kind(args)
    first, second = task.metrics
    print(f"{'seed':>6}  {'side':<8}  {first:>10}  {second:>10}  {'seconds':>8}")
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as place:
            folder = task.prepare(Path(place), seed)
            for name in names:
                result = sides[name](task, folder, args, seed)
                results[name].append(result)
                print(f"{seed:>6}  {name:<8}  {result[0]:>10.4f}  {result[1]:>10.4f}  {result[2]:>8.1f}", flush=True)
    means = {name: [statistics.fmean(column) for column in zip(*rows)] for name, rows in results.items()}
    for name, mean in means.items():
        print(f"{'mean':>6}  {name:<8}  {mean[0]:>10.4f}  {mean[1]:>10.4f}  {mean[2]:>8.1f}")
    if len(means) == 2:
        ours, theirs = means["fedtune"], means["pytorch"]
        print(f"fedtune - pytorch: {first} {ours[0] - theirs[0]:+.4f} ({(ours[0] / theirs[0] - 1) * 100:+.2f} %), "
              f"{second} {ours[1] - theirs[1]:+.4f}, time x {ours[2] / theirs[2]:.2f}")


if __name__ == "__main__":
    main()
