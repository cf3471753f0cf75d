"""Full-resolution masks with their stability scores and boxes, in one compiled program.

The definition is `upscale_masks`, then `stability_score` and `masks_to_boxes` of the result. On the
CPU the same sums are taken of a few columns of the picture at a time, while they are in the
processor's cache, and of those columns of the low-resolution mask alone that these are made of: the
logits at full resolution never exist as a whole.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from samjax.postprocess.masks import extents_to_box, masks_to_boxes, stability_score, upscale_masks

COLUMNS_AT_ONCE = 128
"""On the CPU (measured: 32 to 1920)."""

LEAST_SPAN = 32
"""Pieces are made of a power of two of low-resolution columns, of which this is the smallest."""


def piece_span(column_weights: Float32[np.ndarray, "W w"]) -> int:
    """Of how many neighbouring low-resolution columns any `COLUMNS_AT_ONCE` columns are made, at
    most: rounded up to a power of two, so that few programs are compiled."""
    used = (column_weights.reshape(-1, COLUMNS_AT_ONCE, column_weights.shape[-1]) != 0).any(axis=1)
    used = used[used.any(axis=1)]
    first, last = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
    span = max(LEAST_SPAN, int((last - first).max()))
    return min(1 << (span - 1).bit_length(), used.shape[1])


def measure_masks(
    low_res_masks: Float[Array | np.ndarray, "N h w"],
    row_weights: Float32[Array | np.ndarray, "H h"],
    column_weights: Float32[Array | np.ndarray, "W w"],
    height: Int[Array | np.ndarray, ""],
    width: Int[Array | np.ndarray, ""],
    mask_threshold: Float[Array | np.ndarray, ""],
    threshold_offset: Float[Array | np.ndarray, ""],
    *,
    span: int | None = None,
) -> tuple[Bool[Array, "N W H"], Float32[Array, "N"], Int32[Array, "N 4"]]:
    """Masks, transposed (so that run-length encoding reads them as they lie), scores and boxes.

    Only the first `height` rows and `width` columns count; the rest of a mask is False. Weights
    come from `axis_weights`; those of columns are padded to a multiple of `COLUMNS_AT_ONCE`.
    `span` is their `piece_span`, and without it that of any weights: all.
    """
    low_res_masks = jnp.swapaxes(jnp.asarray(low_res_masks), -1, -2)
    arguments = (low_res_masks, jnp.asarray(row_weights), jnp.asarray(column_weights), height,
                 width, mask_threshold, threshold_offset)  # fmt: skip
    return jax.lax.platform_dependent(
        *arguments, cpu=functools.partial(_in_pieces, span), default=_whole
    )  # fmt: skip


def _whole(low_res_masks, rows, columns, height, width, threshold, offset):
    logits = upscale_masks(jnp.swapaxes(low_res_masks, -1, -2), rows, columns)
    logits = jnp.swapaxes(logits, -1, -2)
    scores = stability_score(logits, threshold, offset, height=width, width=height)
    masks = (logits > threshold) & _inside(len(columns), len(rows), width, height)
    return masks, scores, masks_to_boxes(masks)[:, np.array([1, 0, 3, 2])]


def _in_pieces(span, low_res_masks, rows, columns, height, width, threshold, offset):
    span = columns.shape[-1] if span is None else span
    pieces = columns.reshape(-1, COLUMNS_AT_ONCE, columns.shape[-1])
    starts = COLUMNS_AT_ONCE * jnp.arange(len(pieces))
    firsts = jnp.argmax(jnp.any(pieces != 0, axis=1), axis=1)
    firsts = jnp.minimum(firsts, columns.shape[-1] - span)
    pieces = jax.vmap(lambda w, first: jax.lax.dynamic_slice_in_dim(w, first, span, 1))(
        pieces, firsts
    )
    precision = jax.lax.Precision.HIGHEST

    def one(low_res_mask):
        tall = jnp.matmul(low_res_mask.astype(jnp.float32), rows.T, precision=precision)

        def piece(start_and_weights):
            start, first, weights = start_and_weights
            source = jax.lax.dynamic_slice_in_dim(tall, first, span)
            logits = jnp.matmul(weights, source, precision=precision)
            inside = _inside(COLUMNS_AT_ONCE, len(rows), width - start, height)
            mask = (logits > threshold) & inside
            above = _count((logits > threshold + offset) & inside)
            below = _count((logits > threshold - offset) & inside)
            return mask, above, below, jnp.any(mask, axis=1), _by_columns(jnp.any, mask).any(axis=0)

        mask, above, below, in_columns, in_rows = jax.lax.map(piece, (starts, firsts, pieces))
        score = jnp.sum(above).astype(jnp.float32) / jnp.sum(below).astype(jnp.float32)
        box = extents_to_box(in_columns.reshape(-1), jnp.any(in_rows, axis=0))
        return mask.reshape(len(columns), len(rows)), score, box

    return jax.lax.map(one, low_res_masks)


def _count(mask: Bool[Array, "W H"]) -> Int32[Array, ""]:
    return jnp.sum(_by_columns(functools.partial(jnp.sum, dtype=jnp.int32), mask))


def _by_columns(reduce, mask: Bool[Array, "W H"]) -> Array:
    """`reduce` over 32 columns at a time: the most that XLA:CPU takes without first writing down
    what it reduces. The barrier keeps the next sum apart."""
    return jax.lax.optimization_barrier(reduce(mask.reshape(-1, 32, mask.shape[-1]), axis=1))


def _inside(first, second, count, other_count) -> Bool[Array, "W H"]:
    return (jnp.arange(first) < count)[:, None] & (jnp.arange(second) < other_count)
