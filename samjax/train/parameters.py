"""What is trained: parts of the model by name, and low-rank additions to its attention.

Trained and frozen leaves are two flat dicts by dotted name (`samjax.models.params.flatten`), so
that gradients and optimizer state exist for the trained ones only. LoRA's arrays are trained under
names that begin with `lora.`, followed by the name of the array they change.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from samjax.models.architecture import abstract_params, buffer_names
from samjax.models.config import SamConfig
from samjax.models.params import Params, flatten, unflatten
from samjax.train.config import TrainConfig

Leaves = dict[str, Any]
"""Arrays by dotted name."""

LORA = "lora"


class Part(NamedTuple):
    """Prefixes of dotted names, whole components each, and whether LoRA is trained with them."""

    prefixes: tuple[str, ...]
    lora: bool = False


PARTS = {
    "all": Part(("",)),
    "decoder": Part(("mask_decoder",)),
    "hq": Part(("mask_decoder.hq",)),
    "decoder+neck": Part(("mask_decoder", "image_encoder.neck")),
    "lora": Part((), lora=True),
    "lora+decoder": Part(("mask_decoder",), lora=True),
}

LORA_TARGETS: tuple[tuple[str, int, tuple[tuple[str, int], ...]], ...] = (
    (r"image_encoder\.blocks\..*attn\.qkv\.kernel", 3, (("q", 0), ("v", 2))),
    (r"image_encoder\.stages\..*attn\.qkv\.kernel", 1, (("qkv", 0),)),
    (r"image_encoder\..*attn\.proj\.kernel", 1, (("out", 0),)),
    (r"image_encoder\.backbone\..*(expand|project)\.kernel", 1, (("out", 0),)),
    (r"image_encoder\.neck\.(laterals|blocks)\..*kernel", 1, (("out", 0),)),
)
"""Matrices that LoRA changes: a pattern for the name, into how many equal parts the output channels
are cut, and which of the parts get factors (Hu et al. 2021, section 4.2: queries and values).
TinyViT has them head by head, and its matrix gets factors as a whole. A
convolutional encoder gets them in its 1x1 convolutions and its neck."""


class Split(NamedTuple):
    trained: Leaves
    frozen: Leaves


def part(trained: str | tuple[str, ...]) -> Part:
    """The part with this name, or made of these prefixes. Raises `ValueError` for other names."""
    if isinstance(trained, tuple):
        return Part(trained)
    if trained not in PARTS:
        raise ValueError(f"trained is {trained!r}; use one of {list(PARTS)}, or names' prefixes.")
    return PARTS[trained]


def split_params(
    params: Params, config: SamConfig, train: TrainConfig, key: Array | None = None
) -> Split:
    """The leaves that `train.trained` names, with new LoRA factors drawn from `key`, and the rest.

    Buffers are never trained. Raises `ValueError` for a prefix that fits no parameter, and for
    LoRA without a `key` or on an image encoder without any of `LORA_TARGETS`.
    """
    wanted = part(train.trained)
    leaves = flatten(params)
    buffers = buffer_names(config)
    unused = [p for p in wanted.prefixes if not any(has_prefix(name, p) for name in leaves)]
    if unused:
        raise ValueError(f"no parameter of this model has a name that begins with {unused}.")
    names = {
        name
        for name in leaves
        if name not in buffers and any(has_prefix(name, p) for p in wanted.prefixes)
    }
    trained = {name: leaf for name, leaf in leaves.items() if name in names}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in names}
    if wanted.lora:
        if key is None:
            raise ValueError(f"trained is {train.trained!r}, whose new factors need a random key.")
        trained |= flatten({LORA: init_lora(key, params, rank=train.lora_rank)})
    return Split(trained, frozen)


def join_params(
    trained: Mapping[str, Any], frozen: Mapping[str, Any], config: SamConfig, train: TrainConfig
) -> Params:
    """The model's plain nested params again, with LoRA merged into the arrays it changes."""
    leaves = {**frozen, **trained}
    params = unflatten({name: leaves[name] for name in flatten(abstract_params(config))})
    lora = {name: leaf for name, leaf in trained.items() if has_prefix(name, LORA)}
    return merge_lora(params, unflatten(lora)[LORA], alpha=train.lora_alpha) if lora else params


def init_lora(key: Array, params: Params, *, rank: int) -> Params:
    """Factors for every target: a nested dict with {part: {"a": (in, r), "b": (r, out)}} at the
    place of each kernel.

    a is normal with variance 1 / in, b is zero, so that training starts at the model as it is
    (Hu et al. 2021, section 4.1). float32. Raises `ValueError` when there is no target.
    """
    factors: Leaves = {}
    for name, kernel in flatten(params).items():
        for label, _, width in _lora_parts(name, kernel):
            key, at_a = jax.random.split(key)
            d_in = kernel.shape[0]
            factors[f"{name}.{label}.a"] = jax.random.normal(at_a, (d_in, rank)) * d_in**-0.5
            factors[f"{name}.{label}.b"] = jnp.zeros((rank, width))
    if not factors:
        raise ValueError(
            "LoRA changes the matrices of the image encoder's attention, or of its 1x1 "
            "convolutions, and this image encoder has neither; train a part of it instead."
        )
    return unflatten(factors)


def merge_lora(params: Params, lora: Params, *, alpha: float) -> Params:
    """Plain params with W + (alpha / r) a b in place of each target W; the arguments stay as they
    are. Types are those of `params`."""
    leaves, factors = flatten(params), flatten(lora)
    merged = dict(leaves)
    for name, kernel in leaves.items():
        for label, start, width in _lora_parts(name, kernel):
            a = factors.get(f"{name}.{label}.a")
            if a is None:
                continue
            addition = (alpha / a.shape[1]) * (a @ factors[f"{name}.{label}.b"])
            columns = slice(start, start + width)
            merged[name] = merged[name].at[:, columns].add(addition.astype(kernel.dtype))
    return unflatten(merged)


def has_prefix(name: str, prefix: str) -> bool:
    """Whether the dotted `name` is `prefix` or below it: whole components, "" fits everything."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _lora_parts(name: str, kernel: Any) -> list[tuple[str, int, int]]:
    """Label, first output channel and number of channels of each part that gets factors."""
    if len(kernel.shape) != 2:
        return []
    for pattern, pieces, parts in LORA_TARGETS:
        if re.fullmatch(pattern, name):
            width = kernel.shape[1] // pieces
            return [(label, piece * width, width) for label, piece in parts]
    return []
