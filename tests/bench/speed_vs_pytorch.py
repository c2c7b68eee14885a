#!/usr/bin/env python3
"""Steps per second of fine-tuning, fedtune and PyTorch side by side.

Both train the same weights (a BERT folder such as all-MiniLM-L6-v2) on the
same batches of full-length sequences, with dropout, gradient clipping and
AdamW, on so many threads. PyTorch runs transformers' model with scaled
dot-product attention and the fused AdamW, peft for the adapters, and autocast
for bf16. The two take turns, so that a change of the machine's load meets
both; a figure is the median over all turns. Prints a table: milliseconds a
step, fedtune's steps per second over PyTorch's, and peak memory. Ends with
status 1 when a ratio is below --least.

Build first: `cargo build --release -p fedtune-client --examples`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import python_env

# name: (batch, length, what is trained, bf16)
CASES = {
    "full 16x128": (16, 128, "full", False),
    "full 32x64": (32, 64, "full", False),
    "head 16x128": (16, 128, "head", False),
    "last-2 16x128": (16, 128, "last-2", False),
    "lora r8 16x128": (16, 128, "lora", False),
    "full 16x128 bf16": (16, 128, "full", True),
    "full 32x64 bf16": (32, 64, "full", True),
    "lora r8 16x128 bf16": (16, 128, "lora", True),
}
DROPOUT = 0.1


def peak_megabytes():
    """As the other side counts it."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def run_pytorch(model, case, threads, steps):
    """In a process of its own: prints the seconds of each step."""
    import time

    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    batch, length, trainable, bf16 = CASES[case]
    network = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=5, dtype=torch.float32, attn_implementation="sdpa",
        hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT, classifier_dropout=DROPOUT)
    if trainable == "lora":
        from peft import LoraConfig, get_peft_model
        network = get_peft_model(network, LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["query", "value"],
            modules_to_save=["pooler", "classifier"]))
    elif trainable != "full":
        layers = int(trainable[5:]) if trainable.startswith("last-") else 0
        first = network.config.num_hidden_layers - layers
        kept = ["pooler.", "classifier.", *(f"encoder.layer.{i}." for i in range(first, first + layers))]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(any(part in name for part in kept))
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01, fused=True)
    vocabulary = network.config.vocab_size
    ids = torch.tensor([[(row * 7919 + i * 104729 + 17) * 31 % vocabulary for i in range(length)]
                        for row in range(batch)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids),
              "labels": torch.arange(batch) % 5}
    seconds = []
    for step in range(steps + 2):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = network(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "loss": loss.item(), "peak_mb": peak_megabytes()}))


def turn_of_pytorch(arguments, case):
    return [sys.executable, __file__, "--venv", sys.prefix, "--model", arguments.model,
            "--threads", str(arguments.threads), "--steps", str(arguments.steps), "--pytorch-case", case]


def turn_of_fedtune(arguments, case):
    batch, length, trainable, bf16 = CASES[case]
    return [arguments.step_time, "--model", arguments.model, "--threads", str(arguments.threads),
            "--steps", str(arguments.steps), "--batch", str(batch), "--length", str(length), "--trainable", trainable,
            "--rank", "8", "--dropout", str(DROPOUT), *(["--bf16"] if bf16 else [])]


def measure(command):
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=python_env.DEFAULT_VENV,
                        help="virtual environment to create or reuse (default: target/bench-python)")
    parser.add_argument("--step-time", type=Path, default=python_env.DEFAULT_FEDTUNE.parent / "examples" / "step_time",
                        help="fedtune's side (default: target/release/examples/step_time)")
    parser.add_argument("--model", required=True, help="folder of a BERT model")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE",
                        help=f"some of: {', '.join(CASES)} (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn that count (default: 6)")
    parser.add_argument("--least", type=float, default=0.0, help="smallest ratio that passes")
    parser.add_argument("--pytorch-case", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    python_env.enter(arguments.venv)
    if arguments.pytorch_case:
        run_pytorch(arguments.model, arguments.pytorch_case, arguments.threads, arguments.steps)
        return

    print(f"{'case':22} {'PyTorch ms':>11} {'fedtune ms':>11} {'ratio':>6} {'PyTorch MB':>11} {'fedtune MB':>11}")
    ratios = []
    for case in arguments.cases:
        found = {"pytorch": [], "fedtune": []}
        for _ in range(arguments.turns):
            found["pytorch"].append(measure(turn_of_pytorch(arguments, case)))
            found["fedtune"].append(measure(turn_of_fedtune(arguments, case)))
        median = {side: statistics.median(second for turn in turns for second in turn["seconds"])
                  for side, turns in found.items()}
        memory = {side: max(turn["peak_mb"] for turn in turns) for side, turns in found.items()}
        ratio = median["pytorch"] / median["fedtune"]
        ratios.append(ratio)
        print(f"{case:22} {median['pytorch'] * 1e3:11.0f} {median['fedtune'] * 1e3:11.0f} {ratio:6.2f} "
              f"{memory['pytorch']:11.0f} {memory['fedtune']:11.0f}", flush=True)
    sys.exit(0 if min(ratios) >= arguments.least else 1)


if __name__ == "__main__":
    main()
