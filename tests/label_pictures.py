"""Pictures that say which thing each pixel is of, and a generator that reads it off them."""

import numpy as np

from samjax.automatic_mask_generator import Segmented
from samjax.postprocess import box_from_rle, box_xyxy_to_xywh, compress_mask


def picture_of(labels):
    """Labels 0..255 as red; 0 is nothing."""
    return np.stack([labels, np.zeros_like(labels), np.zeros_like(labels)], axis=-1)


def record_of(mask, *, predicted_iou=0.9):
    rle = compress_mask(mask)
    y, x = (int(v) for v in np.argwhere(mask)[0])
    height, width = mask.shape
    return {
        "segmentation": rle,
        "area": int(mask.sum()),
        "bbox": box_xyxy_to_xywh(box_from_rle(rle)).tolist(),
        "predicted_iou": predicted_iou,
        "point_coords": [[float(x), float(y)]],
        "stability_score": 0.95,
        "crop_box": [0, 0, width, height],
    }


class ReadsLabels:
    """In place of the generator: the exact mask of every label in the picture, of `parts` too.

    `parts` are masks of the labels in each list together; equal masks are given once. `sizes` are
    those of the pictures it was given.
    """

    def __init__(self, parts=()):
        self.parts = parts
        self.sizes = []

    def generate_many(self, images, *, yield_errors=False):
        for image in images:
            self.sizes.append(image.shape[:2])
            yield Segmented(image, self._records(image[..., 0]))

    def _records(self, labels):
        there = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        groups = [[label] for label in there if label] + list(self.parts)
        masks = {}
        for group in groups:
            mask = labels == group[0] if len(group) == 1 else np.isin(labels, group)
            if mask.any():
                masks[compress_mask(mask)["counts"]] = mask
        return [record_of(mask) for mask in masks.values()]
