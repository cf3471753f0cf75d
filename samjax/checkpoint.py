"""Models by path or by name: `load`, and where it looks.

What is read from disk is in `samjax.sources`, what is fetched by name in `samjax.fetch`. One model
comes with the package: "nano".
"""

import functools
import logging
import os
from pathlib import Path

from samjax.buckets import copied_here, is_in_a_bucket, read_text
from samjax.fetch import cached_path, fetch, is_a_name, unknown_name
from samjax.kinds import AnyModel
from samjax.model import Model, Placement
from samjax.models.config import Dtype, EverythingThresholds, Precision
from samjax.orbax_folder import (
    DESCRIPTION,
    FORMAT_VERSION,
    is_checkpoint_directory,
    parse_thresholds,
    read_description,
    save_checkpoint,
    thresholds_in,
)
from samjax.sources import HUGGINGFACE_CONFIG, is_torch_file, read_model, starts_as_zip
from samjax.writing import write_beside
from samjax.zoo import find

__all__ = [
    "ASSETS",
    "FORMAT_VERSION",
    "Model",
    "NANO",
    "is_checkpoint_directory",
    "is_torch_file",
    "load",
    "load_any",
    "locate",
    "make_ready",
    "read_thresholds",
    "save_checkpoint",
    "starts_as_zip",
    "write_beside",
]

NANO = "nano"
"""The name of the package's own model, which is used where none is named."""

ASSETS = Path(__file__).with_name("assets")
"""Where it lies."""


_DETECTOR = (
    "{} is a YOLOv8, which finds boxes and takes no prompts: samjax.detection.load reads it; "
    "samjax.FastSAM and samjax.auto_annotate take it too."
)


def load(
    source: str | os.PathLike | None = None,
    *,
    dtype: Dtype | None = None,
    precision: Precision | None = None,
    sharding: Placement | None = None,
) -> Model:
    """Reads a checkpoint, from a path or by the name of a published model.

    YOLOv8 detectors are read by `samjax.detection.load`, from the same places.

    A path, also one in a bucket ("gs://bucket/name"), is a directory by `save_checkpoint`, a torch
    file in Meta's names, a Hugging Face `SamModel` folder or a safetensors file. What it is shows
    in the content, not in the name; torch is imported only for a torch file.

    A name is one that `samjax models` lists ("vit_b", "sam_b.pt", "facebook/sam-vit-base"), or
    "hf://OWNER/MODEL": it is downloaded and converted the first time, and kept (`samjax.fetch`).
    What is there under that name as a path is read instead. Only "nano" is the package's own model
    always; the one in the folder is "./nano" or a `Path`. Without a source it is nano too, and that
    is logged once.

    `precision` ("float32", "bfloat16", "float16", "int8") is what the model computes in, if it is
    to be another than the file's, and its parameters' type (`Model.at_precision`). `dtype` changes
    the parameters' type alone, on the way (`Model.astype`); otherwise they keep the file's. nano's,
    which the package holds in half precision, become float32: the predictions are the same, no call
    has to convert them, and training on does not round its updates. `sharding` says where arrays
    lie, one for all or a function of an array's name and shape; from a directory by
    `save_checkpoint` each device reads its part.

    Raises `FileNotFoundError`, `ValueError` for what is damaged, foreign, incomplete, of a newer
    format, a detector, or would run code (nothing in a file is ever run), and what
    `samjax.fetch.fetch` raises.
    """
    if source is None:
        _log_default()
        source = NANO
    known = find(str(source)) if is_a_name(source) else None
    if known and known.detector:
        raise ValueError(_DETECTOR.format(source))
    model = load_any(source, dtype=dtype, sharding=sharding)
    if not isinstance(model, Model):
        raise ValueError(_DETECTOR.format(source))
    return model if precision is None else model.at_precision(precision)


def load_any(
    source: str | os.PathLike, *, dtype: Dtype | None = None, sharding: Placement | None = None
) -> AnyModel:
    """What is there of any kind; source, options and errors are those of `load`."""
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; use 'float32', 'bfloat16' or 'float16'.")
    if is_in_a_bucket(source):
        with copied_here(source, (DESCRIPTION, HUGGINGFACE_CONFIG)) as path:
            return read_model(path, dtype=dtype, sharding=sharding)
    path = make_ready(source)
    if not path.exists():
        raise FileNotFoundError(
            _no_nano(path) if source == NANO else f"There is no {path}.{unknown_name(source)}"
        )
    if source == NANO:
        dtype = dtype or "float32"
    return read_model(path, dtype=dtype, sharding=sharding)


def locate(source: str | os.PathLike) -> Path:
    """Where `load` looks for it, on disk; nothing is fetched."""
    if source == NANO:
        return ASSETS / NANO
    return cached_path(str(source)) if is_a_name(source) else Path(source)


def make_ready(source: str | os.PathLike) -> Path:
    """`locate`, once a model that is named is there: fetched if need be (`samjax.fetch.fetch`)."""
    return fetch(str(source)) if is_a_name(source) and source != NANO else locate(source)


def read_thresholds(source: str | os.PathLike) -> EverythingThresholds:
    """What the model carries, without its arrays; nothing where there is no checkpoint directory.

    Raises `ValueError` as `load` does.
    """
    if is_in_a_bucket(source):
        return parse_thresholds(read_text(source, DESCRIPTION) or "{}", os.fspath(source))
    path = locate(source)
    if not is_checkpoint_directory(path):
        return EverythingThresholds()
    return thresholds_in(read_description(path).content, path)


@functools.cache
def _log_default() -> None:
    """Through logging, once: no -W error turns it into an exception, and it can be silenced."""
    logging.getLogger("samjax").warning(
        "samjax: no model is named, so this is %s, a small one for trying out; "
        'samjax.load("%s") takes it without this line',
        NANO, NANO,
    )  # fmt: skip


def _no_nano(path: Path) -> str:
    return (
        f"The model {NANO} is not in this installation of samjax: there is no {path}. Install "
        "samjax again, or name a checkpoint"
        + (f"; the {NANO} in this folder is ./{NANO}." if Path(NANO).exists() else ".")
    )
