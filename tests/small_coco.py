"""Small masks as COCO keeps them."""

import numpy as np

from samjax.postprocess import coco_encode_rle, mask_to_rle

SIZE = (24, 32)


def rectangle(top=4, left=6, bottom=16, right=20, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def rle(mask):
    return coco_encode_rle(mask_to_rle(mask))
