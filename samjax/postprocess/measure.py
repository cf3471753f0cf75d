"""Full-resolution masks with their stability scores and boxes, in one compiled program.

The definition is `upscale_masks`, then `stability_score` and `masks_to_boxes` of the result. On the
CPU the same sums are taken of a few columns of the picture at a time, while they are in the
processor's cache: the logits at full resolution never exist as a whole. One mask at 1200x1800
pixels takes 11 ms so, and 27 ms as a whole (two AVX-512 cores, busy with other work).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from samjax.postprocess.masks import extents_to_box, masks_to_boxes, stability_score, upscale_masks

COLUMNS_AT_ONCE = 128
"""On the CPU (measured: 32 to 1920)."""


def measure_masks(
    low_res_masks: Float[Array | np.ndarray, "N h w"],
    row_weights: Float32[Array | np.ndarray, "H h"],
    column_weights: Float32[Array | np.ndarray, "W w"],
    height: Int[Array | np.ndarray, ""],
    width: Int[Array | np.ndarray, ""],
    mask_threshold: Float[Array | np.ndarray, ""],
    threshold_offset: Float[Array | np.ndarray, ""],
) -> tuple[Bool[Array, "N W H"], Float32[Array, "N"], Int32[Array, "N 4"]]:
    """Masks, transposed (so that run-length encoding reads them as they lie), scores and boxes.

    Only the first `height` rows and `width` columns count; the rest of a mask is False. Weights
    come from `axis_weights`; those of columns are padded to a multiple of `COLUMNS_AT_ONCE`.
    """
    low_res_masks = jnp.swapaxes(jnp.asarray(low_res_masks), -1, -2)
    arguments = (low_res_masks, jnp.asarray(row_weights), jnp.asarray(column_weights), height,
                 width, mask_threshold, threshold_offset)  # fmt: skip
    return jax.lax.platform_dependent(*arguments, cpu=_in_pieces, default=_whole)


def _whole(low_res_masks, rows, columns, height, width, threshold, offset):
    logits = upscale_masks(low_res_masks, columns, rows)
    scores = stability_score(logits, threshold, offset, height=width, width=height)
    masks = (logits > threshold) & _inside(len(columns), len(rows), width, height)
    return masks, scores, masks_to_boxes(masks)[:, np.array([1, 0, 3, 2])]


def _in_pieces(low_res_masks, rows, columns, height, width, threshold, offset):
    pieces = columns.reshape(-1, COLUMNS_AT_ONCE, columns.shape[-1])
    starts = COLUMNS_AT_ONCE * jnp.arange(len(pieces))

    def one(low_res_mask):
        def piece(start_and_weights):
            start, weights = start_and_weights
            logits = upscale_masks(low_res_mask, weights, rows)
            inside = _inside(COLUMNS_AT_ONCE, len(rows), width - start, height)
            mask = (logits > threshold) & inside
            above = jnp.sum((logits > threshold + offset) & inside, dtype=jnp.int32)
            below = jnp.sum((logits > threshold - offset) & inside, dtype=jnp.int32)
            return mask, above, below, jnp.any(mask, axis=1), jnp.any(mask, axis=0)

        mask, above, below, in_columns, in_rows = jax.lax.map(piece, (starts, pieces))
        score = jnp.sum(above).astype(jnp.float32) / jnp.sum(below).astype(jnp.float32)
        box = extents_to_box(in_columns.reshape(-1), jnp.any(in_rows, axis=0))
        return mask.reshape(len(columns), len(rows)), score, box

    return jax.lax.map(one, low_res_masks)


def _inside(first, second, count, other_count) -> Bool[Array, "W H"]:
    return (jnp.arange(first) < count)[:, None] & (jnp.arange(second) < other_count)
