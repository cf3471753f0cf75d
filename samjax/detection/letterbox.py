"""A picture inside the rectangle that a YOLOv8 looks at, and the way back."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from samjax.models.yolo.config import STRIDES

MARGIN = 114
"""The grey of what lies beside the picture, as in the published models' training."""


class Letterbox(NamedTuple):
    """Sizes are (height, width). A picture's pixel x lies at `left + scale * x` of the input."""

    scale: float
    top: int
    left: int
    resized: tuple[int, int]
    input_size: tuple[int, int]
    original_size: tuple[int, int]

    def apply(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Resized by OpenCV's bilinear filter without antialiasing, with margins of grey."""
        height, width = self.resized
        if self.resized != self.original_size:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        framed = np.full((*self.input_size, 3), MARGIN, np.uint8)
        framed[self.top : self.top + height, self.left : self.left + width] = image
        return framed

    def boxes_in_picture(
        self, boxes: Float[np.ndarray, "*N 4"]
    ) -> Float32[np.ndarray, "*N 4"]:  # fmt: skip
        """Boxes (x0, y0, x1, y1) of the input in the picture's pixels, cut off at its edges."""
        margin = np.array([self.left, self.top] * 2)
        height, width = self.original_size
        found = (boxes - margin) / self.scale
        return np.clip(found, 0, np.array([width, height] * 2)).astype(np.float32)

    def oriented_in_picture(
        self, boxes: Float[np.ndarray, "*N 5"]
    ) -> Float32[np.ndarray, "*N 5"]:  # fmt: skip
        """Boxes (x, y, width, height, turn) of the input in the picture's pixels, whole."""
        margin = np.array([self.left, self.top, 0, 0])
        sides = (boxes[..., :4] - margin) / self.scale
        return np.concatenate([sides, boxes[..., 4:]], axis=-1).astype(np.float32)


def fit(
    height: int, width: int, input_size: int | tuple[int, int] = 640, *, rect: bool = True
) -> Letterbox:
    """Where a picture goes: as large as it can be in `input_size`, in the middle.

    With `rect` the margins are no wider than it takes to make both sides multiples of 32, as
    Ultralytics' documentation says of pictures that are predicted one by one. Raises `ValueError`
    for a picture without pixels, and for an `input_size` that is no multiple of 32.
    """
    sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    coarsest = STRIDES[-1]
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels has nothing to look at.")
    if len(sides) != 2 or min(sides) < coarsest or any(side % coarsest for side in sides):
        raise ValueError(
            f"imgsz is {input_size}; its sides have to be multiples of {coarsest}, such as 640."
        )
    scale = min(sides[0] / height, sides[1] / width)
    resized = max(1, round(height * scale)), max(1, round(width * scale))
    margins = [side - length for side, length in zip(sides, resized, strict=True)]
    if rect:
        margins = [margin % coarsest for margin in margins]
    top, left = (round(margin / 2 - 0.1) for margin in margins)
    framed = resized[0] + margins[0], resized[1] + margins[1]
    return Letterbox(scale, top, left, resized, framed, (height, width))


def taps(
    first: int, last: int, *, scale: float, margin: int, stride: float, length: int
) -> tuple[Int[np.ndarray, "2 L"], Float32[np.ndarray, "L"]]:
    """Which two of `length` places each pixel from `first` up to `last` of a picture lies between,
    and its share of the second. Places are `stride` pixels of the input apart."""
    centres = (np.arange(first, last) + 0.5) * scale + margin
    position = np.clip(centres / stride - 0.5, 0, length - 1)
    before = np.minimum(position.astype(np.int64), max(length - 2, 0))
    after = np.minimum(before + 1, length - 1)
    return np.stack([before, after]), (position - before).astype(np.float32)
