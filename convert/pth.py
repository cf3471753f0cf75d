"""Torch files: read without running anything in them, written whole or not at all."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from samjax.checkpoint import Model, is_torch_file, starts_as_zip, write_beside
from samjax.convert.state_dict import from_state_dict, to_state_dict
from samjax.models.params import describe, flatten
from samjax.writing import check_target

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("model", "state_dict")
_PARALLEL = "module."
_FORBIDDEN = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)")


def load_pth(path: str | os.PathLike) -> Model:
    """A model from a torch file in Meta's names, of any size; each array keeps its type.

    Warns about weights that are not finite, and about what `read_state_dict` had to unwrap. Raises
    what `read_state_dict` and `from_state_dict` raise, with the path.
    """
    state_dict = read_state_dict(path)
    try:
        model = from_state_dict(state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if broken := [name for name, tensor in state_dict.items() if not tensor.isfinite().all()]:
        _warn_not_finite(path, broken)
    return model


def warn_if_not_finite(path: Path, model: Model) -> None:
    """Names the arrays that have values which are NaN or infinite, by our names."""
    broken = [name for name, x in flatten(model.params).items() if not jnp.isfinite(x).all()]
    if broken:
        _warn_not_finite(path, broken)


def _warn_not_finite(path: str | os.PathLike, names: list[str]) -> None:
    warnings.warn(
        f"{path} has weights that are NaN or infinite.\n{describe({'tensors': names})}",
        stacklevel=3,
    )


def save_pth(path: str | os.PathLike, model: Model, *, overwrite: bool = False) -> None:
    """Writes a state dict as Meta's `load_state_dict` takes it; types are kept.

    `overwrite` replaces a torch file, and nothing else. Raises `FileExistsError`, and `OSError` if
    the path cannot be written.
    """
    torch = _import_torch()
    path = Path(path)
    check_target(path, "a torch file", ours=is_torch_file(path), overwrite=overwrite)
    state_dict = {name: to_torch(array) for name, array in to_state_dict(model).items()}
    with write_beside(path) as staged:
        torch.save(state_dict, staged)


def read_state_dict(path: str | os.PathLike) -> dict[str, Any]:
    """The names and tensors of a torch file, on the CPU, mapped from the file where possible.

    Unwraps a training checkpoint's "model" or "state_dict" and the `module.` of DataParallel, with
    a warning that says so. Raises `FileNotFoundError`; `ImportError` without torch; `ValueError`
    for a file that is no torch file, is damaged, holds no state dict, or would run code, which is
    found out without running it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if not is_torch_file(path):
        raise ValueError(f"{path} is not a torch file: it is empty, a folder or something else.")
    content = _read(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict.")
    content, notes = _unwrap(content)
    if notes:
        warnings.warn(f"{path}: {' '.join(notes)}", stacklevel=3)
    strange = [repr(name) for name in content if not isinstance(name, str)]
    if strange:
        raise ValueError(f"{path} holds no state dict.\n{describe({'keys not names': strange})}")
    return dict(content)


def to_torch(array: np.ndarray) -> "torch.Tensor":
    """A tensor that shares the array's memory; bfloat16 stays bfloat16."""
    torch = _import_torch()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read(path: Path) -> Any:
    torch = _import_torch()
    zipped = starts_as_zip(path)
    if zipped and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged or was not copied to its end: the archive has no end.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except pickle.UnpicklingError as error:
        forbidden = _FORBIDDEN.search(str(error))
        what = f"would have to run {forbidden[1]}" if forbidden else "is more than tensors"
        raise ValueError(_refusal(path, what)) from None
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(_refusal(path, "is a TorchScript program")) from None
        raise ValueError(
            f"{path} is damaged, was not copied to its end, or is not a torch file "
            f"({type(error).__name__}: {error})"
        ) from error


def _refusal(path: Path, what: str) -> str:
    return (
        f"{path} was refused, and nothing in it was run: it {what}, and such a file can run any "
        "code when it is read (or it is damaged). If you trust where it comes from, open it with "
        "torch yourself and save only the tensors: torch.save(model.state_dict(), path)."
    )


def _unwrap(content: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[str]]:
    notes = []
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            others = [str(name) for name in content if name != wrapper]
            ignored = f", and {', '.join(others)} is left out" if others else ""
            notes.append(f"The state dict is taken from {wrapper!r}{ignored}.")
            content = content[wrapper]
            break
    if content and all(str(name).startswith(_PARALLEL) for name in content):
        notes.append(f"The prefix {_PARALLEL!r} of every name is dropped.")
        content = {str(name).removeprefix(_PARALLEL): value for name, value in content.items()}
    return content, notes


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading and writing torch files needs torch, which is not installed: "
            "pip install 'samjax[convert]'"
        ) from error
    return torch
