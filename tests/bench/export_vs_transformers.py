#!/usr/bin/env python3
"""Check that a model exported by fedtune says the same in transformers.

Loads the folder with `AutoModelForSequenceClassification` and `AutoTokenizer`,
computes the logits of the first texts of a CSV file (column `text`), and
compares them with those that `fedtune-client predict --logits` writes. Prints
the largest absolute difference; ends with status 1 when it is above 1e-4.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import python_env

TOLERANCE = 1e-4


def read_texts(path, count):
    with open(path, encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)][:count]


def transformers_logits(folder, texts, max_length):
    """Logits of every text, and the labels in the order of the columns."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), 16):
            batch = tokenizer(texts[start:start + 16], truncation=True, max_length=max_length,
                              padding=True, return_tensors="pt")
            rows += model(**batch).logits.tolist()
    return rows, [model.config.id2label[index] for index in range(model.config.num_labels)]


def fedtune_logits(binary, folder, texts, labels):
    """The same from the client, which is given exactly these texts."""
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch) / "texts.csv", Path(scratch) / "predictions.csv"
        with open(data, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["text"], *([text] for text in texts)])
        command = [binary.resolve(), "predict", "--model", folder.resolve(), "--data", data, "--out", out, "--logits"]
        status = subprocess.run(command, stdout=sys.stderr).returncode
        if status != 0:
            sys.exit(f"fedtune-client predict failed with status {status}")
        with open(out, encoding="utf-8", newline="") as file:
            return [([float(row[f"logit_{label}"]) for label in labels], row["label"]) for row in csv.DictReader(file)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python_env.add_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--data", type=Path, required=True, help="CSV file with a column `text`")
    parser.add_argument("--count", type=int, default=64, help="texts to compare (default: 64)")
    parser.add_argument("--max-length", type=int, default=128)
    args = parser.parse_args()
    python_env.enter(args.venv)

    texts = read_texts(args.data, args.count)
    expected, labels = transformers_logits(args.model, texts, args.max_length)
    found = fedtune_logits(args.fedtune, args.model, texts, labels)
    if not texts or len(found) != len(texts):
        sys.exit(f"{len(texts)} texts, {len(found)} predictions")
    worst = max(abs(one - two) for row, (logits, _) in zip(expected, found) for one, two in zip(row, logits))
    differing = sum(labels[max(range(len(labels)), key=logits.__getitem__)] != label for logits, label in found)
    print(f"{len(texts)} texts: largest difference of a logit {worst:.2e}")
    if differing:
        sys.exit(f"{differing} labels are not those of the largest logit")
    sys.exit(0 if worst <= TOLERANCE else 1)  # not (worst > TOLERANCE), so that NaN fails


if __name__ == "__main__":
    main()
