"""From a few annotated pictures to labels of others: a YOLOv8 is trained for minutes, its boxes are
nano's prompts, and the labels are compared with the truth through the COCO API.

python -m benchmarks.weak_detector ../shared/data/nuclei/instances.json
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pycocotools.coco import COCO
from tqdm import tqdm

import samjax
from benchmarks.labels import iou
from samjax.detection.letterbox import fit
from samjax.detection.losses import Truth, detection_loss
from samjax.images import read_image
from samjax.models.params import flatten, unflatten
from samjax.models.yolo import YoloConfig
from samjax.yolo_model import YoloModel, init_params, run

FIRST_SCORE = 0.01
"""What each place says of each class before it has learned anything."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="a COCO file, with `images` beside it")
    parser.add_argument("--held-out", type=int, default=10, help="the last pictures")
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--conf", type=float, default=0.25)
    args = parser.parse_args()
    samjax.tune_allocator()
    truth = COCO(str(args.data))
    keys = sorted(truth.imgs)
    started = time.monotonic()
    model = train(truth, args.data.parent / "images", keys[: -args.held_out], args)
    print(f"trained for {(time.monotonic() - started) / 60:.1f} minutes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samjax.save_checkpoint(folder / "yolo", model)
        (folder / "held_out").mkdir()
        for key in keys[-args.held_out :]:
            file = truth.imgs[key]["file_name"]
            shutil.copy(args.data.parent / "images" / file, folder / "held_out" / file)
        done = samjax.auto_annotate(
            folder / "held_out", folder / "yolo", "nano", imgsz=args.imgsz, conf=args.conf
        )
        report(truth, COCO(str(done.folder / "annotations.json")))


def train(truth: COCO, images: Path, keys: list[int], args: argparse.Namespace) -> YoloModel:
    names = [category["name"] for category in truth.cats.values()]
    config = YoloConfig.published("n", num_classes=len(names))
    leaves = flatten(init_params(config))
    last = [n for n in leaves if n.startswith("head.classes.") and n.endswith("conv3.bias")]
    bias = np.log(FIRST_SCORE / (1 - FIRST_SCORE))
    params = unflatten(leaves | {n: jnp.full_like(leaves[n], bias) for n in last})
    assert len(last) == 3
    pictures, boxes = examples(truth, images, keys, args.imgsz)
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, 50, args.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(schedule))

    @jax.jit
    def step(params: Any, state: Any, inputs: Any, truth: Truth) -> Any:
        def loss(params: Any) -> Any:
            outputs = run(params, inputs.astype(jnp.float32) / 255, config)
            return detection_loss(outputs, truth, args.imgsz, args.imgsz).total

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    bar = tqdm(range(args.steps), unit="step")
    for _ in bar:
        chosen = rng.choice(len(keys), args.batch_size, replace=False)
        rows = [flipped(pictures[i], boxes[i], rng, args.imgsz) for i in chosen]
        most = 1 << (max(len(b) for _, b in rows) - 1).bit_length()
        batch = Truth(
            np.stack([np.pad(b[:, :4], ((0, most - len(b)), (0, 0))) for _, b in rows]),
            np.stack([np.pad(b[:, 4].astype(np.int32), (0, most - len(b))) for _, b in rows]),
            np.stack([np.arange(most) < len(b) for _, b in rows]),
        )
        params, state, value = step(params, state, np.stack([p for p, _ in rows]), batch)
        bar.set_postfix(loss=f"{float(value):.2f}")
    return YoloModel(params, config, tuple(names))


def examples(
    truth: COCO, images: Path, keys: list[int], side: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs, and for each (N, 5) boxes in their pixels and class numbers."""
    numbers = {category: i for i, category in enumerate(truth.cats)}
    pictures, boxes = [], []
    for key in keys:
        image = read_image(images / truth.imgs[key]["file_name"])
        letterbox = fit(image.shape[0], image.shape[1], side, rect=False)
        rows = []
        for annotation in truth.imgToAnns[key]:
            x, y, width, height = annotation["bbox"]
            corners = np.array([x, y, x + width, y + height]) * letterbox.scale
            corners += [letterbox.left, letterbox.top] * 2
            rows.append([*corners, numbers[annotation["category_id"]]])
        pictures.append(letterbox.apply(image))
        boxes.append(np.array(rows, np.float32).reshape(-1, 5))
    return pictures, boxes


def flipped(
    picture: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, side: int
) -> tuple[np.ndarray, np.ndarray]:
    for axis in (0, 1):
        if rng.random() < 0.5:
            picture, boxes = np.flip(picture, 1 - axis), boxes.copy()
            boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    return np.ascontiguousarray(picture), boxes


def report(truth: COCO, found: COCO) -> None:
    """Of each true thing the best IoU that a label has with it, no label being taken twice."""
    keys = {image["file_name"]: key for key, image in truth.imgs.items()}
    best, labels = [], 0
    for key, image in found.imgs.items():
        true = [truth.annToMask(a).astype(bool) for a in truth.imgToAnns[keys[image["file_name"]]]]
        masks = [found.annToMask(a).astype(bool) for a in found.imgToAnns[key]]
        labels += len(masks)
        table = np.array([[iou(a, b) for b in masks] for a in true]).reshape(len(true), len(masks))
        values = np.zeros(len(true))
        while table.size and table.max() > 0:
            i, j = np.unravel_index(table.argmax(), table.shape)
            values[i] = table[i, j]
            table[i], table[:, j] = 0, 0
        best += values.tolist()
    hits = [value for value in best if value >= 0.5]
    print(json.dumps({
        "things": len(best), "labels": labels, "found at IoU 0.5": len(hits),
        "mean IoU of those": round(float(np.mean(hits)), 4) if hits else None,
        "mean IoU of all": round(float(np.mean(best)), 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
