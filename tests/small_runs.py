"""Small runs that take seconds: a tiny model, and pictures of coloured rectangles."""

import json

import numpy as np
from PIL import Image

from samjax import SamConfig, inference
from samjax.checkpoint import Model, save_checkpoint
from samjax.train.config import TrainConfig
from samjax.train.run_config import DataConfig, RunConfig

SIDE = 96
TRAIN = TrainConfig(
    num_points=1, refine_within=0, refine_at_end=0, learning_rate=1e-3, warmup_steps=2,
    total_steps=12, decay="cosine", ema_decay=0.9, layer_decay=1.0,
)  # fmt: skip


def write_pictures(folder, number=5, seed=0):
    """A COCO file `instances.json` beside its `images`: two rectangles on noise in each."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(number):
        pixels = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
        for n in range(2):
            top, left = rng.integers(4, 36, 2).tolist()
            top += 40 * n
            height, width = rng.integers(14, 22, 2).tolist()
            pixels[top : top + height, left : left + width] = rng.integers(120, 255, 3)
            polygon = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": 1, "iscrowd": 0,
                 "segmentation": [polygon], "area": height * width,
                 "bbox": [left, top, width, height]}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def write_model(path, config=None, seed=0):
    config = config or SamConfig.tiny(64, decoder_depth=1)
    save_checkpoint(path, Model(inference.init_params(config, seed), config))
    return path


def small_run(folder, output, **changes):
    """A run of 12 steps with a checkpoint every three, on what is in `folder`."""
    return RunConfig(
        **{
            "data": (DataConfig(path=str(folder / "data" / "instances.json")),),
            "output": str(output),
            "model": str(folder / "model"),
            "batch_size": 2,
            "num_objects": 2,
            "train": TRAIN,
            "log_every": 1,
            "checkpoint_every": 3,
            "evaluate_every": 0,
            "sample_pictures": 0,
        }
        | changes
    )
