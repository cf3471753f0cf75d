"""Low-resolution masks to the picture's own pixels, compiled once for many sizes of picture."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from samjax.models import SamConfig
from samjax.postprocess.masks import axis_weights, upscale_masks
from samjax.postprocess.measure import measure_masks, piece_span, threshold_masks

SIZE_STEP = 128
"""Full-resolution masks are computed in pictures padded to a multiple of this, in pixels."""


class Upscaler:
    """Low-resolution masks to the picture's own pixels (reference: `Sam.postprocess_masks`).

    Made for one size of picture; the compiled code is shared by all sizes that pad to the same
    multiple of `SIZE_STEP`. `input_size` is (height, width) of the resized picture within the
    model's square, `original_size` that of the picture.
    """

    def __init__(
        self, config: SamConfig, input_size: tuple[int, int], original_size: tuple[int, int]
    ):
        self.original_size = original_size
        self.weights = tuple(
            axis_weights(config.low_res_size, config.image_size, inside, outside, _padded(outside))
            for inside, outside in zip(input_size, original_size, strict=True)
        )
        self.span = piece_span(*self.weights)

    def logits(
        self, low_res_masks: Float[Array | np.ndarray, "N h w"]
    ) -> Float[np.ndarray, "N H W"]:
        """Mask logits at full resolution, on the host."""
        height, width = self.original_size
        return np.asarray(_upscale(low_res_masks, *self.weights))[:, :height, :width]

    def masks(
        self, low_res_masks: Float[Array | np.ndarray, "N h w"], *, mask_threshold: float
    ) -> Bool[np.ndarray, "N H W"]:
        """Thresholded masks at full resolution, on the host."""
        height, width = self.original_size
        masks = _threshold(low_res_masks, *self.weights, np.float32(mask_threshold), span=self.span)
        return np.asarray(masks)[:, :height, :width]

    def measure(
        self,
        low_res_masks: Float[Array | np.ndarray, "*L h w"],
        chosen: Int[np.ndarray, "N"] | None = None,
        *,
        mask_threshold: float,
        stability_score_offset: float,
    ) -> tuple[UInt8[np.ndarray, "N W B"], Float[np.ndarray, "N"], Int[np.ndarray, "N 4"]]:
        """Packed masks (for `compress_packed`), stability scores and boxes of logits at full
        resolution, on the host.

        `chosen` are the numbers of the masks to measure, counted through all leading axes; without
        it there is one such axis, and all are measured.
        """
        height, width = self.original_size
        measured = _measure(
            low_res_masks, *self.weights, np.int32(height), np.int32(width),
            np.float32(mask_threshold), np.float32(stability_score_offset), span=self.span,
            chosen=None if chosen is None else chosen.astype(np.int32),
        )  # fmt: skip
        masks, scores, boxes = (np.asarray(x) for x in measured)
        return masks, scores, boxes


_upscale = jax.jit(upscale_masks)
_threshold = jax.jit(threshold_masks, static_argnames="span")


@functools.partial(jax.jit, static_argnames="span")
def _measure(
    low_res_masks: Array, *arguments: Array, span: int | None = None, chosen: Array | None = None
) -> tuple[Array, Array, Array]:
    """`measure_masks`, of those chosen."""
    if chosen is not None:
        low_res_masks = low_res_masks.reshape(-1, *low_res_masks.shape[-2:])[chosen]
    return measure_masks(low_res_masks, *arguments, span=span)


PROGRAMS = {"upscale": _upscale, "threshold": _threshold, "measure": _measure}
"""What is compiled here, under the names of `inference.compiled_programs`."""


def _padded(length: int) -> int:
    return -(-length // SIZE_STEP) * SIZE_STEP
