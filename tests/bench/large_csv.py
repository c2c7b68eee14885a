#!/usr/bin/env python3
"""Measure how much more memory fine-tuning on a large file takes than on a small one.

Writes a CSV of about --gigabytes that repeats the rows of the demo's training
file, and runs `fedtune-client finetune` on the demo's model for --steps steps
twice: on the demo's own file and on the large one. Prints the peak resident
memory of both, and ends with status 1 when the difference is 1 GB or more.

With --distinct every row gets a number, so that no text occurs twice; then
what is kept for each distinct text (see client/src/data/rows.rs) is seen too.

Needs only Python's standard library. The large file lies in the folder for
temporary files (set TMPDIR for another) and is deleted at the end.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import python_env

DEMO = python_env.REPOSITORY / "config" / "demo"
ALLOWED = 1_000_000_000

JOB = """
name = "large"
[model]
path = "unused"
[task]
kind = "text-classification"
labels = ["cardiology", "dermatology", "gastroenterology", "neurology", "orthopaedics", "respiratory"]
max_length = 64
[training]
learning_rate = 2e-3
steps = {steps}
[rounds]
count = 1
"""


def write_large(path, size, distinct):
    """A CSV of at least `size` bytes; returns its number of rows."""
    header, *rows = (DEMO / "data" / "train.csv").read_text().splitlines(keepends=True)
    body = "".join(rows).encode()
    written = 0
    with open(path, "wb") as out:
        out.write(header.encode())
        while out.tell() < size:
            if distinct:
                # Most texts are quoted; the number goes inside.
                numbered = (f'"{written + i} {row[1:]}' if row[0] == '"' else f"{written + i} {row}"
                            for i, row in enumerate(rows))
                body = "".join(numbered).encode()
            out.write(body)
            written += len(rows)
    return written


def finetune(fedtune, train, job, folder, threads):
    """Runs once; returns the peak resident memory in bytes and the seconds."""
    command = [fedtune, "finetune", "--model", DEMO / "model", "--train", train, "--job", job,
               "--out", folder / "tuned", "--threads", str(threads)]
    started = time.monotonic()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit((folder / "log").read_text())
    # Linux counts in KiB.
    return usage.ru_maxrss * 1024, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fedtune", type=Path, default=python_env.DEFAULT_FEDTUNE,
                        help="the client's binary (default: target/release/fedtune-client)")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the large file (default: 2)")
    parser.add_argument("--steps", type=int, default=100, help="steps of a run (default: 100)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--distinct", action="store_true", help="make every text of the large file another one")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        job, large = folder / "job.toml", folder / "large.csv"
        job.write_text(JOB.format(steps=arguments.steps))
        rows = write_large(large, int(arguments.gigabytes * 1e9), arguments.distinct)
        peaks = []
        for train in (DEMO / "data" / "train.csv", large):
            peak, seconds = finetune(arguments.fedtune, train, job, folder, arguments.threads)
            peaks.append(peak)
            print(f"{train.name:10} {train.stat().st_size / 1e6:9.1f} MB of rows   peak {peak / 1e6:8.1f} MB"
                  f"   {seconds:6.1f} s", flush=True)
    more = peaks[1] - peaks[0]
    print(f"{rows} rows take {more / 1e6:.1f} MB more")
    sys.exit(0 if more < ALLOWED else 1)


if __name__ == "__main__":
    main()
