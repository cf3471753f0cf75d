"""Gives a nano that was trained without them the features of strides 2 and 4, weighted by zeros.

    python -m benchmarks.nano.add_details nano-training/stage2/model nano-training/stage2-details

The model that is written predicts what the other one does; what is new in it can be trained.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import samjax
from samjax.checkpoint import Model, save_checkpoint
from samjax.inference import init_params
from samjax.models.config import EfficientNetLiteConfig
from samjax.models.params import flatten, unflatten


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    save_checkpoint(args.target, with_details(samjax.load(args.source)), overwrite=True)
    print(args.target)


def with_details(model: Model) -> Model:
    """In float32. Raises `ValueError` for a model without EfficientNet-Lite."""
    return grown(model, detail_strides=(2, 4))


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


if __name__ == "__main__":
    main()
