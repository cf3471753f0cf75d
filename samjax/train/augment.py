"""Augmentations of a picture together with its masks.

Masks are coverages here, uint8 of 0 to 255, and go through the very filter that the picture goes
through: what a picture of a mask becomes, the mask becomes.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

GREY = (0.299, 0.587, 0.114)
"""Luma of RGB (ITU-R BT.601)."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """`flip` and `copy_paste` are probabilities, the latter of pasting one object of another
    picture (Ghiasi et al. 2021, section 3). `scale` is the range of large-scale jitter: a picture
    at scale 1 has the model's input size on its longest side, a larger one is cropped, a smaller
    one padded (the same, figure 3). `brightness`, `contrast` and `saturation` are the greatest
    changes of these factors from 1.

    Raises ValueError for values outside their ranges.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.1, 2.0)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    copy_paste: float = 0.0

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale has to be 0 < least <= greatest, not {self.scale}")
        for name in ("flip", "copy_paste", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} has to lie in [0, 1], not {getattr(self, name)}")


class Window(NamedTuple):
    """A part of a picture, in its pixels, and the (height, width) it is resized to."""

    top: int
    left: int
    height: int
    width: int
    output: tuple[int, int]


def whole_window(size: tuple[int, int], output: tuple[int, int]) -> Window:
    return Window(0, 0, size[0], size[1], output)


def jitter_window(
    rng: np.random.Generator,
    size: tuple[int, int],
    image_size: int,
    scale: float,
    anchor: tuple[int, int],
) -> Window:
    """The window of a picture of `size` (height, width) that large-scale jitter shows.

    The picture's longest side becomes `scale` times `image_size` pixels; what is more than
    `image_size` is cropped. Of all crops, one that holds the pixel `anchor` (y, x), so that there
    is something to see in it.
    """
    ratio = image_size * scale / max(size)
    starts, lengths, outputs = [], [], []
    for side, position in zip(size, anchor, strict=True):
        length = min(side, max(1, round(image_size / ratio)))
        first, last = max(0, position - length + 1), min(position, side - length)
        starts.append(int(rng.integers(first, last + 1)))
        lengths.append(length)
        fitting = min(image_size, max(1, round(side * ratio)))
        outputs.append(image_size if length < side else fitting)
    (top, left), (height, width), (rows, columns) = starts, lengths, outputs
    return Window(top, left, height, width, (rows, columns))


def resize(pixels: UInt8[np.ndarray, "H W *C"], window: Window) -> UInt8[np.ndarray, "h w *C"]:
    """The window of a picture or of a mask's coverage, by Pillow's antialiased bilinear filter."""
    top, left, height, width, (rows, columns) = window
    part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    return np.array(Image.fromarray(part).resize((columns, rows), Image.Resampling.BILINEAR))


def coverage(mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """0 and 255 for a mask's pixels."""
    return mask.astype(np.uint8) * np.uint8(255)


def flip(pixels: UInt8[np.ndarray, "H W *C"]) -> UInt8[np.ndarray, "H W *C"]:
    """Left and right exchanged, of a picture or of a coverage."""
    return pixels[:, ::-1]


def colour(
    rng: np.random.Generator, image: UInt8[np.ndarray, "H W 3"], settings: Augmentation
) -> UInt8[np.ndarray, "H W 3"]:
    """Brightness, contrast and saturation, each by a factor drawn within 1 +- its setting.

    Brightness scales all values, contrast their distance from the picture's mean grey, saturation
    their distance from each pixel's own grey.
    """
    strengths = np.array([settings.brightness, settings.contrast, settings.saturation])
    if not strengths.any():
        return image
    brightness, contrast, saturation = rng.uniform(1 - strengths, 1 + strengths).astype(np.float32)
    values = image.astype(np.float32) * brightness
    mean = _grey(values).mean()
    values = mean + contrast * (values - mean)
    grey = _grey(values)[:, :, None]
    values = grey + saturation * (values - grey)
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def moved(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "a b 3"],
    mask: UInt8[np.ndarray, "a b"],
    size: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "c d 3"], UInt8[np.ndarray, "c d"]]:
    """An object with nothing around it, black to its left and above, so that it lies somewhere
    within `size` (height, width), or begins at its edge where it is larger.

    Unchanged where the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return image, mask
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    before = [
        (int(rng.integers(max(0, space - side) + 1)), 0)
        for space, side in zip(size, mask[part].shape, strict=True)
    ]
    return np.pad(image[part], [*before, (0, 0)]), np.pad(mask[part], before)


def paste(
    image: UInt8[np.ndarray, "h w 3"],
    masks: UInt8[np.ndarray, "P h w"],
    other: UInt8[np.ndarray, "a b 3"],
    other_mask: UInt8[np.ndarray, "a b"],
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "Q h w"]]:
    """Puts the object `other_mask` of another picture over this one.

    Both begin at the top left corner of the model's square; what does not fit is cut off. The
    object's mask comes last, and covers the others: Q is P + 1.
    """
    height, width = min(len(image), len(other)), min(image.shape[1], other.shape[1])
    share = np.zeros(image.shape[:2], np.float32)
    share[:height, :width] = other_mask[:height, :width].astype(np.float32) / np.float32(255)
    front = np.zeros_like(image)
    front[:height, :width] = other[:height, :width]
    pasted = _blend(image, front, share[:, :, None])
    covered = _blend(masks, np.zeros_like(masks), share)
    new = np.rint(share * np.float32(255)).astype(np.uint8)
    return pasted, np.concatenate([covered, new[None]])


def _blend(back: np.ndarray, front: np.ndarray, share: Float32[np.ndarray, "..."]) -> np.ndarray:
    mixed = back.astype(np.float32) * (np.float32(1) - share) + front.astype(np.float32) * share
    return np.rint(mixed).astype(np.uint8)


def _grey(values: Float32[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W"]:
    return values @ np.array(GREY, np.float32)
