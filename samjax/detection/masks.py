"""Masks of boxes, from prototypes of the whole picture (YOLACT, Bolya et al. 2019)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from samjax.detection.letterbox import Letterbox, taps

LEAST = 8
"""Masks are made in numbers of a power of two from this on, so that few programs are compiled."""


def mask_logits(
    coefficients: Float[np.ndarray, "N M"], prototypes: Float[Array | np.ndarray, "h w M"]
) -> Float[np.ndarray, "N h w"]:
    """Sums of prototypes: logits at their resolution."""
    number = len(coefficients)
    padded = max(LEAST, 1 << (number - 1).bit_length()) if number else LEAST
    rows = np.zeros((padded, coefficients.shape[1]), np.float32)
    rows[:number] = coefficients
    return np.asarray(_sums(rows, prototypes))[:number]


@jax.jit
def _sums(coefficients: Array, prototypes: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("nm,hwm->nhw", coefficients, prototypes, precision=precision)


def mask_in_picture(
    logits: Float[np.ndarray, "h w"], box: Float[np.ndarray, "4"], letterbox: Letterbox
) -> Bool[np.ndarray, "H W"]:
    """The mask inside its box, at the picture's own resolution, in Fortran order.

    Pixels of which the logit, bilinear between the centres of the prototypes' places, is above 0,
    and whose column and row are at least the box's low corner and below its high one. Only those
    are computed.
    """
    height, width = letterbox.original_size
    mask = np.zeros((height, width), np.bool_, order="F")
    x0, y0, x1, y1 = (max(0, math.ceil(side)) for side in box)
    x1, y1 = min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        return mask
    (upper, lower), down = taps(
        y0, y1, scale=letterbox.scale, margin=letterbox.top,
        stride=letterbox.input_size[0] / logits.shape[0], length=logits.shape[0],
    )  # fmt: skip
    (left, right), along = taps(
        x0, x1, scale=letterbox.scale, margin=letterbox.left,
        stride=letterbox.input_size[1] / logits.shape[1], length=logits.shape[1],
    )  # fmt: skip
    columns = slice(left[0], right[-1] + 1)
    rows = logits[upper, columns] * (1 - down[:, None]) + logits[lower, columns] * down[:, None]
    left, right = left - columns.start, right - columns.start
    mask[y0:y1, x0:x1] = rows[:, left] * (1 - along) + rows[:, right] * along > 0
    return mask
