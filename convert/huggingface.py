"""Hugging Face `SamModel` folders and safetensors files, without torch unless the weights are a
`pytorch_model.bin`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from samjax.checkpoint import Model, write_beside
from samjax.convert.huggingface_config import config_to_json, processor_to_json, read_config
from samjax.convert.key_maps.huggingface import HUGGINGFACE, by_ends
from samjax.convert.pth import read_state_dict, warn_if_not_finite
from samjax.convert.state_dict import from_state_dict
from samjax.convert.table import to_foreign
from samjax.models.params import flatten
from samjax.sources import HUGGINGFACE_CONFIG, is_safetensors_file
from samjax.writing import check_target

PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"

_FLOATS = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


def load_huggingface(path: str | os.PathLike) -> Model:
    """A model from a folder by `SamModel.save_pretrained`, of any size; each array keeps its type.

    Weights are looked for in `model.safetensors`, in several files with an index, and in
    `pytorch_model.bin`, which needs torch. The layer norms of the decoder have Meta's epsilon,
    1e-5, where `transformers` has 1e-6 by default: its outputs differ by that. Raises `ValueError`
    for a model that is not SAM, a `config.json` that contradicts the arrays, and what
    `from_state_dict` raises; `FileNotFoundError` where there are no weights.
    """
    path = Path(path)
    values = _read_json(path / HUGGINGFACE_CONFIG)
    kind = values.get("model_type")
    if kind != "sam":
        raise ValueError(
            f"{path} has a model of another kind: its {HUGGINGFACE_CONFIG} says model_type "
            f"{kind!r}, and samjax reads 'sam'."
        )
    processor = next((p for name in PROCESSOR_CONFIGS if (p := path / name).is_file()), None)
    try:
        arrays = _read_weights(path)
        model = from_state_dict(arrays)
        config = read_config(values, _read_json(processor) if processor else {}, model.config)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    warn_if_not_finite(path, model)
    return Model(model.params, config)


def save_huggingface(path: str | os.PathLike, model: Model, *, overwrite: bool = False) -> None:
    """Writes a folder that `SamModel.from_pretrained` and `SamProcessor.from_pretrained` read.

    `config.json` has Meta's epsilon for the decoder, so that `transformers` computes Meta's
    numbers. Types are kept; thresholds are not. `overwrite` replaces a folder of a SAM model, and
    nothing else. Raises `FileExistsError`, `ValueError` for a model that `transformers` has no
    place for, and `OSError` if the path cannot be written.
    """
    path = Path(path)
    arrays = to_huggingface(model)
    ours = (path / HUGGINGFACE_CONFIG).is_file() and (
        _read_json(path / HUGGINGFACE_CONFIG).get("model_type") == "sam"
    )
    check_target(path, "a Hugging Face folder of a SAM model", ours=ours, overwrite=overwrite)
    with write_beside(path) as folder:
        folder.mkdir()
        _write(folder / SAFETENSORS, arrays)
        _write_json(folder / HUGGINGFACE_CONFIG, config_to_json(model.config, _dtype(model)))
        _write_json(folder / PROCESSOR_CONFIGS[0], processor_to_json(model.config))


def load_safetensors(path: str | os.PathLike) -> Model:
    """A model from one safetensors file in Hugging Face's or Meta's names; arrays keep their type.

    Raises `ValueError` for a file that is damaged, and what `from_state_dict` raises.
    """
    try:
        model = from_state_dict(read_safetensors(Path(path)))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    warn_if_not_finite(Path(path), model)
    return model


def save_safetensors(path: str | os.PathLike, model: Model, *, overwrite: bool = False) -> None:
    """Writes one safetensors file in Hugging Face's names. `overwrite` replaces such a file only.

    Raises what `save_huggingface` raises.
    """
    path = Path(path)
    arrays = to_huggingface(model)
    check_target(
        path, "a safetensors file", ours=is_safetensors_file(path), overwrite=overwrite
    )  # fmt: skip
    with write_beside(path) as staged:
        _write(staged, arrays)


def to_huggingface(model: Model) -> dict[str, np.ndarray]:
    """Contiguous copies of a model's arrays in Hugging Face's names and layout; types are kept.

    Raises `ValueError` for arrays that `transformers.SamModel` has no place for.
    """
    try:
        foreign = to_foreign(
            HUGGINGFACE, {n: np.asarray(x) for n, x in flatten(model.params).items()}
        )
    except ValueError as error:
        raise ValueError(f"This model cannot be a transformers.SamModel. {error}") from None
    names = by_ends(foreign)
    return {names[name]: np.array(x, order="C") for name, x in foreign.items()}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The file's names and arrays. Raises `ValueError` for one that is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, was not copied to its end, or is not a safetensors file ({error})"
        ) from error


def parts_of_index(path: Path) -> list[str]:
    """The files that an index of weights names. Raises `ValueError` for one that is no index."""
    weight_map = _read_json(path).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, Mapping) else set()
    strange = [n for n in names if not isinstance(n, str) or Path(n).name != n or n.startswith(".")]
    if not names or strange:
        raise ValueError(
            f"{path} is not an index of weights: it has no weight_map of file names in its folder."
        )
    return sorted(names)


def _read_weights(folder: Path) -> dict[str, Any]:
    for name in (SAFETENSORS, TORCH):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [name]
        elif index.is_file():
            files = parts_of_index(index)
        else:
            continue
        if absent := [file for file in files if not (folder / file).is_file()]:
            raise ValueError(f"{folder} lacks {', '.join(absent)}, which its index names.")
        arrays: dict[str, Any] = {}
        for file in files:
            is_torch = name == TORCH
            arrays |= (
                read_state_dict(folder / file) if is_torch else read_safetensors(folder / file)
            )
        return arrays
    raise ValueError(f"{folder} has no weights: neither {SAFETENSORS} nor {TORCH}, nor an index.")


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """`transformers` wants to be told that the layout is torch's."""
    if strange := {str(x.dtype) for x in arrays.values() if x.dtype not in _FLOATS}:
        raise ValueError(
            f"safetensors are written in float32, float16 and bfloat16, not {strange}."
        )
    save_file(arrays, path, metadata={"format": "pt"})


def _dtype(model: Model) -> str:
    leaves = jax.tree.leaves(model.params)
    return str(max(leaves, key=lambda x: x.size).dtype)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected an object.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
