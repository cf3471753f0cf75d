"""From what the head says to boxes in pixels of the model's input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from samjax.models.yolo.config import STRIDES
from samjax.models.yolo.yolo import YoloOutputs


def anchor_points(
    height: int, width: int
) -> tuple[Float32[np.ndarray, "A 2"], Float32[np.ndarray, "A"]]:
    """Centres (x, y) of the places of the three grids in pixels, and the stride of each.

    Raises `ValueError` for a side that is no multiple of 32.
    """
    if height % STRIDES[-1] or width % STRIDES[-1] or min(height, width) < 1:
        raise ValueError(
            f"an input of {height} x {width} pixels; both have to be multiples of {STRIDES[-1]}."
        )
    points, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        points.append((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride)
        strides.append(np.full(len(points[-1]), stride))
    return (
        np.concatenate(points).astype(np.float32),
        np.concatenate(strides).astype(np.float32),
    )


def decode_boxes(outputs: YoloOutputs, height: int, width: int) -> Float[Array, "B A D"]:
    """Boxes of the places of an input of `height` x `width` pixels, in these.

    (x0, y0, x1, y1), and with angles (x, y, width, height, turn): centre, sides, and by how many
    radians the box is turned from the x axis towards the y axis, from -pi/4 to 3 pi/4. A distance
    is the mean of its distribution over 0 to `reg_max` - 1 strides (Li et al. 2020, section 3.2).

    Raises `ValueError` where the outputs are not of an input of that size.
    """
    points, strides = anchor_points(height, width)
    batch, number, logits = outputs.boxes.shape
    if number != len(points):
        raise ValueError(
            f"outputs are of {number} places; an input of {height} x {width} pixels has "
            f"{len(points)}."
        )
    shares = jax.nn.softmax(outputs.boxes.reshape(batch, number, 4, logits // 4), axis=-1)
    distances = jnp.sum(shares * jnp.arange(logits // 4, dtype=shares.dtype), axis=-1)
    before, after = jnp.split(distances * strides[:, None], 2, axis=-1)
    if outputs.angles is None:
        return jnp.concatenate([points - before, points + after], axis=-1)
    turn = (jax.nn.sigmoid(outputs.angles) - 0.25) * math.pi
    along, across = jnp.split((after - before) / 2, 2, axis=-1)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    offset = jnp.concatenate([along * cos - across * sin, along * sin + across * cos], axis=-1)
    return jnp.concatenate([points + offset, before + after, turn], axis=-1)
