"""Non-maximum suppression as a compiled program of fixed sizes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32


def suppress(
    boxes: Float[Array | np.ndarray, "A 4"],
    scores: Float[Array | np.ndarray, "A"],
    classes: Int[Array | np.ndarray, "A"],
    least_score: Float[Array | np.ndarray, ""] | float,
    iou_threshold: Float[Array | np.ndarray, ""] | float,
    *,
    max_det: int,
    agnostic: bool = False,
) -> tuple[Int32[Array, "K"], Int32[Array, ""]]:
    """Indices of at most `max_det` boxes that no better one covers, the best first, and how many.

    Candidates have a score above `least_score`. A box goes where its IoU with a kept one of its
    class, or with `agnostic` of any, is strictly above `iou_threshold`; of equal scores the first
    in order is the better. That is `torchvision.ops.batched_nms` without its limit on candidates:
    one pick is made at a time, of all that are left, so that only the picks cost time. Indices
    beyond the number found are 0.
    """
    boxes, scores, classes = jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(classes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    def pick(state):
        left, picks, count = state
        best = jnp.argmax(left).astype(jnp.int32)
        box = boxes[best]
        low = jnp.maximum(boxes[:, :2], box[:2])
        high = jnp.minimum(boxes[:, 2:], box[2:])
        shared = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
        covered = shared / (areas + areas[best] - shared) > iou_threshold
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
