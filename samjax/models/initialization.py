"""Random parameters of any model, drawn by a program that is quick to compile."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from samjax.models.params import Params

OPTIONS = {"xla_backend_optimization_level": 1}
"""For XLA. A program of hundreds of small loops that run once: with all optimizations compiling it
takes half as long again (ViT-B on two cores: 13 s instead of 9), with none running it takes 8 s.
"""


def random_params(model: Callable[..., nnx.Module], config: Any, key: jax.Array) -> Params:
    """The arrays of `model(config, rngs=...)`, a class and its config.

    Within a caller's program, which has options of its own, they are drawn as a part of it.
    """
    within = isinstance(key, jax.core.Tracer)
    return (_drawn if within else _compiled)(model, config, key)


def _drawn(model: Callable[..., nnx.Module], config: Any, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.split(model(config, rngs=nnx.Rngs(params=key)))[1])


_compiled = jax.jit(_drawn, static_argnums=(0, 1), compiler_options=OPTIONS)
