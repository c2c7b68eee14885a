#!/usr/bin/env python3
"""What compressing the updates costs in accuracy, and what it saves in bytes.

Simulates one federation without compression and once with each one named, from
the same base model, partition and seed, with the real programs: three sites with
equal shares of pubmed_roles, all-MiniLM-L6-v2, three rounds. Accuracies are those
of the last round's state on the test file, bytes what the sites sent up.

Ends with status 1 when int8 is further from none than half a point, or sends more
than 26 % of its bytes.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY / ".." / "shared"
POINTS, SHARE = 0.5, 0.26


def job(args, labels, compression):
    """A job as TOML; JSON's texts and lists are TOML's."""
    return f"""
name = "compression-{compression}"
[rounds]
count = {args.rounds}
[model]
path = {json.dumps(str(args.model.resolve()))}
[task]
kind = "text-classification"
labels = {json.dumps(labels)}
[training]
epochs = 1
learning_rate = 1e-4
[updates]
compression = {json.dumps(compression)}
"""


def simulate(args, labels, compression, folder):
    """The report of a federation whose updates are compressed in this way."""
    path = folder / f"{compression}.toml"
    path.write_text(job(args, labels, compression), encoding="utf-8")
    out = folder / compression
    command = [args.server.resolve(), "simulate", "--job", path, "--train", args.train, "--test", args.test,
               "--sites", str(args.sites), "--seed", str(args.seed), "--out", out]
    print(f"{compression}: {args.rounds} rounds of {args.sites} sites", file=sys.stderr)
    if (status := subprocess.run(command, stdout=subprocess.DEVNULL).returncode) != 0:
        sys.exit(f"{compression}: the simulation ended with status {status}")
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, default=REPOSITORY / "target" / "release" / "fedtune-server",
                        help="the server's binary, the client's beside it (default: target/release/fedtune-server)")
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "all-MiniLM-L6-v2")
    parser.add_argument("--train", type=Path, default=SHARED / "data" / "pubmed_roles" / "train.csv")
    parser.add_argument("--test", type=Path, default=SHARED / "data" / "pubmed_roles" / "test.csv")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compression", nargs="+", default=["int8"], help="compared with none")
    args = parser.parse_args()
    if not args.server.exists():
        sys.exit(f"{args.server} is missing; make it with: cargo build --release --bins")

    with open(args.train, encoding="utf-8", newline="") as file:
        labels = sorted({row["label"] for row in csv.DictReader(file)})
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for compression in ["none", *args.compression]:
            rounds = simulate(args, labels, compression, Path(folder))["rounds"]
            sites = [site for each in rounds for site in each["sites"]]
            results[compression] = (100 * rounds[-1]["evaluation"]["accuracy"], sum(site["bytes_up"] for site in sites),
                                    max(site["relative_error"] or 0 for site in sites))

    accuracy, size, _ = results["none"]
    missed = False
    print(f"{'compression':12} {'accuracy %':>10} {'points':>7} {'bytes up':>12} {'share %':>8} {'error':>8}")
    for compression, (its_accuracy, its_size, error) in results.items():
        points, share = its_accuracy - accuracy, its_size / size
        print(f"{compression:12} {its_accuracy:10.2f} {points:+7.2f} {its_size:12} {100 * share:8.2f} {error:8.5f}")
        missed |= compression == "int8" and (abs(points) > POINTS or share > SHARE)
    if missed:
        sys.exit(f"int8 is off by more than {POINTS} points, or sends more than {100 * SHARE:.0f} % of the bytes")


if __name__ == "__main__":
    main()
