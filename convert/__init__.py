"""Foreign checkpoints to samjax and back. The only place that may import torch, and only when it
reads or writes a torch file."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp

from samjax.checkpoint import Model, is_torch_file, load, locate, save_checkpoint
from samjax.convert.pth import load_pth, save_pth
from samjax.convert.state_dict import from_state_dict, to_state_dict
from samjax.convert.verify import Report
from samjax.convert.verify import verify as _verify
from samjax.models.config import Dtype, EverythingThresholds
from samjax.models.params import describe, flatten

__all__ = ["Conversion", "convert", "from_state_dict", "load_pth", "save_pth", "to_state_dict"]

Format = Literal["meta", "orbax"]


class Conversion(NamedTuple):
    """What `convert` wrote. `model` is read back from the target; `report` is None if not asked."""

    source: Path
    target: Path
    format: Format
    model: Model
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
    """Reads whatever `samjax.load` reads and writes it to `target`, bit for bit.

    `to` is "orbax" (a checkpoint directory) or "meta" (a `.pth` in Meta's names, or MobileSAM's);
    without it, a target that ends in `.pth` or `.pt` is that. `dtype` is the parameters' type
    there, if it is another.
    `everything` are thresholds for the target to carry, beside those of the source; a `.pth` holds
    arrays only and carries none. `verify` runs Meta's own model from the `.pth` of the two beside
    the other one (`samjax.convert.verify`).

    Raises what `load`, `save_checkpoint`, `save_pth` and `verify` raise, and `ValueError` for
    values that `dtype` cannot hold and thresholds that the target cannot carry.
    """
    path, target = locate(source), Path(target)
    to = to or ("meta" if target.suffix in (".pth", ".pt") else "orbax")
    if to not in ("meta", "orbax"):
        raise ValueError(f"to is {to!r}; use 'orbax' or 'meta'.")
    if everything and to == "meta":
        raise ValueError(f"{target} is to be a .pth, which carries no thresholds for everything.")
    pth = target if to == "meta" else path
    if verify and to == "orbax" and not is_torch_file(path):
        raise ValueError(
            f"{path} is not a torch file and {target} will not be one either: there is no "
            "original to verify against."
        )
    save = save_pth if to == "meta" else save_checkpoint
    model = _changed(load(source), dtype, everything or {})
    save(target, model, overwrite=overwrite)
    model = load(target) if verify and to == "orbax" else model
    return Conversion(path, target, to, model, _verify(pth, model) if verify else None)


def _changed(model: Model, dtype: Dtype | None, everything: Mapping[str, float]) -> Model:
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
