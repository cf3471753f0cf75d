"""Pictures with edges that are known to the pixel: shapes, parts of shapes, and grounds.

    python -m benchmarks.nano.synthetic --number 400
    python -m benchmarks.nano.synthetic --plain 0.6 --things 0.5 --seed 1 --name plain
    python -m benchmarks.nano.synthetic --number 600 --plain 0.6 --things 0.5 --marks 0.7 --seed 2 \
        --name marked
    python -m benchmarks.nano.synthetic --number 600 --plain 0.7 --muted 0.7 --things 0.8 \
        --marks 0.7 --pairs 0.7 --seed 3 --name paired

COCO annotates things, and not what they are made of or stand on, with outlines drawn by hand. Here
every region has a mask: two or three grounds, shapes on them that hide each other, and on some a
part of another texture. Textures are taken from the training pictures that
`benchmarks.nano.prepare` lists; with `--plain`, that share of them is drawn instead, as sky, sand,
water and walls are: a slow change of colour, and a little noise of every size; with `--muted`,
that share of those is nearly grey. With `--things`, that share of the shapes are things cut out of
the training pictures. With `--marks`, that share of the grounds has shadows and spots upon it,
which belong to the ground. With `--pairs`, that share of the things has another of its kind at its
side, which hides a little of it. Pictures and `instances.json` go to `nano-training/NAME`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from benchmarks.nano.prepare import OUTPUT
from samjax.images import read_image

MIN_AREA = 100
"""Pixels of a region that is still annotated."""

Texture = Callable[[np.random.Generator, int, int], np.ndarray]
Surface = tuple[np.ndarray, np.ndarray]
"""The pixels (H, W, 3) of one thing, and its share of each (H, W), in [0, 1]."""
Things = Callable[[np.random.Generator, np.ndarray, float, tuple[int, int]], list[Surface]]
"""A thing or two that touch, from the centre, the size and the picture's size."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="synthetic", help="the folder's, in nano-training")
    parser.add_argument("--plain", type=float, default=0.0, help="share of drawn textures, 0 to 1")
    parser.add_argument("--muted", type=float, default=0.0, help="share of drawn ones near grey")
    parser.add_argument("--things", type=float, default=0.0, help="share of things among shapes")
    parser.add_argument("--marks", type=float, default=0.0, help="share of grounds with shadows")
    parser.add_argument("--pairs", type=float, default=0.0, help="share of things that are two")
    args = parser.parse_args(argv)
    content = json.loads((args.folder / "coco-mix-training.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    pictures = args.folder / "data/coco-mix/images"
    texture = texture_of(
        [pictures / name for name in names], plain_share=args.plain, muted_share=args.muted
    )
    things = things_of(content, pictures, pairs_share=args.pairs) if args.things else None
    folder = args.folder / args.name
    write(folder, args.number, args.seed, texture, things, args.things, args.marks)


def write(
    folder: Path,
    number: int,
    seed: int,
    texture: Texture,
    things: Things | None = None,
    things_share: float = 0.0,
    marks_share: float = 0.0,
) -> Path:
    """`number` pictures and their COCO file, whose path is returned."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in tqdm(range(number), unit="picture", delay=2):
        rng = np.random.default_rng((seed, index))
        pixels, masks = draw(rng, texture, things, things_share, marks_share)
        name = f"{index:05}.jpg"
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 96))]
        cv2.imwrite(str(folder / "images" / name), pixels[:, :, ::-1], quality)
        height, width = pixels.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for mask in masks:
            rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": coco.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "region"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def draw(
    rng: np.random.Generator,
    texture: Texture,
    things: Things | None = None,
    things_share: float = 0.0,
    marks_share: float = 0.0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture (H, W, 3) and the mask (H, W) of each region that can be seen."""
    height, width = rng.integers(360, 641, 2).tolist()
    pixels, masks = np.zeros((height, width, 3), np.float32), []
    for ground in grounds(rng, height, width):
        surface = texture(rng, height, width)
        if marks_share and rng.random() < marks_share:
            surface = marked(rng, surface)
        pixels[ground] = surface[ground]
        masks.append(ground)
    for _ in range(rng.integers(3, 9)):
        size = float(np.exp(rng.uniform(np.log(24), np.log(260))))
        centre = rng.uniform(0, [width, height])
        if things is not None and rng.random() < things_share:
            for surface, share in things(rng, centre, 2 * size, (height, width)):
                pixels, masks = with_region(pixels, masks, surface, share)
            continue
        surface = shaded(rng, texture(rng, height, width))
        share = shape(rng, centre, size, (height, width))
        if (share >= 0.5).sum() < MIN_AREA:
            continue
        pixels, masks = with_region(pixels, masks, surface, share)
        if size > 60 and rng.random() < 0.5:
            moved = centre + rng.uniform(-0.3, 0.3, 2) * size
            part = share * shape(rng, moved, size * rng.uniform(0.3, 0.7), (height, width))
            pixels = mixed(pixels, texture(rng, height, width), part)
            masks.append(part >= 0.5)
    return finished(rng, pixels), [mask for mask in masks if mask.sum() >= MIN_AREA]


def with_region(
    pixels: np.ndarray, masks: list[np.ndarray], surface: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The picture and its masks, with one more region that hides what is under it."""
    covered = share >= 0.5
    if covered.sum() < MIN_AREA:
        return pixels, masks
    return mixed(pixels, surface, share), [*(mask & ~covered for mask in masks), covered]


def grounds(rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    """One to three regions that fill the picture, parted by smooth lines."""
    coarse = rng.normal(size=(4, 4)).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    slope = rng.normal(scale=3, size=2)
    down, right = np.linspace(0, slope[0], height)[:, None], np.linspace(0, slope[1], width)
    cuts = np.quantile(field + down + right, np.sort(rng.uniform(0.2, 0.8, rng.integers(0, 3))))
    level = np.digitize(field + down + right, cuts)
    return [level == i for i in range(len(cuts) + 1)]


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
    pictures: Sequence[Path], *, plain_share: float = 0.0, muted_share: float = 0.0
) -> Texture:
    """Crops of these pictures, enlarged to fill what is asked for, with other colours.

    A `plain_share` of them is `plain` instead, of which a `muted_share` is nearly grey.
    """

    def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        if plain_share and rng.random() < plain_share:
            return plain(rng, height, width, muted=muted_share > 0 and rng.random() < muted_share)
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


def plain(rng: np.random.Generator, height: int, width: int, *, muted: bool = False) -> np.ndarray:
    """One colour that changes slowly towards another, with noise of every size upon it."""
    first = rng.uniform(30, 225, 3)
    if muted:
        first = first.mean() + (first - first.mean()) * rng.uniform(0, 0.4)
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


def mixed(back: np.ndarray, front: np.ndarray, share: np.ndarray) -> np.ndarray:
    return back + (front - back) * share[..., None]


def finished(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """As a camera would have it: a little blur and noise."""
    pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.4, 1.0)))
    pixels = pixels + rng.normal(scale=rng.uniform(0, 6), size=pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
