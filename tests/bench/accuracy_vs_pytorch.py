#!/usr/bin/env python3
"""Fine-tune a BERT classifier with PyTorch and with fedtune, and compare.

Both sides start from the same base model and follow the same recipe, the one of
JOB and of `finetune_pytorch` below: AdamW (betas 0.9 and 0.999, eps 1e-8, decay
0.01 on all but biases and LayerNorm), gradients clipped to norm 1, a linear
schedule with a tenth of the steps as warm-up, dropout 0.1, batches padded to
their longest text, the pooler of the base model and a new classifier drawn from
N(0, 0.02). Order, dropout and classifier depend on the seed, differently on each
side, so only means over several seeds can be compared.

The files are CSV with the columns `text` and `label`. A table with accuracy,
macro-F1 and training seconds per seed is printed, then the difference of means.
"""

import argparse
import csv
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
kind = "text-classification"
labels = {labels}
max_length = {max_length}
[training]
trainable = "full"
epochs = {epochs}
batch_size = {batch}
learning_rate = {lr}
schedule = "linear"
warmup = 0.1
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
[rounds]
count = 1
"""
DATA = python_env.REPOSITORY / "../shared/data/pubmed_roles"
MODEL = python_env.REPOSITORY / "../shared/models/all-MiniLM-L6-v2"


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def scores(truth, predicted, classes):
    """Accuracy and macro-F1; a class that nobody has or predicts is left out."""
    f1 = []
    for label in range(classes):
        hits = sum(t == p == label for t, p in zip(truth, predicted))
        total = truth.count(label) + predicted.count(label)
        if total:
            f1.append(2 * hits / total)
    return sum(t == p for t, p in zip(truth, predicted)) / len(truth), statistics.fmean(f1)


def finetune_pytorch(args, labels, seed):
    """Train and evaluate one seed; returns accuracy, macro-F1 and seconds."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(seed)
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = BertForSequenceClassification.from_pretrained(
        args.model, num_labels=len(labels), hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1, classifier_dropout=0.1,
    )
    with torch.no_grad():
        model.classifier.weight.normal_(0.0, 0.02)
        model.classifier.bias.zero_()

    def encode(rows):
        ids = tokenizer([text for text, _ in rows], truncation=True, max_length=args.max_length)["input_ids"]
        return [(tokens, labels.index(label)) for tokens, (_, label) in zip(ids, rows)]

    def collate(rows):
        longest = max(len(tokens) for tokens, _ in rows)
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, (tokens, _) in enumerate(rows):
            ids[number, :len(tokens)] = torch.tensor(tokens)
            mask[number, :len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}, torch.tensor([label for _, label in rows])

    def evaluate():
        model.eval()
        by_length = sorted(test, key=lambda row: len(row[0]))
        truth, predicted = [label for _, label in by_length], []
        with torch.no_grad():
            for start in range(0, len(test), 64):
                inputs, _ = collate(by_length[start:start + 64])
                predicted += model(**inputs).logits.argmax(-1).tolist()
        model.train()
        return scores(truth, predicted, len(labels))

    train, test = encode(read_rows(args.train)), encode(read_rows(args.test))
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    others = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.999), eps=1e-8,
    )
    steps = math.ceil(len(train) / args.batch) * args.epochs
    warmup = int(0.1 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / warmup if step < warmup else (steps - step) / (steps - warmup))

    order, seconds, result = random.Random(seed), 0.0, None
    model.train()
    for epoch in range(args.epochs):
        started = time.monotonic()
        order.shuffle(train)
        for start in range(0, len(train), args.batch):
            inputs, truth = collate(train[start:start + args.batch])
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, truth)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        seconds += time.monotonic() - started
        if args.each_epoch or epoch + 1 == args.epochs:
            result = evaluate()
            print(f"  pytorch seed {seed} epoch {epoch + 1}: accuracy {result[0]:.4f} macro-F1 {result[1]:.4f}"
                  f" ({seconds:.0f} s, {seconds / (steps * (epoch + 1) / args.epochs):.3f} s per step)",
                  file=sys.stderr, flush=True)
    return *result, seconds


def finetune_fedtune(args, labels, seed):
    """Run the client on the same recipe; returns accuracy, macro-F1 and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.toml"
        job.write_text(JOB.format(
            model=json.dumps(str(args.model.resolve())), labels=json.dumps(labels, ensure_ascii=False),
            max_length=args.max_length, epochs=args.epochs, batch=args.batch, lr=args.lr), encoding="utf-8")
        command = [
            args.fedtune.resolve(), "finetune", "--model", args.model.resolve(), "--train", args.train.resolve(),
            "--test", args.test.resolve(), "--job", job, "--seed", str(seed), "--threads", str(args.threads),
            "--out", Path(folder) / "model", "--output", "json",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"fedtune-client finetune failed with status {done.returncode}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return report["evaluation"]["accuracy"], report["evaluation"]["macro_f1"], report["train_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python_env.add_arguments(parser)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the base model")
    parser.add_argument("--train", type=Path, default=DATA / "train.csv")
    parser.add_argument("--test", type=Path, default=DATA / "test.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["both", "pytorch", "fedtune"], default="both")
    parser.add_argument("--each-epoch", action="store_true", help="also evaluate PyTorch after every epoch")
    args = parser.parse_args()
    if args.side != "pytorch" and not args.fedtune.exists():
        parser.error(f"{args.fedtune} does not exist; build it or pass --fedtune or --side pytorch")
    if args.side != "fedtune":
        python_env.enter(args.venv)

    labels = sorted({label for path in (args.train, args.test) for _, label in read_rows(path)})
    sides = {"pytorch": finetune_pytorch, "fedtune": finetune_fedtune}
    names = list(sides) if args.side == "both" else [args.side]
    results = {name: [] for name in names}
    print(f"{'seed':>6}  {'side':<8}  {'accuracy':>8}  {'macro-F1':>8}  {'seconds':>8}")
    for seed in args.seeds:
        for name in names:
            result = sides[name](args, labels, seed)
            results[name].append(result)
            print(f"{seed:>6}  {name:<8}  {result[0]:>8.4f}  {result[1]:>8.4f}  {result[2]:>8.1f}", flush=True)
    means = {name: [statistics.fmean(column) for column in zip(*rows)] for name, rows in results.items()}
    for name, mean in means.items():
        print(f"{'mean':>6}  {name:<8}  {mean[0]:>8.4f}  {mean[1]:>8.4f}  {mean[2]:>8.1f}")
    if len(means) == 2:
        ours, theirs = means["fedtune"], means["pytorch"]
        print(f"fedtune - pytorch: accuracy {ours[0] - theirs[0]:+.4f}, macro-F1 {ours[1] - theirs[1]:+.4f}, "
              f"time x {ours[2] / theirs[2]:.2f}")


if __name__ == "__main__":
    main()
