"""A virtual environment for each peer, since they do not agree on what they need.

Made the first time a peer is asked for, in `benchmarks/.environments`, with what pip is configured
to use; made anew when the list here changes. One list of requirements for each peer, pinned where
the version matters.
"""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name(".environments")

REQUIREMENTS = {
    "transformers": ("transformers==5.24.0", "torch==2.14.1", "numpy", "pillow"),
    "openvino": ("openvino==2026.4.1", "numpy", "pillow"),
    "onnxruntime": ("onnxruntime==1.32.0", "numpy", "pillow"),
    "ultralytics": (
        "ultralytics==8.4.190",
        "torch==2.14.1",
        "torchvision==0.29.1",
    ),
    "keras_hub": ("keras-hub==0.32.0", "keras==3.15.1", "jax==0.10.2", "numpy"),
}
"""What pip installs. keras-hub brings TensorFlow, which it needs for its tokenizers."""

_PROBES = {
    "transformers": "from transformers.models.sam import modeling_sam",
    "keras_hub": "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras_hub",
}
_STAMP = "requirements.txt"


class Unavailable(Exception):
    """A contender that cannot take part, and why, in one line."""


def interpreter(name: str) -> Path:
    """The Python of this peer's environment, which is made if need be: minutes, gigabytes.

    Raises `Unavailable` with the last that pip, or the import of the package, said.
    """
    if (python := existing(name)) is not None:
        return python
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making an environment for {name} in {folder}: {', '.join(REQUIREMENTS[name])}")
    try:
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        python = _python(folder)
        _run(sys.executable, "-m", "pip", "--python", str(python), "install", "-q",
             "--disable-pip-version-check", *REQUIREMENTS[name])  # fmt: skip
        _run(str(python), "-c", _PROBES.get(name, f"import {name}"))
    except Unavailable:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / _STAMP).write_text(_wanted(name))
    return python


def existing(name: str) -> Path | None:
    """The same if it has been made, with what is wanted now."""
    stamp = FOLDER / name / _STAMP
    if stamp.is_file() and stamp.read_text() == _wanted(name):
        return _python(stamp.parent)
    return None


def _wanted(name: str) -> str:
    return "\n".join(REQUIREMENTS[name]) + "\n"


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Unavailable(said[-1] if said else f"{command[0]} ended with {done.returncode}")
