"""Simulated interactive prompting (Segment Anything, appendix A, "Training algorithm").

Functions are for one object; use `jax.vmap` for many. Masks are at the low resolution, prompts in
the model's frame, where pixel i of the input covers [i - 0.5, i + 0.5) as in the prompt encoder;
`scale` is the number of input pixels along the side of a low-resolution one. The tokens of a prompt
always stand in the same places: a box's corners or the first point and NOT_A_POINT, then the points
that were sampled, then PADDING (their order means nothing to the decoder).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from samjax.postprocess.masks import masks_to_boxes
from samjax.train.config import TrainConfig
from samjax.types import PointLabel, Predictions, Prompts


class FirstPrompt(NamedTuple):
    """What an object's interaction starts with. A single point is ambiguous, a box is not."""

    prompts: Prompts
    ambiguous: Bool[Array, "*L"]


class Chosen(NamedTuple):
    """The mask that a user would be shown: logits (h, w) and the decoder's estimate of its IoU."""

    logits: Float[Array, "*L h w"]
    iou_prediction: Float[Array, "*L"]


def pixels_inside(input_size: Int[Array, "2"], side: int, scale: float) -> Bool[Array, "side side"]:
    """The low-resolution pixels whose centre is in the picture of `input_size` (height, width)."""
    centres = (jnp.arange(side, dtype=jnp.float32) + 0.5) * scale
    height, width = input_size.astype(jnp.float32)
    return (centres < height)[:, None] & (centres < width)


def first_prompt(
    key: Key[Array, ""],
    target: Bool[Array, "h w"],
    input_size: Int[Array, "2"],
    *,
    train: TrainConfig,
    scale: float,
    box: Float[Array, "4"] | None = None,
) -> FirstPrompt:
    """A uniformly random point of the object or its noised box, by `first_point_probability`.

    Without a `box` it is that of `target`, whose pixels are coarse. The prompts have
    T = `train.num_tokens` tokens, zeros as mask and `has_mask` False. An object without a pixel
    gets a prompt without a meaning.
    """
    by_point, at_point, at_box = jax.random.split(key, 3)
    is_point = jax.random.bernoulli(by_point, train.first_point_probability)
    point, _ = sample_point(at_point, target, scale=scale)
    box = noised_box(
        at_box, bounding_box(target, scale=scale) if box is None else box, input_size,
        noise=train.box_noise, limit=train.box_noise_limit,
    )  # fmt: skip
    point_and_none = jnp.stack([point, jnp.zeros(2)])
    coords = jnp.where(is_point, point_and_none, box.reshape(2, 2))
    labels = jnp.where(
        is_point,
        jnp.array([PointLabel.FOREGROUND, PointLabel.NOT_A_POINT], jnp.int32),
        jnp.array([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], jnp.int32),
    )
    prompts = Prompts(
        jnp.zeros((train.num_tokens, 2)).at[:2].set(coords),
        jnp.full(train.num_tokens, PointLabel.PADDING, jnp.int32).at[:2].set(labels),
        jnp.zeros(target.shape),
        jnp.array(False),
    )
    return FirstPrompt(prompts, is_point)


def point_schedule(key: Key[Array, ""], *, train: TrainConfig) -> Bool[Array, "I"]:
    """For each of the `train.iterations` whether it begins with a new point.

    The first has its own prompt; `refine_within` iterations without a point are inserted at random
    places among the `num_points` with one, and `refine_at_end` follow.
    """
    within = jnp.arange(train.num_points + train.refine_within) < train.num_points
    shuffled = jax.random.permutation(key, within)
    return jnp.concatenate([jnp.array([False]), shuffled, jnp.zeros(train.refine_at_end, bool)])


def choose(predictions: Predictions, ambiguous: Bool[Array, ""]) -> Chosen:
    """The multimask output with the highest predicted IoU, or the single mask if not ambiguous."""
    masks, ious = predictions
    index = jnp.where(ambiguous, 1 + jnp.argmax(ious[1:]), 0)
    return Chosen(jnp.asarray(masks)[index], jnp.asarray(ious)[index])


def next_prompt(
    key: Key[Array, ""],
    prompts: Prompts,
    logits: Float[Array, "h w"],
    target: Bool[Array, "h w"],
    inside: Bool[Array, "h w"],
    add_point: Bool[Array, ""],
    *,
    scale: float,
    mask_threshold: float,
) -> Prompts:
    """The last prompts with the predicted `logits` as mask and, if `add_point`, one point more.

    The point is drawn uniformly from the picture's pixels where mask and ground truth differ:
    foreground where the mask misses the object, background where it covers something else. Without
    an error there is no point.
    """
    at_pixel, at_offset = jax.random.split(key)
    error = ((logits > mask_threshold) != target) & inside
    row, column = _sample_pixel(at_pixel, error)
    point = _sample_inside(at_offset, row, column, scale)
    label = jnp.where(target[row, column], PointLabel.FOREGROUND, PointLabel.BACKGROUND)
    labels = jnp.asarray(prompts.labels)
    tokens = jnp.arange(labels.shape[0])
    free = (labels == PointLabel.PADDING) & (tokens >= 2)
    here = (tokens == jnp.argmax(free)) & free & add_point & jnp.any(error)
    return Prompts(
        jnp.where(here[:, None], point, jnp.asarray(prompts.coords)),
        jnp.where(here, label.astype(labels.dtype), labels),
        logits,
        jnp.array(True),
    )


def sample_point(
    key: Key[Array, ""], region: Bool[Array, "h w"], *, scale: float
) -> tuple[Float[Array, "2"], Bool[Array, ""]]:
    """A uniformly random position (x, y) in the region, and whether the region has a pixel."""
    at_pixel, at_offset = jax.random.split(key)
    row, column = _sample_pixel(at_pixel, region)
    return _sample_inside(at_offset, row, column, scale), jnp.any(region)


def bounding_box(target: Bool[Array, "h w"], *, scale: float) -> Float[Array, "4"]:
    """The first and last input pixels (x0, y0, x1, y1) of an object, all four inclusive."""
    box = masks_to_boxes(target).astype(jnp.float32)
    return jnp.concatenate([box[:2] * scale, (box[2:] + 1.0) * scale - 1.0])


def noised_box(
    key: Key[Array, ""],
    box: Float[Array, "4"],
    input_size: Int[Array, "2"],
    *,
    noise: float = 0.1,
    limit: float = 20.0,
) -> Float[Array, "4"]:
    """The box with normal noise in each coordinate, inside the picture and with corners in order.

    The standard deviation is `noise` times the box's side along that axis; a coordinate moves by
    `limit` pixels at most.
    """
    sides = jnp.tile(box[2:] - box[:2] + 1.0, 2)
    moved = box + jnp.clip(jax.random.normal(key, (4,)) * noise * sides, -limit, limit)
    last = input_size[::-1].astype(jnp.float32) - 1.0
    moved = jnp.clip(moved, 0.0, jnp.tile(last, 2))
    return jnp.concatenate([jnp.minimum(moved[:2], moved[2:]), jnp.maximum(moved[:2], moved[2:])])


def _sample_pixel(
    key: Key[Array, ""], region: Bool[Array, "h w"]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Row and column of the pixel with the largest of random numbers, among those of the region.

    The numbers do not depend on the region, so that a pixel more or less in it, from rounding,
    rarely means another choice.
    """
    noise = jax.random.bits(key, region.shape, jnp.uint32)
    index = jnp.argmax(jnp.where(region, noise, jnp.uint32(0)))
    return jnp.divmod(index, region.shape[1])


def _sample_inside(
    key: Key[Array, ""], row: Int[Array, ""], column: Int[Array, ""], scale: float
) -> Float[Array, "2"]:
    """A random (x, y) in a pixel; short of its far edges, to which a sum could be rounded."""
    offset = jax.random.uniform(key, (2,), maxval=1.0 - 2.0**-10)
    return (jnp.stack([column, row]).astype(jnp.float32) + offset) * scale - 0.5
