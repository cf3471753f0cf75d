"""What synthetic pictures are made of: outlines, textures, drawn grounds, things cut out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

from samjax.images import read_image

Texture = Callable[[np.random.Generator, int, int], np.ndarray]
Surface = tuple[np.ndarray, np.ndarray]
"""The pixels (H, W, 3) of one thing, and its share of each (H, W), in [0, 1]."""
Things = Callable[[np.random.Generator, np.ndarray, float, tuple[int, int]], list[Surface]]
"""A thing or two that touch, from the centre, the size and the picture's size."""


def shape(
    rng: np.random.Generator, centre: np.ndarray, size: float, canvas: tuple[int, int]
) -> np.ndarray:
    """The share of each pixel that a random outline of about `size` pixels covers, in [0, 1]."""
    kind = rng.integers(4)
    if kind == 0:  # smooth, from a few harmonics
        angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        radius = np.ones_like(angle)
        for n in range(2, 7):
            radius += rng.normal(scale=0.5 / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi))
        radius = np.maximum(radius, 0.15)
    elif kind == 1:  # an ellipse
        angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        radius = np.ones_like(angle)
    else:  # a rectangle, or another polygon
        corners = 4 if kind == 2 else rng.integers(3, 10)
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = np.ones_like(angle) if kind == 2 else rng.uniform(0.4, 1.2, corners)
    points = np.stack([np.cos(angle), np.sin(angle)]) * radius * size / 2
    points[1] *= np.exp(rng.uniform(-1, 0))
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (rotation @ points).T + centre
    share = np.zeros(canvas, np.uint8)
    fixed = np.round(points * 16).astype(np.int32)
    cv2.fillPoly(share, [fixed], 255, lineType=cv2.LINE_AA, shift=4)
    return share.astype(np.float32) / 255


def texture_of(
    pictures: Sequence[Path],
    *,
    plain_share: float = 0.0,
    muted_share: float = 0.0,
    bright_share: float = 0.0,
) -> Texture:
    """Crops of these pictures, enlarged to fill what is asked for, with other colours.

    A `plain_share` of them is `plain` instead, of which a `muted_share` is nearly grey, and a
    `bright_share` nearly white, as sand and snow.
    """

    def chosen(rng: np.random.Generator, share: float) -> bool:
        return share > 0 and rng.random() < share

    def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        if chosen(rng, plain_share):
            muted, bright = chosen(rng, muted_share), chosen(rng, bright_share)
            return plain(rng, height, width, muted=muted, bright=bright)
        source = read_image(pictures[int(rng.integers(len(pictures)))])
        side = int(min(source.shape[0], source.shape[1], rng.integers(16, 96)))
        y = int(rng.integers(source.shape[0] - side + 1))
        x = int(rng.integers(source.shape[1] - side + 1))
        crop = cv2.resize(
            source[y : y + side, x : x + side].astype(np.float32), None, fx=2, fy=2,
            interpolation=cv2.INTER_CUBIC,
        )  # fmt: skip
        coloured = crop * rng.uniform(0.6, 1.4) + rng.uniform(-40, 40, 3)
        down, right = height - len(crop), width - crop.shape[1]
        padded = cv2.copyMakeBorder(
            coloured.astype(np.float32), 0, max(0, down), 0, max(0, right),
            borderType=cv2.BORDER_REFLECT,
        )  # fmt: skip
        return padded[:height, :width]

    return texture


def things_of(content: dict, pictures: Path, *, pairs_share: float = 0.0) -> Things:
    """Things of this COCO file, whole and large enough to show their outline.

    A `pairs_share` of them are two of one category, of much the same height, on the same ground
    and of colours more or less alike; the second, in front, covers up to a third of the first.
    """
    files = {image["id"]: image["file_name"] for image in content["images"]}
    chosen = [a for a in content["annotations"] if a["area"] >= 4_000 and not a["iscrowd"]]
    kinds: dict[int, list[dict]] = {}
    for annotation in chosen:
        kinds.setdefault(annotation["category_id"], []).append(annotation)

    def placed(annotation: dict, rng: np.random.Generator, foot: np.ndarray, scale: float,
               canvas: tuple[int, int]) -> Surface:  # fmt: skip
        """With the middle of its lower edge at `foot`."""
        image = read_image(pictures / files[annotation["image_id"]]).astype(np.float32)
        mask = coco.decode(annotation["segmentation"]).astype(np.float32)
        x, y, width, height = annotation["bbox"]
        mirrored = -1 if rng.random() < 0.5 else 1
        turn = np.array([[mirrored * scale, 0], [0, scale]])
        affine = np.column_stack([turn, foot - turn @ np.array([x + width / 2, y + height])])
        surface = cv2.warpAffine(image, affine, canvas[::-1], flags=cv2.INTER_LINEAR)
        return surface, cv2.warpAffine(mask, affine, canvas[::-1], flags=cv2.INTER_LINEAR)

    def thing(
        rng: np.random.Generator, centre: np.ndarray, size: float, canvas: tuple[int, int]
    ) -> list[Surface]:
        annotation = chosen[int(rng.integers(len(chosen)))]
        width, height = annotation["bbox"][2:]
        scale = min(size / max(width, height), 1.5)
        foot = centre + [0, scale * height / 2]
        first = placed(annotation, rng, foot, scale, canvas)
        if not pairs_share or rng.random() >= pairs_share:
            return [first]
        same = kinds[annotation["category_id"]]
        other = same[int(rng.integers(len(same)))]
        other_scale = scale * height / other["bbox"][3] * float(rng.uniform(0.8, 1.25))
        if other_scale > 2:
            return [first]
        apart = (scale * width + other_scale * other["bbox"][2]) / 2 * rng.uniform(0.65, 1.0)
        step = [apart if rng.random() < 0.5 else -apart, rng.uniform(-0.02, 0.08) * size]
        second = placed(other, rng, foot + step, other_scale, canvas)
        return [first, alike(rng, second, first)]

    return thing


def alike(rng: np.random.Generator, changed: Surface, model: Surface) -> Surface:
    """With its mean colour moved towards the other's by a random part of the way."""
    inside, wanted = changed[1] >= 0.5, model[1] >= 0.5
    if not (inside.any() and wanted.any()):
        return changed
    difference = model[0][wanted].mean(0) - changed[0][inside].mean(0)
    return changed[0] + np.float32(rng.uniform()) * difference, changed[1]


def plain(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    muted: bool = False,
    bright: bool = False,
) -> np.ndarray:
    """One colour that changes slowly towards another, with noise of every size upon it."""
    first = rng.uniform(30, 225, 3)
    if muted or bright:
        first = first.mean() + (first - first.mean()) * rng.uniform(0, 0.4)
    if bright:
        first = first * rng.uniform(210, 255) / first.max()
    other = np.clip(first + rng.normal(scale=25, size=3), 0, 255)
    share = blurred_noise(rng, (2, 2), height, width)[..., None]
    pixels = first + (other - first) * share
    strength = float(np.exp(rng.uniform(np.log(0.5), np.log(12))))
    flat = rng.uniform(0.15, 1.0)  # below 1 the noise is of stripes, as of waves and grass
    for cells in (4, 8, 16, 32, 64, 128, 256):
        grid = (cells, max(2, int(cells * flat)))
        noise = blurred_noise(rng, grid if rng.random() < 0.8 else grid[::-1], height, width) - 0.5
        pixels = pixels + strength * noise[..., None] * rng.uniform(0.3, 1.5)
    return pixels.astype(np.float32)


def blurred_noise(
    rng: np.random.Generator, grid: tuple[int, int], height: int, width: int
) -> np.ndarray:
    """Random numbers in [0, 1] on a grid of (rows, columns), enlarged smoothly to (H, W)."""
    values = rng.uniform(size=grid).astype(np.float32)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)


def shaded(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Brighter towards one side."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slope = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    return pixels * (1 + slope[0] * (y / height - 0.5) + slope[1] * (x / width - 0.5))[..., None]


def marked(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """With flat shadows and small spots, which are no regions of their own."""
    height, width = canvas = pixels.shape[:2]
    light = np.ones(canvas, np.float32)
    for _ in range(rng.integers(1, 4)):
        size = float(np.exp(rng.uniform(np.log(60), np.log(400))))
        share = shape(rng, rng.uniform(0, [width, height]), size, canvas)
        share = cv2.GaussianBlur(share, (0, 0), float(rng.uniform(0.5, 6)))
        light *= 1 - float(rng.uniform(0.2, 0.7)) * share
    tone = float(rng.uniform(-0.6, 0.3))
    for _ in range(rng.integers(0, 60)):
        size = float(np.exp(rng.uniform(np.log(3), np.log(20))))
        light *= 1 + tone * rng.uniform() * shape(
            rng, rng.uniform(0, [width, height]), size, canvas
        )
    return pixels * light[..., None]
