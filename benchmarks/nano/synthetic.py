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
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from benchmarks.nano.prepare import OUTPUT
from benchmarks.nano.surfaces import Texture, Things, marked, shaded, shape, texture_of, things_of

MIN_AREA = 100
"""Pixels of a region that is still annotated."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="synthetic", help="the folder's, in nano-training")
    parser.add_argument("--plain", type=float, default=0.0, help="share of drawn textures, 0 to 1")
    parser.add_argument("--muted", type=float, default=0.0, help="share of drawn ones near grey")
    parser.add_argument("--bright", type=float, default=0.0, help="share of drawn ones near white")
    parser.add_argument("--things", type=float, default=0.0, help="share of things among shapes")
    parser.add_argument("--marks", type=float, default=0.0, help="share of grounds with shadows")
    parser.add_argument("--pairs", type=float, default=0.0, help="share of things that are two")
    args = parser.parse_args(argv)
    content = json.loads((args.folder / "coco-mix-training.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    pictures = args.folder / "data/coco-mix/images"
    texture = texture_of(
        [pictures / name for name in names],
        plain_share=args.plain,
        muted_share=args.muted,
        bright_share=args.bright,
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


def mixed(back: np.ndarray, front: np.ndarray, share: np.ndarray) -> np.ndarray:
    return back + (front - back) * share[..., None]


def finished(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """As a camera would have it: a little blur and noise."""
    pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.4, 1.0)))
    pixels = pixels + rng.normal(scale=rng.uniform(0, 6), size=pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
