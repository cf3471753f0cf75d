"""One training example: objects drawn from a picture, augmented, brought to the model's sizes."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from samjax.datasets import (
    REASONS,
    BadRecordError,
    Finding,
    Reason,
    Record,
    decode_mask,
    read_picture,
)
from samjax.models import SamConfig
from samjax.train import augment
from samjax.train.augment import Augmentation, Window
from samjax.transforms import PIXEL_MEAN, PIXEL_STD, ResizeLongestSide, normalize_and_pad

TRIES_PER_OBJECT = 4
"""Masks looked at for each object wanted, where some cannot be used."""


class Example(NamedTuple):
    """One picture with some of its masks, or a batch of such.

    `image` is normalized and padded as by Meta, `input_size` is (height, width) of the picture in
    it; `image_embedding` takes its place where embeddings are kept. `masks` are at the decoder's
    low resolution, of which `valid` ones come first, `boxes` those of the objects as the input
    shows them: first and last pixel, (x0, y0, x1, y1), all four inclusive. `left_out` counts, in
    the order of `samjax.datasets.REASONS`, the records and masks that were met and could not be
    used: `Report.add_counts` takes it.
    """

    image: Float32[np.ndarray, "*B S S 3"] | None
    masks: Bool[np.ndarray, "*B P h w"]
    boxes: Float32[np.ndarray, "*B P 4"]
    valid: Bool[np.ndarray, "*B P"]
    input_size: Int32[np.ndarray, "*B 2"]
    left_out: Int32[np.ndarray, "*B R"]
    image_embedding: Float32[np.ndarray, "*B H W D"] | None = None


@dataclasses.dataclass(frozen=True)
class ExampleSettings:
    """`num_objects` (P) masks are drawn from each picture. Where it has fewer, the rest is padding,
    or with `repeat_objects` the same ones again, which will get other prompts. Without
    `augmentation` pictures are resized and nothing else.

    Raises ValueError where `low_res_size` does not divide `image_size`, or without objects.
    """

    image_size: int = 1024
    low_res_size: int = 256
    num_objects: int = 8
    augmentation: Augmentation | None = Augmentation()
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD
    repeat_objects: bool = False

    def __post_init__(self):
        if self.low_res_size < 1 or self.image_size % self.low_res_size:
            raise ValueError(
                f"the low resolution of {self.low_res_size} pixels a side does not divide the "
                f"input's {self.image_size}"
            )
        if self.num_objects < 1:
            raise ValueError(f"num_objects has to be at least 1, not {self.num_objects}")


def settings_for(
    config: SamConfig,
    *,
    num_objects: int = 8,
    augmentation: Augmentation | None = None,
    repeat_objects: bool = False,
) -> ExampleSettings:
    """The sizes and the normalization of a model."""
    return ExampleSettings(
        config.image_size, config.low_res_size, num_objects, augmentation,
        config.pixel_mean, config.pixel_std, repeat_objects,
    )  # fmt: skip


def make_example(
    record: Record,
    rng: np.random.Generator,
    settings: ExampleSettings,
    *,
    other: Record | None = None,
) -> Example:
    """Draws objects, augments, and brings all to the model's sizes.

    `other` gives an object for copy-paste, with the probability that the augmentation states. A
    mask at low resolution is where at least half of a cell's area is covered; masks that vanish are
    left out. Where jitter makes all of them vanish, the picture is taken without.

    Raises BadRecordError for a picture that cannot be read, or has no mask that can be used.
    """
    image = read_picture(record)
    masks, findings = _draw_masks(record, rng, TRIES_PER_OBJECT * settings.num_objects)
    augmentation = settings.augmentation
    windows = [_fit(record.size, settings)]
    if augmentation is not None:
        anchors = np.argwhere(masks[rng.integers(len(masks))])
        y, x = anchors[rng.integers(len(anchors))].tolist()
        scale = rng.uniform(*augmentation.scale)
        window = augment.jitter_window(rng, record.size, settings.image_size, scale, (y, x))
        windows.insert(0, window)
        if rng.random() < augmentation.flip:
            image, masks = augment.flip(image), [mask[:, ::-1] for mask in masks]
            windows = [_mirrored(window, record.size[1]) for window in windows]
    for window in windows:
        pixels, coverages, vanished = _resized(image, masks, window, settings)
        if len(coverages):
            break
    else:
        raise BadRecordError(Reason.VANISHED, f"all masks of {record.path.name}")
    findings += [Finding(Reason.VANISHED, record.path.name)] * vanished
    if augmentation is not None:
        if other is not None and rng.random() < augmentation.copy_paste:
            pixels, coverages, more = _pasted(pixels, coverages, other, rng, settings)
            findings += more
        pixels = augment.colour(rng, pixels, augmentation)
    return _example(pixels, coverages, findings, settings)


def fitted_image(record: Record, settings: ExampleSettings) -> Float32[np.ndarray, "S S 3"]:
    """The model's input for a picture as it is. Raises BadRecordError as `read_picture`."""
    pixels = augment.resize(read_picture(record), _fit(record.size, settings))
    return _normalized(pixels, settings)


def _normalized(
    pixels: UInt8[np.ndarray, "h w 3"], settings: ExampleSettings
) -> Float32[np.ndarray, "S S 3"]:
    return normalize_and_pad(
        pixels, settings.image_size, pixel_mean=settings.pixel_mean, pixel_std=settings.pixel_std
    )


def low_resolution(
    coverages: UInt8[np.ndarray, "P H W"], image_size: int, low_res_size: int
) -> Bool[np.ndarray, "P h w"]:
    """Where at least half of a cell is covered, of coverages in the model's square, top left."""
    count, height, width = coverages.shape
    cell = image_size // low_res_size
    padded = np.zeros((count, image_size, image_size), np.uint8)
    padded[:, :height, :width] = coverages
    cells = padded.reshape(count, low_res_size, cell, low_res_size, cell)
    return 2 * cells.sum(axis=(2, 4), dtype=np.int64) >= 255 * cell * cell


def empty_example(findings: Sequence[Finding], settings: ExampleSettings) -> Example:
    """An example of nothing but padding, with these findings counted."""
    side = settings.image_size
    return _example(
        np.zeros((side, side, 3), np.uint8), np.zeros((0, side, side), np.uint8), findings, settings
    )


def count(findings: Sequence[Finding]) -> Int32[np.ndarray, "R"]:
    """How many there are of each of `REASONS`."""
    counts = np.zeros(len(REASONS), np.int32)
    for reason, _ in findings:
        counts[REASONS.index(reason)] += 1
    return counts


def _draw_masks(
    record: Record, rng: np.random.Generator, number: int
) -> tuple[list[Bool[np.ndarray, "H W"]], list[Finding]]:
    masks: list[np.ndarray] = []
    findings: list[Finding] = []
    for index in rng.permutation(len(record.masks)).tolist():
        if len(masks) == number:
            break
        try:
            masks.append(decode_mask(record, index))
        except BadRecordError as error:
            findings.append(Finding(error.reason, error.text))
    if not masks:
        raise BadRecordError(Reason.NO_MASKS, f"{record.path} ({findings[0].text})")
    return masks, findings


def _fit(size: tuple[int, int], settings: ExampleSettings) -> Window:
    output = ResizeLongestSide.get_preprocess_shape(*size, settings.image_size)
    return augment.whole_window(size, output)


def _mirrored(window: Window, width: int) -> Window:
    return window._replace(left=width - window.left - window.width)


def _resized(
    image: UInt8[np.ndarray, "H W 3"],
    masks: Sequence[Bool[np.ndarray, "H W"]],
    window: Window,
    settings: ExampleSettings,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "P h w"], int]:
    """The window of the picture and of the first masks that survive, and how many did not
    though they are in the window."""
    kept, vanished = [np.zeros((0, *window.output), np.uint8)], 0
    for mask in masks:
        if len(kept) > settings.num_objects:
            break
        resized = augment.resize(augment.coverage(mask), window)[None]
        if low_resolution(resized, settings.image_size, settings.low_res_size).any():
            kept.append(resized)
        elif mask[window.top :, window.left :][: window.height, : window.width].any():
            vanished += 1
    return augment.resize(image, window), np.concatenate(kept), vanished


def _pasted(
    pixels: UInt8[np.ndarray, "h w 3"],
    coverages: UInt8[np.ndarray, "P h w"],
    other: Record,
    rng: np.random.Generator,
    settings: ExampleSettings,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "Q h w"], list[Finding]]:
    """With an object of `other` over it, jittered by itself and anywhere in the picture; unchanged
    where `other` is bad."""
    assert settings.augmentation is not None
    try:
        image = read_picture(other)
        (mask, *_), findings = _draw_masks(other, rng, 1)
    except BadRecordError as error:
        return pixels, coverages, [Finding(error.reason, error.text)]
    inside = np.argwhere(mask)
    y, x = inside[rng.integers(len(inside))].tolist()
    scale = rng.uniform(*settings.augmentation.scale)
    window = augment.jitter_window(rng, other.size, settings.image_size, scale, (y, x))
    front, share = augment.resize(image, window), augment.resize(augment.coverage(mask), window)
    front, share = augment.moved(rng, front, share, pixels.shape[:2])
    pixels, coverages = augment.paste(pixels, coverages, front, share)
    return pixels, coverages[np.roll(np.arange(len(coverages)), 1)], findings


def _example(
    pixels: UInt8[np.ndarray, "h w 3"],
    coverages: UInt8[np.ndarray, "P h w"],
    findings: Sequence[Finding],
    settings: ExampleSettings,
) -> Example:
    low = low_resolution(coverages, settings.image_size, settings.low_res_size)
    chosen = np.flatnonzero(low.any(axis=(1, 2)))[: settings.num_objects]
    if settings.repeat_objects and len(chosen):
        chosen = chosen[np.arange(settings.num_objects) % len(chosen)]
    masks = np.zeros((settings.num_objects, *low.shape[1:]), bool)
    masks[: len(chosen)] = low[chosen]
    boxes = np.zeros((settings.num_objects, 4), np.float32)
    boxes[: len(chosen)] = [bounding_box(coverages[index]) for index in chosen] or boxes[:0]
    image, valid = _normalized(pixels, settings), np.arange(settings.num_objects) < len(chosen)
    size = np.array(pixels.shape[:2], np.int32)
    return Example(image, masks, boxes, valid, size, count(findings))


def bounding_box(coverage: UInt8[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """First and last column and row (x0, y0, x1, y1) of the pixels that are covered by half, or at
    all where none is by half; all four inclusive. Raises ValueError where nothing is covered."""
    covered = coverage >= 128 if (coverage >= 128).any() else coverage > 0
    columns, rows = np.flatnonzero(covered.any(axis=0)), np.flatnonzero(covered.any(axis=1))
    if not len(columns):
        raise ValueError("nothing is covered: there is no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
