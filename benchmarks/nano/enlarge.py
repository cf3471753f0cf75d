"""Gives a nano of 512 pixels, whose embedding has stride 8, twice the input and stride 16.

    python -m benchmarks.nano.enlarge nano-training/average nano-training/stage4-1024

Each cell of the new embedding starts as the mean of the four that the old model would have had
there: what was a feature of stride 8 comes as a patch of 2x2 from then on, with a quarter of the
old kernel at each of its places, and so do the finer ones. The backbone sees everything at twice
the size; prompts, decoder and masks stay as large as they were.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.nano.grow import write
from samjax.checkpoint import Model
from samjax.models.config import EfficientNetLiteConfig
from samjax.models.params import flatten, unflatten

NECK = "image_encoder.neck"


def main(argv: Sequence[str] | None = None) -> None:
    write(enlarged, __doc__, argv)


def enlarged(model: Model) -> Model:
    """In float32. Raises `ValueError` for a model without EfficientNet-Lite of stride 8."""
    old = model.config.image_encoder
    if not isinstance(old, EfficientNetLiteConfig) or old.output_stride != 8:
        raise ValueError("only an EfficientNet-Lite with output_stride 8 can be enlarged so")
    encoder = dataclasses.replace(
        old, image_size=2 * old.image_size, output_stride=16,
        detail_strides=(*old.detail_strides, 8),
    )  # fmt: skip
    leaves = {name: np.asarray(x) for name, x in flatten(model.astype("float32").params).items()}
    finest = f"{NECK}.details.{len(old.detail_strides)}.kernel"
    leaves[finest] = leaves.pop(f"{NECK}.laterals.0.kernel")[None, None]
    bias = leaves.pop(f"{NECK}.laterals.0.bias")
    for i in range(len(encoder.detail_strides)):
        name = f"{NECK}.details.{i}.kernel"
        leaves[name] = np.tile(leaves[name], (2, 2, 1, 1)) / 4
    for i in range(len(encoder.feature_widths)):
        for part in ("kernel", "bias"):
            leaves[f"{NECK}.laterals.{i}.{part}"] = leaves.pop(f"{NECK}.laterals.{i + 1}.{part}")
    leaves[f"{NECK}.laterals.0.bias"] = leaves[f"{NECK}.laterals.0.bias"] + bias
    return Model(unflatten(leaves), model.config.replace(image_encoder=encoder), model.everything)


if __name__ == "__main__":
    main()
