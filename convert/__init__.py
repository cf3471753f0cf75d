"""Foreign checkpoints to samjax and back. The only place that may import torch, and only when it
reads or writes a torch file."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from samjax.buckets import is_in_a_bucket
from samjax.checkpoint import Model, is_torch_file, load_any, make_ready, save_checkpoint
from samjax.convert.huggingface import (
    load_huggingface,
    load_safetensors,
    save_huggingface,
    save_safetensors,
)
from samjax.convert.pth import load_pth, save_pth
from samjax.convert.state_dict import from_state_dict, to_state_dict
from samjax.convert.verify import Report
from samjax.convert.verify import verify as _verify
from samjax.kinds import AnyModel
from samjax.models.config import Dtype, EverythingThresholds
from samjax.models.params import describe, flatten

__all__ = [
    "Conversion",
    "convert",
    "from_state_dict",
    "load_huggingface",
    "load_pth",
    "load_safetensors",
    "save_huggingface",
    "save_pth",
    "save_safetensors",
    "to_state_dict",
]

Format = Literal["meta", "huggingface", "safetensors", "orbax"]

_SAVE: dict[Format, Any] = {
    "meta": save_pth,
    "huggingface": save_huggingface,
    "safetensors": save_safetensors,
    "orbax": save_checkpoint,
}
_BY_SUFFIX: dict[str, Format] = {
    ".pth": "meta",
    ".pt": "meta",
    ".safetensors": "safetensors",
}


class Conversion(NamedTuple):
    """What `convert` wrote. `model` is read back from the target; `report` is None if not asked."""

    source: Path | str
    target: Path | str
    format: Format
    model: AnyModel
    report: Report | None


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: Format | None = None,
    dtype: Dtype | None = None,
    everything: Mapping[str, float] | None = None,
    overwrite: bool = False,
    verify: bool = False,
) -> Conversion:
    """Reads what `samjax.load` or `samjax.detection.load` reads and writes it to `target`, bit for
    bit.

    `to` is "orbax" (a checkpoint directory, also in a bucket), "meta" (a torch file in Meta's
    names, which Ultralytics reads too, or in HQ-SAM's or MobileSAM's), "huggingface" (a folder for
    `transformers.SamModel`) or "safetensors" (one file in the same names). Without it the name of
    the target says it: `.pth` and `.pt` are Meta's, `.safetensors` is that, and a folder is Orbax.
    `dtype` is the parameters' type there, if it is another. `everything` are thresholds for the
    target to carry, beside those of the source; only "orbax" carries any. `verify` runs the
    original model from the `.pth` of the two beside the other one (`samjax.convert.verify`). A
    YOLOv8 goes to "orbax" only, and there is no original of it to run.

    Raises what `load`, `save_checkpoint`, `save_pth`, `save_huggingface` and `verify` raise, and
    `ValueError` for values that `dtype` cannot hold and thresholds that the target cannot carry.
    """
    here = os.fspath(target) if is_in_a_bucket(target) else Path(target)
    to = to or _BY_SUFFIX.get(Path(target).suffix, "orbax")
    if to not in _SAVE:
        raise ValueError(f"to is {to!r}; use one of {', '.join(map(repr, _SAVE))}.")
    if to != "orbax" and is_in_a_bucket(target):
        raise ValueError(f"{target} is in a bucket, where only Orbax folders are written.")
    if everything and to != "orbax":
        raise ValueError(f"{target} is to be {to!r}, which carries no thresholds for everything.")
    path = str(source) if is_in_a_bucket(source) else make_ready(source)
    pth = Path(target) if to == "meta" else path
    if verify and to != "meta" and not (isinstance(pth, Path) and is_torch_file(pth)):
        raise ValueError(
            f"{path} is not a torch file and {target} will not be one either: there is no "
            "original to verify against."
        )
    model = load_any(source)
    if not isinstance(model, Model) and (to != "orbax" or everything or verify):
        raise ValueError(
            f"{source} is a YOLOv8, which is written as an Orbax folder only, without thresholds "
            "for everything, and not verified."
        )
    model = _changed(model, dtype, everything or {})
    _SAVE[to](here, model, overwrite=overwrite)
    if not verify:
        return Conversion(path, here, to, model, None)
    model = load_any(here) if to != "meta" else model
    assert isinstance(model, Model)
    return Conversion(path, here, to, model, _verify(pth, model))


def _changed(model: AnyModel, dtype: Dtype | None, everything: Mapping[str, float]) -> AnyModel:
    if isinstance(model, Model):
        thresholds = EverythingThresholds.from_dict({**model.everything.to_dict(), **everything})
        model = dataclasses.replace(model, everything=thresholds)
    if dtype is None:
        return model
    cast = model.astype(dtype)
    before, after = flatten(model.params), flatten(cast.params)
    lost = [n for n, x in before.items() if jnp.any(jnp.isfinite(x) & ~jnp.isfinite(after[n]))]
    if lost:
        raise ValueError(f"{dtype} cannot hold some values.\n{describe({'arrays': lost})}")
    return cast
