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
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

from samjax.platforms import platform_dependent
from samjax.postprocess.masks import extents_to_box, masks_to_boxes, stability_score, upscale_masks

COLUMNS_AT_ONCE = 32
"""On the CPU, of which all logits are in the cache together (measured: 16 to 128)."""

ROWS_AT_ONCE = 64
"""For the first of the two products, that along the columns."""

LARGEST_COUNT = 1023
SHIFTS = (0, 10, 20)
"""Three counts of at most `COLUMNS_AT_ONCE` share one int32."""

LEAST_SPAN = 8
"""Pieces are made of a power of two of low-resolution columns, of which this is the smallest."""


def piece_span(
    row_weights: Float32[np.ndarray, "H h"], column_weights: Float32[np.ndarray, "W w"]
) -> int:
    """Of how many neighbouring low-resolution columns any `COLUMNS_AT_ONCE` columns are made, at
    most, and of how many rows half as many: rounded up to a power of two, so that few programs are
    compiled."""
    columns = _span(column_weights, COLUMNS_AT_ONCE)
    rows = -(-_span(row_weights, ROWS_AT_ONCE) // 2)
    span = 1 << (max(LEAST_SPAN, columns, rows) - 1).bit_length()
    return min(span, max(row_weights.shape[1], column_weights.shape[1]))


def _span(weights: Float32[np.ndarray, "L l"], at_once: int) -> int:
    used = (weights.reshape(-1, at_once, weights.shape[-1]) != 0).any(axis=1)
    used = used[used.any(axis=1)]
    first, last = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
    return int((last - first).max())


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
) -> tuple[UInt8[Array, "N W H/8"], Float32[Array, "N"], Int32[Array, "N 4"]]:
    """Packed masks, as `compress_packed` reads them, scores and boxes.

    A mask has its columns one after the other and eight rows in a byte, the first in the lowest
    bit. Only the first `height` rows and `width` columns count; the rest of a mask is False.
    Weights come from `axis_weights`, padded to a multiple of `ROWS_AT_ONCE` and of
    `COLUMNS_AT_ONCE`. `span` is their `piece_span`, and without it that of any weights: all.
    """
    return platform_dependent(
        *map(jnp.asarray, (low_res_masks, row_weights, column_weights, height, width)),
        *map(jnp.asarray, (mask_threshold, threshold_offset)),
        cpu=functools.partial(_measured_in_pieces, span), default=_measured_whole,
    )  # fmt: skip


def threshold_masks(
    low_res_masks: Float[Array | np.ndarray, "N h w"],
    row_weights: Float32[Array | np.ndarray, "H h"],
    column_weights: Float32[Array | np.ndarray, "W w"],
    mask_threshold: Float[Array | np.ndarray, ""],
    *,
    span: int | None = None,
) -> Bool[Array, "N H W"]:
    """The masks alone, as they are looked at; `span` is the `piece_span` of the weights of columns
    and rows, in this order."""
    return platform_dependent(
        *map(jnp.asarray, (low_res_masks, row_weights, column_weights, mask_threshold)),
        cpu=functools.partial(_thresholded_in_pieces, span),
        default=lambda low, rows, columns, least: upscale_masks(low, rows, columns) > least,
    )  # fmt: skip


def _measured_whole(low_res_masks, rows, columns, height, width, threshold, offset):
    logits = upscale_masks(low_res_masks, rows, columns)
    logits = jnp.swapaxes(logits, -1, -2)
    scores = stability_score(logits, threshold, offset, height=width, width=height)
    masks = (logits > threshold) & _inside(len(columns), len(rows), width, height)
    return _pack(masks), scores, masks_to_boxes(masks)[:, np.array([1, 0, 3, 2])]


def _thresholded_in_pieces(span, low_res_masks, rows, columns, threshold):
    masks = _for_each_piece(
        lambda logits, start: logits > threshold, low_res_masks, columns, rows, span
    )
    return masks.reshape(len(low_res_masks), len(rows), len(columns))


def _measured_in_pieces(span, low_res_masks, rows, columns, height, width, threshold, offset):
    def measure(logits, start):
        inside = _inside(*logits.shape, width - start, height)
        mask = (logits > threshold) & inside
        above = (logits > threshold + offset) & inside
        below = (logits > threshold - offset) & inside
        # One sum over the columns of the piece counts all three.
        shifted = zip((above, below, mask), SHIFTS, strict=True)
        packed = functools.reduce(jnp.bitwise_or, (x.astype(jnp.int32) << n for x, n in shifted))
        counts = jax.lax.optimization_barrier(jnp.sum(packed, axis=0, dtype=jnp.int32))
        return _pack(mask), counts, jnp.max(mask.astype(jnp.uint8), axis=1) > 0

    masks, counts, in_columns = _for_each_piece(
        measure, jnp.swapaxes(low_res_masks, -1, -2), rows, columns, span
    )
    above, below, rows_inside = ((counts >> shift) & LARGEST_COUNT for shift in SHIFTS)
    scores = _total(above) / _total(below)
    number = len(low_res_masks)
    boxes = extents_to_box(in_columns.reshape(number, -1), jnp.any(rows_inside > 0, axis=1))
    return masks.reshape(number, len(columns), -1), scores, boxes


def _pack(masks):
    return jnp.packbits(masks, axis=-1, bitorder="little")


def _total(counts):
    return jnp.sum(counts, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)


def _for_each_piece(function, low_res_masks, inner, outer, span):
    """`function(logits, start)` of a few rows of upscaled logits at a time, stacked.

    Logits are upscaled by `outer` along the first axis and by `inner` along the second. Each piece
    is made of those `span` rows that its weights are not zero for, and those of `2 * span` columns.
    """
    precision = jax.lax.Precision.HIGHEST
    inner, inner_firsts = _banded(inner, ROWS_AT_ONCE, None if span is None else 2 * span)
    outer, outer_firsts = _banded(outer, COLUMNS_AT_ONCE, span)
    starts = COLUMNS_AT_ONCE * jnp.arange(len(outer))

    def one(low_res_mask):
        low_res_mask = low_res_mask.astype(jnp.float32)
        sources = jax.vmap(
            lambda first: jax.lax.dynamic_slice_in_dim(low_res_mask, first, inner.shape[-1], 1)
        )(inner_firsts)
        half = jnp.einsum("pws,pns->wpn", sources, inner, precision=precision)
        half = half.reshape(len(low_res_mask), -1)

        def piece(start_and_weights):
            start, first, weights = start_and_weights
            source = jax.lax.dynamic_slice_in_dim(half, first, outer.shape[-1])
            return function(jnp.matmul(weights, source, precision=precision), start)

        return jax.lax.map(piece, (starts, outer_firsts, outer))

    return jax.lax.map(one, low_res_masks)


def _banded(weights, at_once, span):
    """Weights of `at_once` results at a time without the zeros around them, and where these begin.

    (pieces, at_once, span) and (pieces,)."""
    length = weights.shape[-1]
    span = length if span is None else min(span, length)
    pieces = weights.reshape(-1, at_once, length)
    firsts = jnp.minimum(jnp.argmax(jnp.any(pieces != 0, axis=1), axis=1), length - span)
    return jax.vmap(lambda w, first: jax.lax.dynamic_slice_in_dim(w, first, span, 1))(
        pieces, firsts
    ), firsts


def _inside(first, second, count, other_count) -> Bool[Array, "W H"]:
    return (jnp.arange(first) < count)[:, None] & (jnp.arange(second) < other_count)
