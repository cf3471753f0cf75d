"""`YoloModel`: arrays, config and class names, and the compiled program that runs them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from samjax.model import Placement, cast_params, place_params
from samjax.models.config import Dtype
from samjax.models.initialization import random_params
from samjax.models.params import Params
from samjax.models.yolo import Yolo, YoloConfig, YoloOutputs, decode_boxes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class YoloModel:
    """A YOLOv8's arrays, its config and the names of its classes, in their order.

    A pytree whose leaves are the arrays.
    """

    params: Any
    config: YoloConfig = dataclasses.field(metadata={"static": True})
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def astype(self, dtype: Dtype) -> "YoloModel":
        """With parameters of another type; what the modules compute in (`config.dtype`) stays."""
        return dataclasses.replace(self, params=cast_params(self.params, dtype))

    def place(self, sharding: Placement) -> "YoloModel":
        """With the arrays laid out over devices. Raises `ValueError` for one that cannot be."""
        return dataclasses.replace(self, params=place_params(self.params, sharding))

    def __call__(self, images: Float[Array | np.ndarray, "B H W 3"]) -> YoloOutputs:
        """`Yolo` on pictures of RGB in 0..1, compiled once for each shape of them.

        Raises `ValueError` for sides that are no multiples of 32.
        """
        return run(self.params, jnp.asarray(images), self.config)

    def boxes_and_scores(
        self, images: Float[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float[Array, "B A D"], Float[Array, "B A C"]]:
        """`decode_boxes` of the places, in pixels of `images`, and each class's score in 0..1."""
        return _decode(self.params, jnp.asarray(images), self.config)


def init_params(config: YoloConfig, seed: int = 0) -> Params:
    """Random parameters, for training from the start and for tests."""
    return random_params(Yolo, config, jax.random.key(seed))


def abstract_params(config: YoloConfig) -> Params:
    """Shapes and types of the parameters, without any memory."""
    return jax.eval_shape(functools.partial(random_params, Yolo, config), jax.random.key(0))


@functools.cache
def _graphdef(config: YoloConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: Yolo(config, rngs=nnx.Rngs(0))))[0]


@functools.partial(jax.jit, static_argnames="config")
def run(params: Params, images: Array, config: YoloConfig) -> YoloOutputs:
    return nnx.merge(_graphdef(config), params)(images)


@functools.partial(jax.jit, static_argnames="config")
def _decode(params: Params, images: Array, config: YoloConfig) -> tuple[Array, Array]:
    outputs = run(params, images, config)
    boxes = decode_boxes(outputs, images.shape[1], images.shape[2])
    return boxes, jax.nn.sigmoid(outputs.classes)
