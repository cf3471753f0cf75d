"""What the tests of training share: Meta's modules with random weights, and small data."""

import json

import numpy as np
import pytest
from PIL import Image

from reference import random_reference
from samjax.convert import from_state_dict
from samjax.datasets import open_coco
from small_coco import SIZE, rectangle, rle
from small_steps import CONFIG


@pytest.fixture(scope="module")
def params():
    return from_state_dict(random_reference(CONFIG, seed=0).state_dict()).params


@pytest.fixture
def coco(tmp_path):
    """Writes pictures of one grey each, 10 times their number, and a COCO file; opens it.

    `masks` is a list of segmentations for each picture; the first picture has the number 1."""

    def make(masks=None, *, folder="coco", size=SIZE, change=None):
        root = tmp_path / folder
        root.mkdir()
        masks = [[rle(rectangle())]] if masks is None else masks
        content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "thing"}]}
        for number, segmentations in enumerate(masks, start=1):
            grey = np.full((*size, 3), 10 * number, np.uint8)
            Image.fromarray(grey).save(root / f"{number}.png")
            content["images"].append(
                {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
            )
            for segmentation in segmentations:
                content["annotations"].append(
                    {
                        "id": 100 + len(content["annotations"]),
                        "image_id": number,
                        "category_id": 7,
                        "iscrowd": 0,
                        "segmentation": segmentation,
                    }
                )
        if change:
            change(root, content)
        (root / "instances.json").write_text(json.dumps(content))
        return open_coco(root / "instances.json", root, name=folder)

    return make
