"""From a picture to the model's input frame, for pixels and for coordinates."""

import operator
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Num, UInt8
from PIL import Image

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean over RGB values of 0 to 255 (reference: `Sam.pixel_mean`)."""
PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation over RGB values of 0 to 255 (reference: `Sam.pixel_std`)."""


class ResizeLongestSide:
    """Scale pictures and coordinates so that the longest side becomes `target_length` pixels.

    Equal to `segment_anything.utils.transforms.ResizeLongestSide` bit by bit, with one deviation:
    where the shortest side would round to no pixels, and the reference fails, it becomes one.

    Raises ValueError for a `target_length` or an original side below one pixel.
    """

    def __init__(self, target_length: int):
        self.target_length = _pixels(target_length, name="target_length")

    def apply_image(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Resize by Pillow's bilinear filter, which is antialiased and rounds to integers."""
        height, width, _ = image.shape
        height, width = self.get_preprocess_shape(height, width, self.target_length)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(resized)

    def apply_coords(
        self, coords: Num[np.ndarray, "*N 2"], original_size: Sequence[int]
    ) -> Float64[np.ndarray, "*N 2"]:
        """Points (x, y) in pixels of a picture of `original_size` (height, width), scaled."""
        old_height, old_width = original_size
        height, width = self.get_preprocess_shape(old_height, old_width, self.target_length)
        return coords.astype(np.float64) * np.array([width / old_width, height / old_height])

    def apply_boxes(
        self, boxes: Num[np.ndarray, "*N 4"], original_size: Sequence[int]
    ) -> Float64[np.ndarray, "B 4"]:
        """Boxes (x0, y0, x1, y1) in pixels, scaled; leading axes are flattened, as by Meta."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The (height, width) of a picture of `oldh` by `oldw` pixels after the resize."""
        oldh, oldw = _pixels(oldh, name="height"), _pixels(oldw, name="width")
        scale = long_side_length * 1.0 / max(oldh, oldw)
        return max(1, int(oldh * scale + 0.5)), max(1, int(oldw * scale + 0.5))


def normalize_and_pad(
    image: UInt8[np.ndarray, "H W 3"],
    image_size: int,
    *,
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
) -> Float32[np.ndarray, "S S 3"]:
    """The image encoder's input: (image - mean) / std, then zeros to the right and below.

    Bits equal to `Sam.preprocess`, in channels-last order; S is `image_size`.

    Raises ValueError where the picture is larger than `image_size` pixels on a side.
    """
    height, width = image.shape[:2]
    if max(height, width) > image_size:
        raise ValueError(
            f"a picture of {height} x {width} pixels does not fit into a model input of "
            f"{image_size} pixels a side; resize it with ResizeLongestSide({image_size})"
        )
    padded = np.zeros((image_size, image_size, 3), np.float32)
    inside = padded[:height, :width]
    np.subtract(image, np.asarray(pixel_mean, np.float32), out=inside)
    np.divide(inside, np.asarray(pixel_std, np.float32), out=inside)
    return padded


def _pixels(length: int, *, name: str) -> int:
    length = operator.index(length)
    if length < 1:
        raise ValueError(f"{name} must be at least 1 pixel, not {length}")
    return length
