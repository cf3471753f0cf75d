"""Small masks as COCO keeps them."""

import numpy as np

from samjax.postprocess import coco_encode_rle, mask_to_rle
from samjax.train.examples import ExampleSettings

SIZE = (24, 32)
PLAIN = ExampleSettings(64, 16, 2, None)


def rectangle(top=4, left=6, bottom=16, right=20, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def rle(mask):
    return coco_encode_rle(mask_to_rle(mask))


def truncate_a_picture(root, content):
    path = root / "2.png"
    path.write_bytes(path.read_bytes()[:40])
