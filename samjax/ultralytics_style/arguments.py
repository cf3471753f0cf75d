"""The arguments of a prediction, by their documented names."""

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NO_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "batch": ((1,), "pictures go through the model one after the other"),
    "rect": ((True,), "the model's input is a square, and what lies beside the picture is zero"),
    "retina_masks": ((True,), "masks always have the picture's own resolution"),
    "augment": ((False,), "there is no test-time augmentation"),
    "visualize": ((False,), "features are not drawn; samjax.SamPredictor.features has them"),
    "agnostic_nms": ((False, True), ""),
    "stream_buffer": ((False, True), ""),
    "compile": ((False, True), ""),
}
"""Documented arguments that change nothing here: the values for which that is what was asked for,
and what to tell whoever gives another."""

_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "classes": ((None,), "masks of Segment Anything have no classes to choose by"),
    "embed": ((None,), "samjax.SamPredictor.get_image_embedding() returns embeddings"),
    "save_frames": ((False,), "save=True writes a picture for each frame"),
    "task": (("segment", None), "this is segmentation; leave it out, or give 'segment'"),
    "mode": (("predict", None), "samjax train and samjax eval do the rest; leave it out, or give "
             "'predict'"),
}  # fmt: skip
"""Documented arguments whose other values cannot be done: those that can, and why not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """All that can be asked of a prediction, but for its source and its prompts.

    Thresholds that are None are the model's own, or Meta's. `updated` makes them from what a user
    gives, and checks it.
    """

    imgsz: int | Sequence[int] | None = None
    conf: float = 0.25
    """Masks are kept whose predicted IoU is above this."""
    iou: float | None = None
    """For everything: overlap of boxes above which the worse mask goes (0.7)."""
    max_det: int | None = None
    """At most this many masks of a picture are kept, those of the highest predicted IoU."""
    device: str | int | None = None
    half: bool = False
    vid_stride: int = 1
    verbose: bool = True

    points_stride: int = 32
    """Points along a side of the grid, not their distance."""
    points_batch_size: int = 64
    point_grids: Sequence[np.ndarray] | None = None
    crop_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500
    crop_downscale_factor: int = 1
    crop_nms_thresh: float | None = None
    conf_thres: float | None = None
    """For everything: as `conf`, and 0.88 in general."""
    stability_score_thresh: float | None = None
    stability_score_offset: float | None = None

    save: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_crop: bool = False
    show: bool = False
    show_labels: bool = True
    show_conf: bool = True
    show_boxes: bool = True
    line_width: int | None = None
    project: str | os.PathLike[str] | None = None
    name: str | os.PathLike[str] | None = None
    exist_ok: bool = False

    def updated(self, values: Mapping[str, Any]) -> "Arguments":
        """With other values for some, by name.

        Documented arguments without a meaning here are taken, with a line in samjax's log where
        they ask for something that will not happen. Raises `TypeError` for a name that is not
        documented, and `ValueError` for a value that is out of range or cannot be done.
        """
        own = {field.name for field in dataclasses.fields(self)}
        for name, value in values.items():
            if name in _REFUSED and not _is_one_of(value, _REFUSED[name][0]):
                raise ValueError(f"{name}={value!r} cannot be done: {_REFUSED[name][1]}.")
            if name in _NO_EFFECT and not _is_one_of(value, _NO_EFFECT[name][0]):
                logging.getLogger("samjax").warning(
                    "samjax: %s=%r has no effect: %s", name, value, _NO_EFFECT[name][1]
                )
            if name not in own | _REFUSED.keys() | _NO_EFFECT.keys():
                raise TypeError(_unknown(name, sorted(own | _REFUSED.keys() | _NO_EFFECT.keys())))
            _check(name, value, self)
        return dataclasses.replace(self, **{n: v for n, v in values.items() if n in own})

    def for_everything(self) -> dict[str, Any]:
        """Arguments of `SamAutomaticMaskGenerator`, without those that its caller leaves open."""
        given = {
            "points_per_side": None if self.point_grids is not None else self.points_stride,
            "points_per_batch": self.points_batch_size,
            "crop_n_layers": self.crop_n_layers,
            "crop_overlap_ratio": self.crop_overlap_ratio,
            "crop_n_points_downscale_factor": self.crop_downscale_factor,
            "point_grids": None if self.point_grids is None else list(self.point_grids),
        }
        thresholds = {
            "pred_iou_thresh": self.conf_thres,
            "box_nms_thresh": self.iou,
            "stability_score_thresh": self.stability_score_thresh,
            "stability_score_offset": self.stability_score_offset,
            "crop_nms_thresh": self.crop_nms_thresh,
        }
        return given | {n: float(v) for n, v in thresholds.items() if v is not None}


_SHARES = ("conf", "iou", "conf_thres", "stability_score_thresh", "crop_nms_thresh")
_COUNTS = ("vid_stride", "max_det", "points_stride", "points_batch_size", "crop_downscale_factor",
           "line_width")  # fmt: skip


def _check(name: str, value: Any, defaults: Arguments) -> None:
    default = getattr(defaults, name, None)
    if value is None and default is None:
        return
    if name in _SHARES and not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name} is {value!r}; it has to be a number from 0 to 1.")
    if name in _COUNTS and not (_is_whole(value) and value >= 1):
        raise ValueError(f"{name} is {value!r}; it has to be a whole number of at least 1.")
    if name == "crop_n_layers" and not (_is_whole(value) and value >= 0):
        raise ValueError(f"{name} is {value!r}; it has to be a whole number of at least 0.")
    if name in ("crop_overlap_ratio", "stability_score_offset") and not _is_number(value):
        raise ValueError(f"{name} is {value!r}; it has to be a number.")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it has to be True or False.")
    if name in ("project", "name") and not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} is {value!r}; it has to be the name of a folder.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_one_of(value: object, known: tuple[Any, ...]) -> bool:
    return any(value is one or (type(value) is type(one) and value == one) for one in known)


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
    return f"there is no argument {name!r}; {hint}"
