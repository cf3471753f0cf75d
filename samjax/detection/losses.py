"""The loss that a YOLOv8 learns boxes and classes by.

Places are assigned to things by how well they do already (task alignment, Feng et al. 2021, section
3.2); overlap is the complete IoU (Zheng et al. 2020), and each side of a box a distribution (Li et
al. 2020).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from samjax.models.yolo import YoloOutputs, anchor_points, decode_boxes

PLACES = 10
"""At most this many places learn of one thing."""
SCORE_POWER, IOU_POWER = 0.5, 6.0
_TINY = 1e-9


class Truth(NamedTuple):
    """What is in `B` inputs, `G` things in each: boxes (x0, y0, x1, y1) in pixels of the input,
    class numbers, and which of the rows are things at all."""

    boxes: Float[Array | np.ndarray, "B G 4"]
    classes: Int[Array | np.ndarray, "B G"]
    valid: Bool[Array | np.ndarray, "B G"]


class DetectionLoss(NamedTuple):
    """`total` is 7.5 times `boxes`, 0.5 times `classes` and 1.5 times `distances`."""

    total: Float[Array, ""]
    boxes: Float[Array, ""]
    classes: Float[Array, ""]
    distances: Float[Array, ""]


def detection_loss(outputs: YoloOutputs, truth: Truth, height: int, width: int) -> DetectionLoss:
    """Of an input of `height` x `width` pixels; masks and angles are not looked at.

    Raises `ValueError` where the outputs are not of an input of that size.
    """
    points, strides = anchor_points(height, width)
    boxes = decode_boxes(outputs._replace(angles=None), height, width)
    scores = jax.nn.sigmoid(jax.lax.stop_gradient(outputs.classes))
    thing, weights = jax.vmap(_assign, in_axes=(0, 0, 0, 0, 0, None))(
        jax.lax.stop_gradient(boxes), scores, jnp.asarray(truth.boxes), jnp.asarray(truth.classes),
        jnp.asarray(truth.valid), points,
    )  # fmt: skip
    total = jnp.maximum(weights.sum(), 1.0)
    wanted = jnp.take_along_axis(jnp.asarray(truth.classes), thing, axis=1)
    targets = jax.nn.one_hot(wanted, outputs.classes.shape[-1]) * weights[..., None]
    classes = optax.sigmoid_binary_cross_entropy(outputs.classes, targets).sum() / total
    true = jnp.take_along_axis(jnp.asarray(truth.boxes), thing[..., None], axis=1)
    overlap = complete_iou(boxes, true)
    box = (weights * (1 - overlap)).sum() / total
    distances = (weights * _distribution(outputs, true, points, strides)).sum() / total
    return DetectionLoss(7.5 * box + 0.5 * classes + 1.5 * distances, box, classes, distances)


def complete_iou(
    a: Float[Array | np.ndarray, "*L 4"], b: Float[Array | np.ndarray, "*L 4"]
) -> Float[Array, "*L"]:
    """The IoU of boxes, less the distance of their centres and the difference of their shapes."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    iou = _iou(a, b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    diagonal = jnp.square(high - low).sum(axis=-1) + _TINY
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = jnp.square(centres).sum(axis=-1) / diagonal
    angles = [jnp.arctan2(*_positive_sides(box)) for box in (a, b)]
    shape = 4 / math.pi**2 * jnp.square(angles[0] - angles[1])
    share = jax.lax.stop_gradient(shape / (1 - iou + shape + _TINY))
    return iou - distance - share * shape


def _positive_sides(box: Array) -> tuple[Array, Array]:
    sides = jnp.maximum(box[..., 2:] - box[..., :2], 1e-3)
    return sides[..., 0], sides[..., 1]


def _iou(a: Array, b: Array) -> Array:
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.prod(jnp.maximum(sides, 0), axis=-1)
    areas = [jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), axis=-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared + _TINY)


def _assign(
    boxes: Array, scores: Array, true: Array, classes: Array, valid: Array, points: np.ndarray
) -> tuple[Array, Array]:
    """Of one picture: for each place the number of the thing that it learns, and a weight, which is
    0 for a place that learns of none."""
    low, high = points - true[:, None, :2], true[:, None, 2:] - points
    inside = (jnp.minimum(low, high).min(axis=-1) > 0) & valid[:, None]
    iou = _iou(true[:, None], boxes)
    alignment = scores[:, classes].T ** SCORE_POWER * iou**IOU_POWER
    alignment = jnp.where(inside, alignment + _TINY, 0)
    best, _ = jax.lax.top_k(alignment, min(PLACES, alignment.shape[1]))
    chosen = inside & (alignment >= jnp.maximum(best[:, -1:], _TINY))
    iou = jnp.where(chosen, iou + _TINY, 0)
    thing = jnp.argmax(iou, axis=0)
    chosen &= jnp.arange(len(true))[:, None] == thing
    alignment = jnp.where(chosen, alignment, 0)
    largest = alignment.max(axis=1, keepdims=True) + _TINY
    weights = alignment / largest * jnp.where(chosen, iou, 0).max(axis=1, keepdims=True)
    return thing, weights.sum(axis=0)


def _distribution(
    outputs: YoloOutputs, true: Array, points: np.ndarray, strides: np.ndarray
) -> Array:
    """Cross entropy of the sides' distributions with the two nearest whole distances."""
    batch, number, logits = outputs.boxes.shape
    steps = logits // 4
    sides = jnp.concatenate([points - true[..., :2], true[..., 2:] - points], axis=-1)
    sides = jnp.clip(sides / strides[:, None], 0, steps - 1.01)
    before = jnp.floor(sides).astype(jnp.int32)
    share = sides - before.astype(sides.dtype)
    logs = jax.nn.log_softmax(outputs.boxes.reshape(batch, number, 4, steps), axis=-1)
    low = jnp.take_along_axis(logs, before[..., None], axis=-1)[..., 0]
    high = jnp.take_along_axis(logs, before[..., None] + 1, axis=-1)[..., 0]
    return -(low * (1 - share) + high * share).mean(axis=-1)
