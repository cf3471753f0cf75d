"""What the scripts share that give a trained nano more than it had."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import samjax
from samjax.checkpoint import Model, save_checkpoint
from samjax.inference import init_params
from samjax.models.config import EfficientNetLiteConfig
from samjax.models.params import flatten, unflatten


def write(change: Callable[[Model], Model], doc: str | None, argv: Sequence[str] | None) -> None:
    """The command line of such a script: SOURCE, changed, to TARGET."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    save_checkpoint(args.target, change(samjax.load(args.source)), overwrite=True)
    print(args.target)


def grown(model: Model, **changes: Any) -> Model:
    """The model with `changes` in its image encoder's config: what it has no parameters for starts
    as in a new one. In float32. Raises `ValueError` for a model without EfficientNet-Lite."""
    if not isinstance(model.config.image_encoder, EfficientNetLiteConfig):
        raise ValueError("only the image encoder of nano can be given more parts")
    encoder = dataclasses.replace(model.config.image_encoder, **changes)
    config = model.config.replace(image_encoder=encoder)
    old = flatten(model.astype("float32").params)
    leaves = {name: old.get(name, x) for name, x in flatten(init_params(config)).items()}
    return Model(unflatten(leaves), config, model.everything)
