"""What a checkpoint on disk can be, told from its content, and how each kind is read."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from samjax.kinds import AnyModel
from samjax.model import Model, Placement
from samjax.models.config import Dtype
from samjax.orbax_folder import DESCRIPTION, is_checkpoint_directory, read_checkpoint_directory

HUGGINGFACE_CONFIG = "config.json"

_ZIP_MAGIC = b"PK\x03\x04"
_YOLO_MARKS = b"ultralytics", b"model.22."
"""Of the classes that a pickled YOLOv8 is made of, or of its head's arrays."""
_PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


def read_model(
    path: Path, *, dtype: Dtype | None = None, sharding: Placement | None = None
) -> AnyModel:
    """The model at a path that exists. Raises `ValueError` for what is of no known kind."""
    if is_checkpoint_directory(path):
        return read_checkpoint_directory(path, dtype=dtype, sharding=sharding)
    for kind in _FOREIGN:
        if kind.recognizes(path):
            model = kind.read(path)
            model = model if dtype is None else model.astype(dtype)
            return model if sharding is None else model.place(sharding)
    raise ValueError(_unrecognized(path))


def is_torch_file(path: Path) -> bool:
    """Whether it starts as `torch.save` starts: a zip archive, or a pickle before torch 1.6."""
    return path.is_file() and (starts_as_zip(path) or _start(path).startswith(_PICKLE_MAGICS))


def starts_as_zip(path: Path) -> bool:
    return _start(path).startswith(_ZIP_MAGIC)


def is_safetensors_file(path: Path) -> bool:
    """Whether it starts with the length of a JSON header and its brace, or is named so."""
    if not path.is_file():
        return False
    start = _start(path)
    return start[8:9] == b"{" or (path.suffix == ".safetensors" and bool(start))


def is_huggingface_folder(path: Path) -> bool:
    return path.is_dir() and (path / HUGGINGFACE_CONFIG).is_file()


def is_yolo_file(path: Path) -> bool:
    """Whether it is an ONNX file, or a torch file that names a YOLOv8's classes or arrays."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".onnx":
        return True
    if not starts_as_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
            return any(mark in archive.read(n) for n in names for mark in _YOLO_MARKS)
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


class _Foreign(NamedTuple):
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], AnyModel]


def _read_yolo(path: Path) -> AnyModel:
    from samjax.convert.yolo import load_yolo

    return load_yolo(path)


def _read_torch(path: Path) -> Model:
    from samjax.convert import load_pth

    return load_pth(path)


def _read_safetensors(path: Path) -> Model:
    from samjax.convert import load_safetensors

    return load_safetensors(path)


def _read_huggingface(path: Path) -> Model:
    from samjax.convert import load_huggingface

    return load_huggingface(path)


_FOREIGN = (
    _Foreign(is_yolo_file, _read_yolo),
    _Foreign(is_torch_file, _read_torch),
    _Foreign(is_safetensors_file, _read_safetensors),
    _Foreign(is_huggingface_folder, _read_huggingface),
)


def _unrecognized(path: Path) -> str:
    if path.is_dir():
        if not any(path.iterdir()):
            return f"{path} is an empty directory."
        return (
            f"{path} has no {DESCRIPTION}: it is not a checkpoint directory of samjax, or one "
            "that was not written or copied to its end. Nor has it the config.json of a Hugging "
            "Face model."
        )
    start = _start(path)
    if not start:
        return f"{path} is an empty file."
    return (
        f"{path} is neither a checkpoint directory nor a torch file; it starts with {start!r}. "
        "It is no safetensors file either."
    )


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)
