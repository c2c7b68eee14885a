#!/usr/bin/env python3
"""Steps per second of fine-tuning, fedtune and PyTorch side by side.

Both train the same weights (a BERT folder such as all-MiniLM-L6-v2) on the
same batches of full-length sequences, with dropout, gradient clipping and
AdamW, on so many threads. PyTorch runs transformers' model with scaled
dot-product attention and the fused AdamW, peft for the adapters, and autocast
for bf16. The images go through a ResNet-18 of random weights in training
mode, without dropout, which it does not have. With --device cuda both train on
an NVIDIA GPU, models of random weights and the sizes of BERT base and of
Qwen2 0.5B, of which every next token is learnt. The two take turns, so that a change of the machine's load meets
both; a figure is the median over all turns. Prints a table: milliseconds a
step, fedtune's steps per second over PyTorch's, and peak memory. Ends with
status 1 when a ratio is below --least.

Build first: `cargo build --release -p fedtune-client --examples`, for a GPU
with `--features cuda`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
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
# name: (images, pixels of a side); all of a ResNet-18 is trained
IMAGES = {"resnet-18 16x3x64x64": (16, 64)}
# The same for a GPU, behind the model's name; a decoder learns every next token, without dropout.
GPU_CASES = {
    "bert-base 32x128": ("bert-base", 32, 128, "full", False),
    "bert-base 32x128 bf16": ("bert-base", 32, 128, "full", True),
    "bert-base lora r8 32x128 bf16": ("bert-base", 32, 128, "lora", True),
    "qwen-0.5b 8x512": ("qwen-0.5b", 8, 512, "full", False),
    "qwen-0.5b 8x512 bf16": ("qwen-0.5b", 8, 512, "full", True),
}
DECODERS = {"qwen-0.5b"}
DROPOUT = 0.1


def peak_megabytes():
    """As the other side counts it."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def build_resnet(folder):
    """Writes a ResNet-18 of random weights; in a process of its own, so that this one loads no torch."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(1)
    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
                          num_labels=5)
    ResNetForImageClassification(config).save_pretrained(folder)


def build_gpu_model(name, folder):
    """Writes a model of random weights; in a process of its own."""
    import torch
    from transformers import BertConfig, BertModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    if name == "bert-base":
        BertModel(BertConfig()).save_pretrained(folder)
    else:
        Qwen2ForCausalLM(Qwen2Config(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151936, max_position_embeddings=4096, rope_theta=1e6,
            tie_word_embeddings=True)).save_pretrained(folder)


def texts_of(case):
    """Batch, length, what is trained, bf16."""
    return GPU_CASES[case][1:] if case in GPU_CASES else CASES[case]


def is_decoder(case):
    return case in GPU_CASES and GPU_CASES[case][0] in DECODERS


def load_images(model, case):
    """The network and its batch, as `step_time --images` makes it."""
    import torch
    from transformers import ResNetForImageClassification

    batch, size = IMAGES[case]
    network = ResNetForImageClassification.from_pretrained(model, dtype=torch.float32)
    values = torch.arange(batch * 3 * size * size) * 7919 % 2003
    images = (values.float() / 1001 - 1).reshape(batch, 3, size, size)
    return network, {"pixel_values": images, "labels": torch.arange(batch) % 5}


def load_texts(model, case):
    """The network and its batch, as `step_time` makes it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    batch, length, trainable, _ = texts_of(case)
    if is_decoder(case):
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    else:
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
    vocabulary = network.config.vocab_size
    ids = torch.tensor([[(row * 7919 + i * 104729 + 17) * 31 % vocabulary for i in range(length)]
                        for row in range(batch)])
    if is_decoder(case):
        return network, {"input_ids": ids, "labels": ids}
    return network, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids),
                     "labels": torch.arange(batch) % 5}


def run_pytorch(model, case, threads, steps, device):
    """In a process of its own: prints the seconds of each step."""
    import time

    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    network, inputs = (load_images if case in IMAGES else load_texts)(model, case)
    bf16 = case not in IMAGES and texts_of(case)[3]
    network = network.to(device)
    inputs = {name: values.to(device) for name, values in inputs.items()}
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01, fused=True)
    seconds = []
    for step in range(steps + 2):
        started = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            loss = network(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "loss": loss.item(),
                      "peak_mb": peak_megabytes() if device == "cpu" else None}))


def model_of(arguments, case):
    if case in GPU_CASES:
        return arguments.folders[GPU_CASES[case][0]]
    return arguments.resnet if case in IMAGES else arguments.model


def turn_of_pytorch(arguments, case):
    return [sys.executable, __file__, "--venv", sys.prefix, "--model", model_of(arguments, case),
            "--threads", str(arguments.threads), "--steps", str(arguments.steps),
            "--device", arguments.device, "--pytorch-case", case]


def turn_of_fedtune(arguments, case):
    if case in IMAGES:
        batch, size = IMAGES[case]
        return [arguments.step_time, "--model", model_of(arguments, case), "--threads", str(arguments.threads),
                "--steps", str(arguments.steps), "--batch", str(batch), "--images", str(size), "--dropout", "0"]
    batch, length, trainable, bf16 = texts_of(case)
    return [arguments.step_time, "--model", model_of(arguments, case), "--device", arguments.device,
            "--threads", str(arguments.threads), "--steps", str(arguments.steps), "--batch", str(batch),
            "--length", str(length), "--trainable", trainable, "--rank", "8",
            "--dropout", str(0 if is_decoder(case) else DROPOUT),
            *(["--causal"] if is_decoder(case) else []), *(["--bf16"] if bf16 else [])]


def measure(command):
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=python_env.DEFAULT_VENV,
                        help="virtual environment to create or reuse (default: target/bench-python)")
    parser.add_argument("--step-time", type=Path, default=python_env.DEFAULT_FEDTUNE.parent / "examples" / "step_time",
                        help="fedtune's side (default: target/release/examples/step_time)")
    parser.add_argument("--model", help="folder of a BERT model, for the cases of texts")
    names = [*CASES, *IMAGES, *GPU_CASES]
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where both train (default: cpu)")
    parser.add_argument("--cases", nargs="+", choices=names, metavar="CASE",
                        help=f"some of: {', '.join(names)} (default: all of the device)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn that count (default: 6)")
    parser.add_argument("--least", type=float, default=0.0, help="smallest ratio that passes")
    parser.add_argument("--pytorch-case", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--build-resnet", help=argparse.SUPPRESS)
    parser.add_argument("--build-gpu-model", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    of_device = [*GPU_CASES] if arguments.device == "cuda" else [*CASES, *IMAGES]
    arguments.cases = arguments.cases or of_device
    if not set(arguments.cases) <= set(of_device):
        parser.error(f"cases of --device {arguments.device}: {', '.join(of_device)}")
    python_env.enter(arguments.venv)
    if arguments.build_resnet:
        build_resnet(arguments.build_resnet)
        return
    if arguments.build_gpu_model:
        build_gpu_model(*arguments.build_gpu_model)
        return
    if arguments.pytorch_case:
        run_pytorch(arguments.model, arguments.pytorch_case, arguments.threads, arguments.steps, arguments.device)
        return

    if arguments.model is None and any(case in CASES for case in arguments.cases):
        parser.error("the cases of texts need --model")
    with tempfile.TemporaryDirectory() as folder:
        arguments.resnet = folder
        arguments.folders = {}
        for name in {GPU_CASES[case][0] for case in arguments.cases if case in GPU_CASES}:
            arguments.folders[name] = str(Path(folder) / name)
            subprocess.run([sys.executable, __file__, "--venv", sys.prefix, "--build-gpu-model", name,
                            arguments.folders[name]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if any(case in IMAGES for case in arguments.cases):
            subprocess.run([sys.executable, __file__, "--venv", sys.prefix, "--build-resnet", folder], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        compare(arguments)


def compare(arguments):
    print(f"{'case':30} {'PyTorch ms':>11} {'fedtune ms':>11} {'ratio':>6} {'PyTorch MB':>11} {'fedtune MB':>11}")
    ratios = []
    for case in arguments.cases:
        found = {"pytorch": [], "fedtune": []}
        for _ in range(arguments.turns):
            found["pytorch"].append(measure(turn_of_pytorch(arguments, case)))
            found["fedtune"].append(measure(turn_of_fedtune(arguments, case)))
        median = {side: statistics.median(second for turn in turns for second in turn["seconds"])
                  for side, turns in found.items()}
        memory = {side: max(turn["peak_mb"] or 0 for turn in turns) for side, turns in found.items()}
        ratio = median["pytorch"] / median["fedtune"]
        ratios.append(ratio)
        print(f"{case:30} {median['pytorch'] * 1e3:11.0f} {median['fedtune'] * 1e3:11.0f} {ratio:6.2f} "
              f"{memory['pytorch']:11.0f} {memory['fedtune']:11.0f}", flush=True)
    sys.exit(0 if min(ratios) >= arguments.least else 1)


if __name__ == "__main__":
    main()
