"""Segment everything in a picture (appendix B; reference: `SamAutomaticMaskGenerator`)."""

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from samjax.checkpoint import Model
from samjax.everything.ahead import OneAhead
from samjax.everything.crops import Filters
from samjax.everything.grids import make_point_grids
from samjax.everything.masks import OUTPUT_MODES, records, without_small_regions
from samjax.everything.pictures import Encoded, Found, Source, Work, segment_pictures
from samjax.predictor import SamPredictor


class MetasDefault(float):
    """A default of Meta's, which gives way to the model's own threshold.

    An equal number from a caller is a plain float, and stays.
    """


class MetasCount(int):
    """As `MetasDefault`, where Meta's default is a whole number."""


class Segmented(NamedTuple):
    """A picture as it was read, and the records of what is in it."""

    image: UInt8[np.ndarray, "H W 3"]
    records: list[dict[str, Any]]


class _Stopped(BaseException):
    """Ends the work on a picture whose result nobody waits for."""


class SamAutomaticMaskGenerator:
    """Masks of all that is in a picture, from a grid of points on it and on crops of it.

    Arguments, defaults, output modes and record keys are the reference's. A model may carry
    thresholds of its own (`Model.everything`), which are used where the caller names none.

    Args:
      model: what `samjax.load` returns; without one the package's own, nano.
      points_per_side: points along one side of the grid; their square is the number of prompts.
        None when `point_grids` are given.
      points_per_batch: prompts decoded at a time.
      pred_iou_thresh: keep masks whose predicted IoU is above this, in 0..1.
      stability_score_thresh: keep masks whose stability score is at least this, in 0..1.
      stability_score_offset: by how much the threshold is moved for that score, in logits.
      box_nms_thresh: IoU of boxes above which the mask with the lower predicted IoU goes.
      crop_n_layers: layer i runs the model again on 4**i crops of the picture.
      crop_nms_thresh: as `box_nms_thresh`, between masks of different crops.
      crop_overlap_ratio: overlap of the first layer's crops, as a share of the shorter side.
      crop_n_points_downscale_factor: layer i has `points_per_side / factor**i` points a side.
      point_grids: (N, 2) arrays of points in [0, 1], one for each layer.
      min_mask_region_area: fill holes and drop islands smaller than this, in pixels.
      output_mode: "binary_mask", "uncompressed_rle" or "coco_rle" segmentations.
      progress: show a progress bar when it takes more than two seconds.

    Raises `ValueError` naming the argument that is out of range.
    """

    def __init__(
        self,
        model: Model | None = None,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = MetasDefault(0.88),
        stability_score_thresh: float = MetasDefault(0.95),
        stability_score_offset: float = MetasDefault(1.0),
        box_nms_thresh: float = MetasDefault(0.7),
        crop_n_layers: int = 0,
        crop_nms_thresh: float = MetasDefault(0.7),
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int | float = MetasCount(0),
        output_mode: str = "binary_mask",
        *,
        progress: bool = False,
    ):
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is {output_mode!r}; use one of {OUTPUT_MODES}.")
        if points_per_batch < 1:
            raise ValueError(f"points_per_batch is {points_per_batch}; it has to be at least 1.")
        if crop_n_layers < 0:
            raise ValueError(f"crop_n_layers is {crop_n_layers}; it has to be 0 or more.")
        if not 0 <= crop_overlap_ratio <= 1:
            raise ValueError(
                f"crop_overlap_ratio is {crop_overlap_ratio}; it is a share in [0, 1]."
            )
        self.point_grids = make_point_grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
        self.predictor = SamPredictor(model)
        carried = self.predictor.model.everything.to_dict()

        def threshold(name: str, given: float) -> float:
            own = isinstance(given, (MetasDefault, MetasCount))
            return float(carried.get(name, given) if own else given)

        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = threshold("pred_iou_thresh", pred_iou_thresh)
        self.stability_score_thresh = threshold("stability_score_thresh", stability_score_thresh)
        self.stability_score_offset = threshold("stability_score_offset", stability_score_offset)
        self.box_nms_thresh = threshold("box_nms_thresh", box_nms_thresh)
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = threshold("crop_nms_thresh", crop_nms_thresh)
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = threshold("min_mask_region_area", min_mask_region_area)
        if self.min_mask_region_area < 0:
            raise ValueError(
                f"min_mask_region_area is {self.min_mask_region_area:g}; "
                "it has to be 0 or more pixels."
            )
        self.output_mode = output_mode
        self.progress = progress

    def generate(
        self, image: Source, *, embedding: str | os.PathLike[str] | None = None
    ) -> list[dict[str, Any]]:
        """Segments everything in a picture: a file, or an array as `SamPredictor.set_image` takes.

        `embedding` is a file that `SamPredictor.save_embedding` wrote for it: the picture as a
        whole is not encoded again, its crops are. Raises `ValueError` where it is of another
        picture or model.

        Returns one record for each mask: `segmentation` ((H, W) bool or an RLE), `area` in pixels,
        `bbox` (x, y, width, height), `predicted_iou`, `point_coords` [[x, y]] that was clicked,
        `stability_score`, and `crop_box` (x, y, width, height) of the crop it was found in.
        """
        one_picture = image if embedding is None else Encoded(image, embedding)
        with contextlib.closing(self._segment([one_picture], lambda: None)) as found:
            (one,) = found
        if isinstance(one, Exception):
            raise one
        return one.records

    def generate_many(
        self, images: Iterable[Source], *, yield_errors: bool = False
    ) -> Generator[Segmented | Exception, None, None]:
        """Segments everything in each of many pictures, and keeps the device busy between them.

        Yields `(image, records)` in the order given: the picture as it was read, and what
        `generate` returns for it. While the caller has one result, the next picture is being
        segmented, the one after it may have been encoded and one more read: no more than that.
        `images` are taken as they are needed, on another thread.

        With `yield_errors` a picture that cannot be done is yielded as its exception, and the rest
        is done; without, the exception is raised and ends it. What `images` themselves raise is
        raised. Closing the iterator ends its threads, after the batch that is under way.
        """
        stopped = threading.Event()

        def after_batch() -> None:
            if stopped.is_set():
                raise _Stopped

        device = jax.config.jax_default_device  # type: ignore[attr-defined]
        work = _on_device(self._segment(images, after_batch), device)
        with contextlib.closing(OneAhead(work, stop=stopped.set)) as found:
            for one in found:
                if isinstance(one, Exception) and not yield_errors:
                    raise one
                yield one

    def _segment(
        self, images: Iterable[Source | Encoded], after_batch: Callable[[], object]
    ) -> Generator[Segmented | Exception, None, None]:
        filters = Filters(
            self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset,
            self.box_nms_thresh,
        )  # fmt: skip
        work = Work(
            self.predictor, filters, self.point_grids, self.points_per_batch, self.crop_n_layers,
            self.crop_overlap_ratio, self.crop_nms_thresh, self.progress,
        )  # fmt: skip
        with contextlib.closing(segment_pictures(work, images, after_batch)) as pictures:
            for found in pictures:
                yield found if isinstance(found, Exception) else self._finished(found)

    def _finished(self, found: Found) -> Segmented | Exception:
        try:
            masks = found.masks
            if self.min_mask_region_area > 0:
                threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
                masks = without_small_regions(masks, self.min_mask_region_area, threshold)
            return Segmented(found.image, records(masks, self.output_mode))
        except Exception as error:
            return error


def _on_device(
    items: Generator[Segmented | Exception, None, None], device: Any
) -> Generator[Segmented | Exception, None, None]:
    """The items, made with JAX's default device as the thread that asks for them has it."""
    with contextlib.closing(items):
        while True:
            with jax.default_device(device):
                item = next(items, None)
            if item is None:
                return
            yield item
