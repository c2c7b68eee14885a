#!/usr/bin/env python3
"""Attack the aggregation rules with malicious sites, and check what accuracy is left.

Writes the digits of two Parquet files (`image`, 8 x 8 PNG, and `label`) as CSV
files of grey 0 to 16 into a temporary folder, and runs
`server/examples/red-team` on them: a small network, 11 sites, 2 of them
malicious, every attack against every rule, on even splits and on ones with label
skew, without and with the aggregator's comparison of a round's updates.

Prints tables of accuracies and a line for each acceptance threshold. Ends with
status 1 when one is missed. What follows `--` goes to the example.
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import python_env

DIGITS = python_env.REPOSITORY / "../shared/data/digits"
PIXELS, WHITE = 64, 16


def convert(parquet, path):
    """Write the rows of a Parquet file as CSV."""
    import pyarrow.parquet
    from PIL import Image

    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"pixel_{pixel}" for pixel in range(PIXELS)] + ["label"])
        for number, row in enumerate(pyarrow.parquet.read_table(parquet).to_pylist()):
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("L")
            if image.width * image.height != PIXELS:
                sys.exit(f"{parquet}, row {number}: the image is {image.width} x {image.height}; expected 8 x 8")
            writer.writerow([round(grey * WHITE / 255) for grey in image.tobytes()] + [row["label"]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=python_env.DEFAULT_VENV,
                        help="virtual environment to create or reuse (default: target/bench-python)")
    parser.add_argument("--train", type=Path, default=DIGITS / "train.parquet")
    parser.add_argument("--test", type=Path, default=DIGITS / "test.parquet")
    parser.add_argument("--example", type=Path, help="the built example (default: cargo builds it, in release)")
    parser.add_argument("options", nargs="*", help="for the example, after --, such as --seeds 1 2")
    args = parser.parse_args()
    python_env.enter(args.venv, ("pyarrow", "PIL"))

    command = [args.example.resolve()] if args.example else [
        "cargo", "run", "--release", "-p", "fedtune-server", "--example", "red-team", "--"]
    with tempfile.TemporaryDirectory() as place:
        files = []
        for name in ("train", "test"):
            path = Path(place) / f"{name}.csv"
            convert(getattr(args, name), path)
            files += [f"--{name}", path]
        sys.exit(subprocess.run([*command, *files, *args.options], cwd=python_env.REPOSITORY).returncode)


if __name__ == "__main__":
    main()
