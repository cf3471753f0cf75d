"""AdamW with warm-up, decay, and rates by layer (Segment Anything, appendix A, "Training recipe").

Parameters are a flat dict by dotted name, as `samjax.train.parameters` splits them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from samjax.train.config import TrainConfig
from samjax.train.parameters import has_prefix

DECAYED = "kernel"
"""Last component of the names whose arrays decay: what multiplies, and neither biases, norms,
embeddings, tokens and relative positions nor LoRA's factors."""

_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)(\.|$)")
_BEFORE_BLOCKS = ("image_encoder.pos_embed", "image_encoder.patch_embed")


def make_optimizer(train: TrainConfig, names: Iterable[str]) -> optax.GradientTransformation:
    """Clipping, AdamW and the learning rate, for the trained parameters with these `names`.

    The rate of a parameter is `learning_rate_schedule` times its entry in
    `learning_rate_factors`, which scales its weight decay too, as in PyTorch's AdamW.
    """
    factors = learning_rate_factors(train, names)
    decayed = {name: name.rpartition(".")[2] == DECAYED for name in factors}
    clip = [optax.clip_by_global_norm(train.clip_norm)] if train.clip_norm else []
    chain = optax.chain(
        *clip,
        optax.scale_by_adam(b1=train.beta1, b2=train.beta2),
        optax.add_decayed_weights(train.weight_decay, mask=decayed),
        _scale_by(factors),
        optax.scale_by_learning_rate(learning_rate_schedule(train)),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with _optax_promotion():
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def learning_rate_schedule(train: TrainConfig) -> optax.Schedule:
    """From the number of updates made so far to the rate: linear warm-up, then the decay.

    "step" divides by ten at each of `decay_at`, "cosine" falls to zero at `total_steps`,
    "constant" stays. The first update already has a rate above zero.
    """
    peak, warmup = train.learning_rate, train.warmup_steps
    if train.decay == "step":
        drops = {max(round(at * train.total_steps) - warmup, 1): 0.1 for at in train.decay_at}
        after = optax.piecewise_constant_schedule(peak, drops)
    elif train.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(train.total_steps - warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    joined = after
    if warmup:
        rise = optax.linear_schedule(peak / warmup, peak + peak / warmup, warmup)
        joined = optax.join_schedules([rise, after], [warmup])

    def rate(count: Any) -> Any:
        with _optax_promotion():
            return jnp.asarray(joined(count), jnp.float32)

    return rate


def learning_rate_factors(train: TrainConfig, names: Iterable[str]) -> dict[str, float]:
    """The factor of each parameter's rate: the decay of its layer times its own multiplier.

    In a ViT of L blocks the patch embedding and the positions have `layer_decay` ** (L + 1), block
    i has it to the power L - i, and everything after the blocks has 1 (BEiT's rule, in ViTDet's
    form, which SAM's encoder follows). LoRA's factors and encoders without blocks have 1.
    """
    names = list(names)
    blocks = [int(found[1]) for name in names if (found := _BLOCK.match(name))]
    depth = max(blocks, default=-1) + 1
    return {
        name: train.layer_decay ** _layers_above(name, depth)
        * _multiplier(train.learning_rate_multipliers, name)
        for name in names
    }  # fmt: skip


def _layers_above(name: str, depth: int) -> int:
    if depth and any(has_prefix(name, prefix) for prefix in _BEFORE_BLOCKS):
        return depth + 1
    found = _BLOCK.match(name)
    return depth - int(found[1]) if found else 0


def _multiplier(multipliers: tuple[tuple[str, float], ...], name: str) -> float:
    fitting = [(len(prefix), factor) for prefix, factor in multipliers if has_prefix(name, prefix)]
    return max(fitting)[1] if fitting else 1.0


def _scale_by(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda update, factor: update * factor, updates, dict(factors))

    return optax.stateless(scale)


def _optax_promotion():
    """Optax raises floats to powers of ints, which `jax_numpy_dtype_promotion` strict forbids."""
    return jax.numpy_dtype_promotion("standard")
