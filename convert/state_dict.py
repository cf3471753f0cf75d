"""State dicts of any known names to models, and models to those of torch, without files."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from samjax.checkpoint import Model
from samjax.convert.key_maps.hq import HQ, HQ_TINY_VIT
from samjax.convert.key_maps.huggingface import (
    HUGGINGFACE,
    POSITIONAL,
    POSITIONAL_AGAIN,
    counted_through,
)
from samjax.convert.key_maps.meta import META
from samjax.convert.key_maps.mobile_sam import MOBILE_SAM
from samjax.convert.table import Table, Translation, to_foreign, to_ours, wrong_shapes
from samjax.models.architecture import abstract_params, config_from_params
from samjax.models.config import SamConfig
from samjax.models.params import describe, flatten, unflatten

_WHOSE = {
    META: "Meta's",
    HQ: "HQ-SAM's",
    MOBILE_SAM: "MobileSAM's",
    HQ_TINY_VIT: "HQ-SAM's TinyViT's",
    HUGGINGFACE: "Hugging Face's",
}
_TABLES = tuple(_WHOSE)
_PIXELS = ("pixel_mean", "pixel_std")
_FLOATS = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


def from_state_dict(state_dict: Mapping[str, Any]) -> Model:
    """A model from arrays or torch tensors in the names of Meta, HQ-SAM, MobileSAM or Hugging Face,
    of any size; each keeps its type.

    Whose they are shows in the names. The arrays are copied. Raises `ValueError` that lists
    everything which does not fit: names that are missing or unexpected, wrong shapes, values that
    are not float32, float16 or bfloat16.
    """
    arrays, problems = {}, []
    for name, value in state_dict.items():
        try:
            arrays[name] = _as_numpy(value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    arrays, pixels = _without_pixels(arrays)
    arrays = _without_the_second(arrays)
    arrays = {new: arrays[name] for name, new in counted_through(arrays).items()}
    table = max(_TABLES, key=lambda table: sum(map(bool, map(table.find_source, arrays))))
    translation = to_ours(table, arrays)
    if not translation.matches:
        raise ValueError(_foreign(state_dict, problems))
    config = _check(table, translation, problems)
    leaves = {name: jnp.array(x, copy=True) for name, x in translation.arrays.items()}
    ordered = {name: leaves[name] for name in flatten(abstract_params(config))}
    return Model(unflatten(ordered), config.replace(**pixels))


def to_state_dict(model: Model) -> dict[str, np.ndarray]:
    """Contiguous copies of a model's arrays in the names, layout and order of Meta, or of HQ-SAM
    or MobileSAM where it is such a model; types are kept."""
    arrays = {name: np.asarray(x) for name, x in flatten(model.params).items()}
    tables = [table for table in _TABLES if table is not HUGGINGFACE]
    table = max(tables, key=lambda table: sum(map(bool, map(table.find_target, arrays))))
    return {name: np.array(x, order="C") for name, x in to_foreign(table, arrays).items()}


def _without_pixels(
    arrays: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, ...]]]:
    """Some checkpoints carry Meta's constants of normalization; samjax has them in the config."""
    pixels = {
        name: tuple(float(f"{x:.6g}") for x in np.asarray(arrays[name], np.float32).ravel())
        for name in _PIXELS
        if name in arrays and arrays[name].size == 3
    }
    return {name: x for name, x in arrays.items() if name not in pixels}, pixels


def _without_the_second(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face has two names for one matrix, and older files have it twice."""
    if POSITIONAL_AGAIN not in arrays:
        return arrays
    arrays = dict(arrays)
    again = arrays.pop(POSITIONAL_AGAIN)
    if not np.array_equal(arrays.setdefault(POSITIONAL, again), again):
        raise ValueError(f"{POSITIONAL} and {POSITIONAL_AGAIN} differ; they are one matrix.")
    return arrays


def _check(table: Table, translation: Translation, not_arrays: list[str]) -> SamConfig:
    problems = {**translation.problems, "not usable": not_arrays}
    config, unread = None, ""
    if not problems["missing"]:
        try:
            config = config_from_params(unflatten(translation.arrays))
        except ValueError as error:
            unread = f"\nThe architecture cannot be read from the shapes: {error}"
    if config:
        expected = flatten(abstract_params(config))
        problems["of the wrong shape"] += wrong_shapes(table, translation, expected)
        problems["missing"] += [_name(table, n) for n in expected if n not in translation.matches]
        problems["unexpected"] += [
            _name(table, n) for n in translation.matches if n not in expected
        ]
    if config is None or any(problems.values()):
        raise ValueError(
            f"The checkpoint does not fit Segment Anything in {_WHOSE[table]} names.\n"
            f"{describe(problems)}{unread}"
        )
    return config


def _name(table: Table, target: str) -> str:
    match = table.find_target(target)
    return match.source if match else target


def _foreign(state_dict: Mapping[str, Any], problems: list[str]) -> str:
    names = ", ".join(list(state_dict)[:3]) or "it is empty"
    text = (
        "This is not a Segment Anything checkpoint: it has none of Meta's or Hugging Face's names "
        f"({len(state_dict)} entries: {names}{', ...' if len(state_dict) > 3 else ''})."
    )
    return text + ("\n" + describe({"not usable": problems}) if problems else "")


def _as_numpy(value: Any) -> np.ndarray:
    """The array or tensor as NumPy without a copy, where that is possible."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError("is a sparse or quantized tensor; expected a dense one")
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            value = value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            value = value.numpy()
    if not isinstance(value, np.ndarray | jax.Array):
        raise ValueError(f"is a {type(value).__name__}; expected an array")
    array = np.asarray(value)
    if array.dtype not in _FLOATS and not (array.dtype == np.int64 and array.ndim == 0):
        raise ValueError(f"has type {array.dtype}; expected float32, float16 or bfloat16")
    return array
