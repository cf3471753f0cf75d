"""Arrays in a torch file whose pickle names classes that need not be installed.

Ultralytics' files hold whole modules. Here tensors become NumPy arrays, every class an inert stub
that keeps what the file says of it, and nothing is imported or run. Torch is not needed.
"""

import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_BUILTINS = ("builtins", "__builtin__")
_CONTAINERS = {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "tuple": tuple}
_INERT = {"argparse", "collections", "datetime", "pathlib", "types"}
"""Modules of the standard library whose classes are kept as stubs; others are refused."""


class Stub:
    """What the file says of an object whose class is not known: its state, items and arguments."""

    name = ""

    def __new__(cls, *arguments: Any, **_: Any) -> "Stub":
        self = super().__new__(cls)
        self.arguments = arguments
        self.state = {}
        self.items = []
        return self

    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Any) -> None:
        self.items.extend(values)

    def get(self, key: str) -> Any:
        """An attribute of the object, None where it has none."""
        return self.state.get(key) if isinstance(self.state, Mapping) else None


def read_torch_zip(path: str | os.PathLike) -> Any:
    """The content of a file by `torch.save`, of version 1.6 or later, with stubs for its classes.

    Raises `FileNotFoundError`; `ValueError` for what is no such file, is damaged, or names a
    function or class of Python itself that data has no need of, which would be run elsewhere.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError("it has no data.pkl, as a file by torch.save has")
            folder = pickles[0].removesuffix("data.pkl")
            with archive.open(pickles[0]) as stream:
                return _Unpickler(stream, archive, folder).load()
    except _Refused as refused:
        raise ValueError(
            f"{path} was refused, and nothing in it was run: it would have to run {refused}, and "
            "such a file can run any code when it is read."
        ) from None
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, was not copied to its end, or is not a torch file "
            f"({type(error).__name__}: {error})"
        ) from error


def module_arrays(module: Stub, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a module's state dict, as torch would name them."""
    for kind in ("_parameters", "_buffers"):
        for name, array in (module.get(kind) or {}).items():
            if isinstance(array, np.ndarray):
                yield prefix + name, array
    for name, child in (module.get("_modules") or {}).items():
        if isinstance(child, Stub):
            yield from module_arrays(child, f"{prefix}{name}.")


class _Refused(Exception):
    """The name of what the file would run."""


class _Unpickler(pickle.Unpickler):
    """Knows tensors and a few containers; makes stubs of the rest."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(stream, encoding="utf-8")
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return _tensor
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if module == "torch" and name == "Size":
            return tuple
        if module in _BUILTINS and name in _CONTAINERS:
            return _CONTAINERS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        root = module.partition(".")[0]
        if root in _BUILTINS or (root in sys.stdlib_module_names and root not in _INERT):
            raise _Refused(f"{module}.{name}")
        return type(name, (Stub,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError(f"a storage of an unknown kind: {pid!r}")
        values = np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)
        if len(values) < count:
            raise ValueError(f"data/{key} has {len(values)} values; expected {count}")
        return values


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of size {size} and stride {stride}")
    if math.prod(size) and offset + sum(
        (n - 1) * s for n, s in zip(size, stride, strict=True)
    ) >= len(storage):
        raise ValueError(f"a tensor of size {size} that is longer than its storage")
    width = storage.dtype.itemsize
    strides = tuple(width * s for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _parameter(data: Any, *_: Any) -> Any:
    return data
