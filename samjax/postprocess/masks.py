"""From low-resolution logits to full-size masks, their stability and their boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32


@functools.lru_cache(maxsize=64)
def axis_weights(
    low_res: int,
    image_size: int,
    input_length: int,
    output_length: int,
    padded_length: int | None = None,
) -> Float32[np.ndarray, "L low_res"]:
    """One axis of `Sam.postprocess_masks` as a matrix, for `upscale_masks`.

    The reference resizes bilinearly from `low_res` to `image_size` pixels, crops to the
    `input_length` that the picture takes up of it, and resizes bilinearly again to the
    picture's own `output_length`; both times with half-pixel centres and no antialiasing. The
    product of the two interpolation matrices has at most four non-zeros a row, which sum to 1.
    Rows from `output_length` to `padded_length` are zero; pictures that are padded to a common
    length share one compilation.

    Computed on the host with the source positions rounded to float32 as torch rounds them, the
    product in float64. The result is cached and read-only.

    Raises ValueError for lengths below 1, a crop longer than `image_size`, or a padded length
    shorter than `output_length`.
    """
    lengths = (low_res, image_size, input_length, output_length)
    if min(lengths) < 1 or input_length > image_size:
        raise ValueError(
            f"lengths must be at least 1 and input_length at most image_size: low_res={low_res}, "
            f"image_size={image_size}, input_length={input_length}, output_length={output_length}"
        )
    padded_length = output_length if padded_length is None else padded_length
    if padded_length < output_length:
        raise ValueError(f"padded_length={padded_length} is below output_length={output_length}")
    weights = np.zeros((padded_length, low_res), np.float32)
    resized = _bilinear(low_res, image_size)
    taps, tap_weights = _bilinear_taps(input_length, output_length)
    weights[:output_length] = np.einsum("tL,tLl->Ll", tap_weights, resized[taps])
    weights.setflags(write=False)
    return weights


def _bilinear(source: int, target: int) -> np.ndarray:
    """The matrix (target, source), float64, of one bilinear resize."""
    taps, weights = _bilinear_taps(source, target)
    matrix = np.zeros((target, source))
    for tap, weight in zip(taps, weights, strict=True):
        np.add.at(matrix, (np.arange(target), tap), weight)
    return matrix


def _bilinear_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Two source indices (2, target) for each target index, and their float64 weights.

    Positions follow torch's `upsample_bilinear2d` with align_corners=False, in float32.
    """
    scale = np.float32(source) / np.float32(target)
    half = np.float32(0.5)
    position = np.maximum(scale * (np.arange(target, dtype=np.float32) + half) - half, 0)
    first = np.minimum(position.astype(np.int64), source - 1)
    second = np.minimum(first + 1, source - 1)
    fraction = np.clip(position - first.astype(np.float32), 0, 1)
    weights = np.stack([np.float32(1) - fraction, fraction]).astype(np.float64)
    return np.stack([first, second]), weights


def upscale_masks(
    low_res_masks: Float[Array | np.ndarray, "*N h w"],
    row_weights: Float32[Array | np.ndarray, "H h"],
    column_weights: Float32[Array | np.ndarray, "W w"],
) -> Float32[Array, "*N H W"]:
    """Logits at the picture's own size (reference: `Sam.postprocess_masks`).

    The weights come from `axis_weights`, one for each axis. Where they are padded, so is the
    result, with logits of zero.
    """
    precision = jax.lax.Precision.HIGHEST
    logits = jnp.asarray(low_res_masks).astype(jnp.float32)
    rows = jnp.einsum("Hh,...hw->...Hw", row_weights, logits, precision=precision)
    return jnp.einsum("...Hw,Ww->...HW", rows, column_weights, precision=precision)


def stability_score(
    logits: Float[Array | np.ndarray, "*N H W"],
    mask_threshold: float | Float[Array | np.ndarray, ""],
    threshold_offset: float | Float[Array | np.ndarray, ""],
    *,
    height: int | Int[Array | np.ndarray, ""] | None = None,
    width: int | Int[Array | np.ndarray, ""] | None = None,
) -> Float32[Array, "*N"]:
    """The IoU of each mask cut `threshold_offset` above with itself cut as far below.

    Reference: `amg.calculate_stability_score`. A mask that is empty at both thresholds has no
    score: NaN, which no comparison keeps. Only the first `height` rows and `width` columns
    count; both may be traced, so that pictures padded to one shape share one compilation.
    Counts are int32: enough for 2**31 pixels, where the reference's int16 row sums overflow in
    pictures wider than 32767.
    """
    logits = jnp.asarray(logits)
    inside = _inside(logits.shape[-2:], height, width)
    above = _count((logits > mask_threshold + threshold_offset) & inside)
    below = _count((logits > mask_threshold - threshold_offset) & inside)
    return above.astype(jnp.float32) / below.astype(jnp.float32)


def _inside(
    shape: tuple[int, ...],
    height: int | Int[Array | np.ndarray, ""] | None,
    width: int | Int[Array | np.ndarray, ""] | None,
) -> Bool[Array, "H W"]:
    rows = jnp.arange(shape[0]) < (shape[0] if height is None else height)
    columns = jnp.arange(shape[1]) < (shape[1] if width is None else width)
    return rows[:, None] & columns


def _count(masks: Bool[Array, "*N H W"]) -> Int32[Array, "*N"]:
    return jnp.sum(masks, axis=(-2, -1), dtype=jnp.int32)


def masks_to_boxes(masks: Bool[Array | np.ndarray, "*N H W"]) -> Int32[Array, "*N 4"]:
    """The box (x0, y0, x1, y1) of each mask, all four inclusive; zeros for an empty mask.

    Reference: `amg.batched_mask_to_box`. The width in pixels is x1 - x0 + 1.
    """
    masks = jnp.asarray(masks)
    return extents_to_box(jnp.any(masks, axis=-2), jnp.any(masks, axis=-1))


def extents_to_box(
    in_columns: Bool[Array, "*N W"], in_rows: Bool[Array, "*N H"]
) -> Int32[Array, "*N 4"]:
    """`masks_to_boxes` of masks of which it is known which columns and rows they have pixels in."""
    left, right = _extent(in_columns)
    top, bottom = _extent(in_rows)
    boxes = jnp.stack([left, top, right, bottom], axis=-1)
    return jnp.where((right < left)[..., None], 0, boxes)


def _extent(present: Bool[Array, "*N L"]) -> tuple[Int32[Array, "*N"], Int32[Array, "*N"]]:
    """The first and the last True of each row; in a row without one the last is below the first."""
    length = present.shape[-1]
    index = jnp.arange(length, dtype=jnp.int32)
    first = jnp.min(jnp.where(present, index, length), axis=-1, initial=length)
    last = jnp.max(jnp.where(present, index, -1), axis=-1, initial=-1)
    return first, last
