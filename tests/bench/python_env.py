"""Runs a benchmark script inside a Python environment of its own.

Most scripts of this folder need PyTorch and transformers. Calling `enter(DIR)`
first makes sure that they are installed in the virtual environment DIR, which
is created when missing, and starts the script anew in it; `enter(DIR, MODULES)`
asks for no more than MODULES. An environment that already holds them is used
as it is.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_VENV = REPOSITORY / "target" / "bench-python"
DEFAULT_FEDTUNE = REPOSITORY / "target" / "release" / "fedtune-client"
# Modules, and the packages that hold them.
PACKAGES = {name: name for name in ("torch", "transformers", "safetensors", "tokenizers", "numpy", "peft", "pyarrow")} | {"PIL": "pillow"}


def add_arguments(parser):
    """The arguments that every script of this folder has."""
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV,
                        help="virtual environment to create or reuse (default: target/bench-python)")
    parser.add_argument("--fedtune", type=Path, default=DEFAULT_FEDTUNE,
                        help="the client's binary (default: target/release/fedtune-client)")


def enter(folder, modules=tuple(PACKAGES)):
    """Continue in the virtual environment `folder`, which holds `modules`; returns once inside it."""
    folder = Path(folder).resolve()
    if Path(sys.prefix).resolve() == folder:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"creating {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import " + ", ".join(modules)], capture_output=True).returncode != 0:
        packages = [PACKAGES[module] for module in modules]
        print(f"installing {' '.join(packages)}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    sys.stdout.flush()
    os.execv(python, [str(python), *sys.argv])
