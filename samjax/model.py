"""`Model`: arrays and their config."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from samjax.models.architecture import buffer_names, config_from_params
from samjax.models.config import Dtype, EverythingThresholds, Precision, SamConfig
from samjax.models.params import Params, flatten, unflatten

Placement = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""Where arrays are to lie: the same for all, or by an array's dotted name and shape."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A model's arrays and its config: what predictor, generator and user code take.

    A pytree whose leaves are the arrays, so that it passes through `jax.jit` and `jax.grad`.
    `params` is a nested dict of arrays (typed loosely, since JAX puts other leaves in as well).
    `everything` are the thresholds that the generator uses where its caller names none.
    """

    params: Any
    config: SamConfig = dataclasses.field(metadata={"static": True})
    everything: EverythingThresholds = dataclasses.field(
        default=EverythingThresholds(), metadata={"static": True}
    )

    @classmethod
    def from_params(cls, params: Params) -> "Model":
        """With the config that the shapes show (`config_from_params`)."""
        return cls(params, config_from_params(params))

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def astype(self, dtype: Dtype) -> "Model":
        """With parameters of another type; what the modules compute in (`config.dtype`) stays:
        `at_precision` changes both.

        Constants keep theirs: in bfloat16 the positional encoding would lose several pixels.
        """
        params = cast_params(self.params, dtype, keep=buffer_names(self.config))
        return dataclasses.replace(self, params=params)

    def at_precision(self, precision: Precision) -> "Model":
        """Computed in that (`SamConfig.at_precision`), with parameters of that type, so that none
        is converted at each call; "int8" rounds them at each, from bfloat16."""
        config = self.config.at_precision(precision)
        return dataclasses.replace(self, config=config).astype(config.dtype)

    def place(self, sharding: Placement) -> "Model":
        """With the arrays laid out over devices. Raises `ValueError` for one that cannot be."""
        return dataclasses.replace(self, params=place_params(self.params, sharding))


def cast_params(
    params: Params, dtype: Dtype, *, keep: frozenset[str] = frozenset()
) -> Params:  # fmt: skip
    """With arrays of another type, but for those of the dotted names `keep`."""
    leaves = flatten(params)
    return unflatten({n: x if n in keep else jnp.asarray(x, dtype) for n, x in leaves.items()})


def place_params(params: Params, sharding: Placement) -> Params:
    """With arrays laid out over devices. Raises `ValueError` for one that cannot be."""
    leaves = flatten(params)
    return unflatten({
        name: jax.device_put(x, placement(sharding, name, x.shape)) for name, x in leaves.items()
    })  # fmt: skip


def placement(
    sharding: Placement, name: str, shape: tuple[int, ...]
) -> jax.sharding.Sharding:  # fmt: skip
    """The sharding of one array. Raises `ValueError` that names it where it cannot be cut so."""
    chosen = sharding if isinstance(sharding, jax.sharding.Sharding) else sharding(name, shape)
    if not isinstance(chosen, jax.sharding.Sharding):
        raise ValueError(
            f"sharding gives a {type(chosen).__name__} for {name}; expected a jax.sharding.Sharding"
        )
    try:
        chosen.shard_shape(shape)
    except ValueError as error:
        raise ValueError(
            f"{name} of shape {shape} cannot be laid out as {chosen}: {error} Give a function of "
            "name and shape as sharding, which chooses for each array."
        ) from None
    return chosen
