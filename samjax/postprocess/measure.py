"""Full-resolution masks with their stability scores and boxes, in one compiled program.

The definition is `upscale_masks`, then `stability_score` and `masks_to_boxes` of the result. On the
CPU the same is taken of a few rows of the picture at a time, while they are in the processor's
cache, and of those rows of the low-resolution mask alone that these are made of: the logits at full
resolution never exist as a whole. What becomes of them is a bit for each pixel and threshold, 32
rows in a word, and all that is counted or boxed is these words, a thirty-second of the numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8, UInt32

from samjax.platforms import platform_dependent
from samjax.postprocess.masks import extents_to_box, masks_to_boxes, stability_score, upscale_masks

ROWS_AT_ONCE = 32
"""On the CPU, of which all logits are in the cache together: the bits of a word."""

COLUMNS_AT_ONCE = 64
"""For the first of the two products, that along the rows."""

BITS = np.uint32(1) << np.arange(ROWS_AT_ONCE, dtype=np.uint32)

LEAST_SPAN = 8
"""Pieces are made of a power of two of low-resolution rows, of which this is the smallest."""


def piece_span(
    row_weights: Float32[np.ndarray, "H h"], column_weights: Float32[np.ndarray, "W w"]
) -> int:
    """Of how many neighbouring low-resolution rows any `ROWS_AT_ONCE` rows are made, at most, and
    of how many columns half as many: rounded up to a power of two, so that few programs are
    compiled."""
    rows = _span(row_weights, ROWS_AT_ONCE)
    columns = -(-_span(column_weights, COLUMNS_AT_ONCE) // 2)
    span = 1 << (max(LEAST_SPAN, rows, columns) - 1).bit_length()
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
    """The masks alone, as they are looked at; `span` is the weights' `piece_span`."""
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
    masks = _for_each_piece(lambda logits: logits > threshold, low_res_masks, rows, columns, span)
    return masks.reshape(len(low_res_masks), len(rows), len(columns))


def _measured_in_pieces(span, low_res_masks, rows, columns, height, width, threshold, offset):
    thresholds = threshold, threshold + offset, threshold - offset
    words = _for_each_piece(
        lambda logits: tuple(_words(logits > least) for least in thresholds),
        low_res_masks, rows, columns, span,
    )  # fmt: skip
    mask, above, below = (x & _words_inside(*x.shape[1:], height, width) for x in words)
    in_rows = (jnp.bitwise_or.reduce(mask, axis=2)[:, :, None] & BITS) != 0
    boxes = extents_to_box(jnp.any(mask != 0, axis=1), in_rows.reshape(len(mask), -1))
    in_bytes = jax.lax.bitcast_convert_type(jnp.swapaxes(mask, 1, 2), jnp.uint8)
    return in_bytes.reshape(*in_bytes.shape[:2], -1), _count(above) / _count(below), boxes


def _words(mask: Bool[Array, "32 W"]) -> UInt32[Array, "W"]:
    """A column's bits, the first row's the lowest."""
    return jnp.sum(jnp.where(mask, BITS[:, None], np.uint32(0)), axis=0, dtype=jnp.uint32)


def _words_inside(pieces, columns, height, width) -> UInt32[Array, "P W"]:
    """Words of a picture of `height` and `width` that is True throughout."""
    rows = jnp.arange(pieces * ROWS_AT_ONCE).reshape(pieces, -1) < height
    words = jnp.sum(jnp.where(rows, BITS, np.uint32(0)), axis=1, dtype=jnp.uint32)
    return jnp.where(jnp.arange(columns) < width, words[:, None], np.uint32(0))


def _count(words: UInt32[Array, "N P W"]) -> Float32[Array, "N"]:
    ones = jnp.sum(jax.lax.population_count(words).astype(jnp.int32), axis=1)
    return jnp.sum(jax.lax.optimization_barrier(ones), axis=1).astype(jnp.float32)


def _pack(masks):
    return jnp.packbits(masks, axis=-1, bitorder="little")


def _for_each_piece(function, low_res_masks, rows, columns, span):
    """`function(logits)` of `ROWS_AT_ONCE` rows of upscaled logits at a time, stacked.

    Each piece is made of those `span` rows that its weights are not zero for, and `COLUMNS_AT_ONCE`
    columns of those `2 * span`. One array goes through both loops and is written where it stands:
    stacked results would be copied once more.
    """
    precision = jax.lax.Precision.HIGHEST
    columns, first_columns = _banded(columns, COLUMNS_AT_ONCE, None if span is None else 2 * span)
    rows, first_rows = _banded(rows, ROWS_AT_ONCE, span)

    width = columns.shape[0] * columns.shape[1]
    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((ROWS_AT_ONCE, width), jnp.float32))
    results = jax.tree.map(
        lambda x: jnp.zeros((len(low_res_masks), len(rows), *x.shape), x.dtype), shapes
    )

    def add_mask(results, number_and_mask):
        number, low_res_mask = number_and_mask
        low_res_mask = low_res_mask.astype(jnp.float32)
        sources = jax.vmap(
            lambda first: jax.lax.dynamic_slice_in_dim(low_res_mask, first, columns.shape[-1], 1)
        )(first_columns)
        half = jnp.einsum("phs,pns->hpn", sources, columns, precision=precision)
        half = half.reshape(len(low_res_mask), -1)

        def add_piece(results, piece_first_and_weights):
            piece, first, weights = piece_first_and_weights
            source = jax.lax.dynamic_slice_in_dim(half, first, weights.shape[-1])
            found = function(jnp.matmul(weights, source, precision=precision))
            at = functools.partial(_written, number, piece)
            return jax.tree.map(at, results, found), None

        return jax.lax.scan(add_piece, results, (jnp.arange(len(rows)), first_rows, rows))

    return jax.lax.scan(add_mask, results, (jnp.arange(len(low_res_masks)), low_res_masks))[0]


def _written(number, piece, results, one):
    start = (number, piece, *[0] * one.ndim)
    return jax.lax.dynamic_update_slice(results, one[None, None], start)


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
