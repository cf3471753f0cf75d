"""Non-maximum suppression as a compiled program of fixed sizes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

LEAST_SIDE = 1e-3
"""Of an oriented box, in pixels: one without area has no Gaussian."""


def suppress(
    boxes: Float[Array | np.ndarray, "A D"],
    scores: Float[Array | np.ndarray, "A"],
    classes: Int[Array | np.ndarray, "A"],
    least_score: Float[Array | np.ndarray, ""] | float,
    iou_threshold: Float[Array | np.ndarray, ""] | float,
    *,
    max_det: int,
    agnostic: bool = False,
) -> tuple[Int32[Array, "K"], Int32[Array, ""]]:
    """Indices of at most `max_det` boxes that no better one covers, the best first, and how many.

    Boxes are as `decode_boxes` has them: (x0, y0, x1, y1), or (x, y, width, height, turn), whose
    overlap is `prob_iou`. Candidates have a score above `least_score`. A box goes where its overlap
    with a kept one of its class, or with `agnostic` of any, is strictly above `iou_threshold`; of
    equal scores the first in order is the better. Of upright boxes that is
    `torchvision.ops.batched_nms` without its limit on candidates: one pick is made at a time, of
    all that are left, so that only the picks cost time. Indices beyond the number found are 0.
    """
    boxes, scores, classes = jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(classes)
    overlap = upright_iou if boxes.shape[1] == 4 else prob_iou

    def pick(state):
        left, picks, count = state
        best = jnp.argmax(left).astype(jnp.int32)
        covered = overlap(boxes, boxes[best]) > iou_threshold
        if not agnostic:
            covered &= classes == classes[best]
        left = jnp.where(covered, -jnp.inf, left).at[best].set(-jnp.inf)
        return left, picks.at[count].set(best), count + 1

    def more(state):
        left, _, count = state
        return (count < max_det) & (jnp.max(left) > -jnp.inf)

    left = jnp.where(scores > least_score, scores, -jnp.inf)
    start = left, jnp.zeros(max_det, jnp.int32), jnp.int32(0)
    _, picks, count = jax.lax.while_loop(more, pick, start)
    return picks, count


def upright_iou(boxes: Float[Array, "A 4"], box: Float[Array, "4"]) -> Float[Array, "A"]:
    """Intersection over union with one box, of (x0, y0, x1, y1)."""
    low = jnp.maximum(boxes[:, :2], box[:2])
    high = jnp.minimum(boxes[:, 2:], box[2:])
    shared = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    areas, area = ((b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (boxes, box))
    return shared / (areas + area - shared)


def prob_iou(boxes: Float[Array, "A 5"], box: Float[Array, "5"]) -> Float[Array, "A"]:
    """One less the Hellinger distance of the boxes' Gaussians to one box's, 0..1, of (x, y, width,
    height, turn) (Llerena et al. 2021, "Probabilistic Intersection-over-Union", section 3)."""
    xx, yy, xy = (a + b for a, b in zip(_covariance(boxes), _covariance(box), strict=True))
    x, y = boxes[:, 0] - box[0], boxes[:, 1] - box[1]
    determinant = xx * yy - xy**2
    apart = (xx * y**2 + yy * x**2 - 2 * xy * x * y) / (4 * determinant)
    both = _sides(boxes).prod(axis=-1) * _sides(box).prod() / 144
    bhattacharyya = apart + jnp.log(determinant / (4 * both)) / 2
    return 1 - jnp.sqrt(-jnp.expm1(-jnp.maximum(bhattacharyya, 0)))


def _sides(boxes: Float[Array, "*A 5"]) -> Float[Array, "*A 2"]:
    return jnp.maximum(boxes[..., 2:4], LEAST_SIDE)


def _covariance(
    boxes: Float[Array, "*A 5"],
) -> tuple[Float[Array, "*A"], Float[Array, "*A"], Float[Array, "*A"]]:
    """Of xx, yy and xy, of places spread evenly over a box."""
    width, height = jnp.moveaxis(_sides(boxes) ** 2 / 12, -1, 0)
    cos, sin = jnp.cos(boxes[..., 4]), jnp.sin(boxes[..., 4])
    xx = width * cos**2 + height * sin**2
    yy = width * sin**2 + height * cos**2
    return xx, yy, (width - height) * cos * sin
