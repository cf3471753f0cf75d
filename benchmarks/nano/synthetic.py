"""Pictures with edges that are known to the pixel: shapes, parts of shapes, and grounds.

    python -m benchmarks.nano.synthetic --number 400
    python -m benchmarks.nano.synthetic --plain 0.6 --things 0.5 --seed 1 --name plain
    python -m benchmarks.nano.synthetic --number 600 --plain 0.6 --things 0.5 --marks 0.7 --seed 2 \
        --name marked

COCO annotates things, and not what they are made of or stand on, with outlines drawn by hand. Here
every region has a mask: two or three grounds, shapes on them that hide each other, and on some a
part of another texture. Textures are taken from the training pictures that
`benchmarks.nano.prepare` lists; with `--plain`, that share of them is drawn instead, as sky, sand,
water and walls are: a slow change of colour, and a little noise of every size. With `--things`,
that share of the shapes are things cut out of the training pictures. With `--marks`, that share of
the grounds has shadows and spots upon it, which belong to the ground. Pictures and `instances.json`
go to `nano-training/NAME`.
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
Things = Callable[
    [np.random.Generator, np.ndarray, float, tuple[int, int]], tuple[np.ndarray, np.ndarray]
]
"""The pixels of a thing and its share of each, from its centre, size and the picture's size."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="synthetic", help="the folder's, in nano-training")
    parser.add_argument("--plain", type=float, default=0.0, help="share of drawn textures, 0 to 1")
    parser.add_argument("--things", type=float, default=0.0, help="share of things among shapes")
    parser.add_argument("--marks", type=float, default=0.0, help="share of grounds with shadows")
    args = parser.parse_args(argv)
    content = json.loads((args.folder / "coco-mix-training.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    pictures = args.folder / "data/coco-mix/images"
    texture = texture_of([pictures / name for name in names], plain_share=args.plain)
    things = things_of(content, pictures) if args.things else None
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
            whole = False
            surface, share = things(rng, centre, 2 * size, (height, width))
        else:
            whole = True
            surface = shaded(rng, texture(rng, height, width))
            share = shape(rng, centre, size, (height, width))
        covered = share >= 0.5
        if covered.sum() < MIN_AREA:
            continue
        pixels = mixed(pixels, surface, share)
        masks = [mask & ~covered for mask in masks]
        masks.append(covered)
        if whole and size > 60 and rng.random() < 0.5:
            moved = centre + rng.uniform(-0.3, 0.3, 2) * size
            part = share * shape(rng, moved, size * rng.uniform(0.3, 0.7), (height, width))
            pixels = mixed(pixels, texture(rng, height, width), part)
            masks.append(part >= 0.5)
    return finished(rng, pixels), [mask for mask in masks if mask.sum() >= MIN_AREA]


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


def texture_of(pictures: Sequence[Path], *, plain_share: float = 0.0) -> Texture:
    """Crops of these pictures, enlarged to fill what is asked for, with other colours.

    A `plain_share` of them is `plain` instead.
    """

    def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        if plain_share and rng.random() < plain_share:
            return plain(rng, height, width)
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


def things_of(content: dict, pictures: Path) -> Things:
    """Things of this COCO file, whole and large enough to show their outline."""
    files = {image["id"]: image["file_name"] for image in content["images"]}
    chosen = [a for a in content["annotations"] if a["area"] >= 4_000 and not a["iscrowd"]]

    def thing(
        rng: np.random.Generator, centre: np.ndarray, size: float, canvas: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        annotation = chosen[int(rng.integers(len(chosen)))]
        image = read_image(pictures / files[annotation["image_id"]]).astype(np.float32)
        mask = coco.decode(annotation["segmentation"]).astype(np.float32)
        x, y, width, height = annotation["bbox"]
        scale = min(size / max(width, height), 1.5)
        mirrored = -1 if rng.random() < 0.5 else 1
        middle = np.array([x + width / 2, y + height / 2])
        turn = np.array([[mirrored * scale, 0], [0, scale]])
        affine = np.column_stack([turn, centre - turn @ middle])
        surface = cv2.warpAffine(image, affine, canvas[::-1], flags=cv2.INTER_LINEAR)
        share = cv2.warpAffine(mask, affine, canvas[::-1], flags=cv2.INTER_LINEAR)
        return surface, share

    return thing


def plain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One colour that changes slowly towards another, with noise of every size upon it."""
    first = rng.uniform(30, 225, 3)
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
