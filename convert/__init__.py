"""Foreign checkpoints to samjax and back. The only place that may import torch, and only when it
reads or writes a torch file."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from samjax.checkpoint import Model, is_torch_file, load, save_checkpoint
from samjax.convert.pth import load_pth, save_pth
from samjax.convert.state_dict import from_state_dict, to_state_dict
from samjax.convert.verify import Report
from samjax.convert.verify import verify as _verify

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
    overwrite: bool = False,
    verify: bool = False,
) -> Conversion:
    """Reads whatever `samjax.load` reads and writes it to `target`, bit for bit.

    `to` is "orbax" (a checkpoint directory) or "meta" (a `.pth` in Meta's names); without it, a
    target that ends in `.pth` is Meta's. `verify` runs Meta's own model from the `.pth` of the two
    beside the other one (`samjax.convert.verify`). Raises what `load`, `save_checkpoint`,
    `save_pth` and `verify` raise.
    """
    source, target = Path(source), Path(target)
    to = to or ("meta" if target.suffix == ".pth" else "orbax")
    if to not in ("meta", "orbax"):
        raise ValueError(f"to is {to!r}; use 'orbax' or 'meta'.")
    pth = target if to == "meta" else source
    if verify and to == "orbax" and not is_torch_file(source):
        raise ValueError(
            f"{source} is not a torch file and {target} will not be one either: there is no "
            "original to verify against."
        )
    save = save_pth if to == "meta" else save_checkpoint
    model = load(source)
    save(target, model, overwrite=overwrite)
    model = load(target) if verify and to == "orbax" else model
    return Conversion(source, target, to, model, _verify(pth, model) if verify else None)
