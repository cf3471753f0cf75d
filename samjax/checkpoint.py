"""Models in files: `Model`, `load` and `save_checkpoint`."""

import dataclasses
from typing import Any, Self

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from samjax.models.architecture import buffer_names, config_from_params
from samjax.models.config import Dtype, SamConfig
from samjax.models.params import Params, flatten, unflatten
from samjax.models.sam import Sam


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A model's arrays and its config: what predictor, generator and user code take.

    A pytree whose leaves are the arrays, so that it passes through `jax.jit` and `jax.grad`.
    `params` is a nested dict of arrays (typed loosely, since JAX puts other leaves in as well).
    """

    params: Any
    config: SamConfig = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_params(cls, params: Params) -> Self:
        """With the config that the shapes show (`config_from_params`)."""
        return cls(params, config_from_params(params))

    @classmethod
    def init(cls, config: SamConfig, key: PRNGKeyArray | Array) -> Self:
        """With random weights, float32."""
        module = Sam(config, rngs=nnx.Rngs(key))
        return cls(nnx.to_pure_dict(nnx.split(module)[1]), config)

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def astype(self, dtype: Dtype) -> Self:
        """With parameters of another type; what the modules compute in (`config.dtype`) stays.

        Constants keep theirs: the positional encoding would lose several pixels in bfloat16.
        """
        keep = buffer_names(self.config)
        leaves = flatten(self.params)
        cast = {n: x if n in keep else x.astype(dtype) for n, x in leaves.items()}
        return dataclasses.replace(self, params=unflatten(cast))
