"""`Results`: the masks of one picture, to look at, to count and to write."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from samjax.coco_files import COCO_HEAD, coco_annotation, coco_image
from samjax.drawing import overlay
from samjax.images import write_image, write_json
from samjax.label_files import write_lines, yolo_lines
from samjax.postprocess import area_from_rle, mask_to_polygon, rle_to_mask
from samjax.ultralytics_style.outcome import Boxes, Masks, rows

NOTEBOOK_SIDE = 1024
"""Longest side of the picture that a notebook shows."""


class Results:
    """What was found in one picture.

    Attributes:
      orig_img: (height, width, 3) uint8, BGR.
      orig_shape: (height, width).
      path: file or URL it came from; "image0.jpg" and so on for arrays.
      frame: number of a video's frame, from 0; otherwise None.
      names: object number to its name.
      boxes: `Boxes`, of length 0 where nothing was found.
      masks: `Masks`, or None where nothing was found.
      speed: milliseconds: "preprocess" reads the picture, "inference" encodes and decodes it up to
        masks at full size, "postprocess" makes boxes and run lengths.
      save_dir: folder of a call with `save` or `save_txt`, otherwise None.
    """

    probs = keypoints = obb = None

    def __init__(
        self,
        orig_img: UInt8[np.ndarray, "H W 3"],
        path: str,
        names: dict[int, str],
        *,
        boxes: Boxes,
        masks: Masks | None,
        speed: dict[str, float] | None = None,
        frame: int | None = None,
        save_dir: str | None = None,
    ):
        self.orig_img = orig_img
        self.orig_shape: tuple[int, int] = (orig_img.shape[0], orig_img.shape[1])
        self.path = path
        self.names = names
        self.boxes = boxes
        self.masks = masks
        self.speed = dict.fromkeys(("preprocess", "inference", "postprocess"), 0.0) | (speed or {})
        self.frame = frame
        self.save_dir = save_dir

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> "Results":
        """The same picture with some of its masks."""
        chosen = rows(index, len(self))
        return Results(
            self.orig_img, self.path, self.names, boxes=self.boxes[chosen],
            masks=None if self.masks is None or not len(chosen) else self.masks[chosen],
            speed=self.speed, frame=self.frame, save_dir=self.save_dir,
        )  # fmt: skip

    def __repr__(self) -> str:
        frame = "" if self.frame is None else f", frame {self.frame}"
        return f"<Results of {self.path}{frame}: {self.verbose()}>"

    def cpu(self) -> "Results":
        return self

    def numpy(self) -> "Results":
        return self

    def verbose(self) -> str:
        """Size and number of masks, for people to read."""
        height, width = self.orig_shape
        return f"{height}x{width}, {len(self)} {'mask' if len(self) == 1 else 'masks'}"

    def plot(
        self,
        conf: bool = True,
        line_width: int | None = None,
        *,
        labels: bool = True,
        boxes: bool = True,
        masks: bool = True,
        img: UInt8[np.ndarray, "H W 3"] | None = None,
        pil: bool = False,
        show: bool = False,
        save: bool = False,
        filename: str | os.PathLike[str] | None = None,
    ) -> UInt8[np.ndarray, "H W 3"] | Image.Image:
        """The picture with masks, boxes and texts drawn over it: BGR, or with `pil` a Pillow
        picture. `img` is drawn on in place of the picture; `save` writes to `filename`.

        Raises `ValueError` for an `img` of another size.
        """
        canvas = self.orig_img if img is None else img
        if canvas.shape[:2] != self.orig_shape:
            raise ValueError(f"img has shape {canvas.shape}; the picture is {self.orig_shape}.")
        found = () if self.masks is None or not masks else self.masks.rles
        drawn = overlay(
            np.ascontiguousarray(canvas[..., ::-1]),
            (rle_to_mask(rle) for rle in found),
            boxes=np.asarray(self.boxes.xyxy) if boxes else None,
            box_texts=self._texts(conf=conf, labels=labels) if boxes else (),
            line_width=line_width,
        )
        if show:
            Image.fromarray(drawn).show(self.path)
        if save:
            write_image(filename or f"results_{self.stem}.jpg", drawn)
        return Image.fromarray(drawn) if pil else np.ascontiguousarray(drawn[..., ::-1])

    def show(self, **options: Any) -> None:
        """Opens `plot(**options)` in the system's viewer."""
        self.plot(**options, show=True)

    def save(self, filename: str | os.PathLike[str] | None = None, **options: Any) -> str:
        """Writes `plot(**options)` and returns the file's name, by default `results_NAME.jpg`.

        Raises `ValueError` for a suffix of no picture format, `OSError` when it cannot be written.
        """
        path = Path(filename or f"results_{self.stem}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.plot(**options, save=True, filename=path)
        return str(path)

    @property
    def stem(self) -> str:
        """A name for files about this picture, without folder and suffix; frames have a number."""
        stem = Path(self.path.split("?")[0]).stem or "image"
        return stem if self.frame is None else f"{stem}_{self.frame:06d}"

    def to_coco(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        image_id: int = 1,
        first_annotation_id: int = 1,
    ) -> dict[str, Any]:
        """A COCO file's content for this picture, written to `path` where that is given.

        `images`, `annotations` and `categories` as `samjax everything` writes them: compressed run
        lengths with all parts and holes, one category, boxes in whole pixels.
        """
        height, width = self.orig_shape
        name = Path(self.path).name if self.frame is None else f"{self.stem}.jpg"
        image = {"image_id": image_id, "width": width, "height": height, "file_name": name}
        annotations = [
            {"id": first_annotation_id + i} | coco_annotation(image, record)
            for i, record in enumerate(self._records())
        ]
        content = COCO_HEAD | {"images": [coco_image(image)], "annotations": annotations}
        if path is not None:
            write_json(path, content)
        return content

    def to_yolo(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        class_ids: Sequence[int] | int = 0,
        save_conf: bool = False,
    ) -> list[str]:
        """YOLO segmentation labels, a line `class x y x y ...` for each mask that is not empty.

        Coordinates are shares of width and height; parts and holes are bridged, since a line holds
        one polygon. `class_ids` is one class for all, or one for each mask. Written to `path`,
        whole or not at all, where that is given and there is a mask. Raises `ValueError` for
        another number of classes than of masks.
        """
        classes = [class_ids] * len(self) if isinstance(class_ids, int) else list(class_ids)
        if len(classes) != len(self):
            raise ValueError(f"{len(classes)} class_ids for {len(self)} masks.")
        polygons = [] if self.masks is None else self.masks.xyn
        scores = self.boxes.conf.tolist() if save_conf else None
        lines = yolo_lines(polygons, classes, scores)
        if path is not None and lines:
            write_lines(path, lines)
        return lines

    def save_txt(self, txt_file: str | os.PathLike[str], save_conf: bool = False) -> str:
        """`to_yolo` with each mask's object number for its class, as documented; the file's name.

        No file is written where nothing was found.
        """
        self.to_yolo(txt_file, class_ids=self.boxes.cls.astype(int).tolist(), save_conf=save_conf)
        return str(txt_file)

    def save_crop(
        self, save_dir: str | os.PathLike[str], file_name: str | os.PathLike[str] = "im.jpg"
    ) -> None:
        """Writes the picture inside each box to `save_dir/NAME/`, NAME being the object's, with
        the mask's place in the list in the file's name where there are several."""
        for i, (x0, y0, x1, y1) in enumerate(self.boxes.xyxy.astype(int).tolist()):
            path = Path(save_dir, self.names[int(self.boxes.cls[i])], file_name)
            if len(self) > 1:
                path = path.with_stem(f"{path.stem}_{i}")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, self.orig_img[y0 : y1 + 1, x0 : x1 + 1, ::-1])

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """A dict for each mask: name, class, confidence, box and segments (its polygon)."""
        masks = [] if self.masks is None else self.masks.rles
        scale = np.array(self.orig_shape[::-1] if normalize else (1, 1), np.float32)
        entries = []
        for box, rle in zip(self.boxes, masks, strict=True):
            corners = np.round((box.xyxy.reshape(2, 2) / scale).astype(float), decimals)
            polygon = (mask_to_polygon(rle_to_mask(rle)) / scale).astype(float)
            number = int(box.cls[0])
            entries.append({
                "name": self.names[number],
                "class": number,
                "confidence": round(float(box.conf[0]), decimals),
                "box": dict(zip(("x1", "y1", "x2", "y2"), corners.ravel().tolist(), strict=True)),
                "segments": dict(zip("xy", np.round(polygon.T, decimals).tolist(), strict=True)),
            })  # fmt: skip
        return entries

    def to_json(self, normalize: bool = False, decimals: int = 5) -> str:
        """`summary` as JSON."""
        return json.dumps(self.summary(normalize, decimals), indent=2)

    def _repr_png_(self) -> bytes:
        """What a notebook shows for it: `plot()`, scaled down to `NOTEBOOK_SIDE`."""
        drawn = np.asarray(self.plot())
        scale = NOTEBOOK_SIDE / max(self.orig_shape)
        if scale < 1:
            size = [max(1, round(side * scale)) for side in self.orig_shape[::-1]]
            drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
        return cv2.imencode(".png", drawn)[1].tobytes()

    def _texts(self, *, conf: bool, labels: bool) -> list[str]:
        if not (conf or labels):
            return []
        names = [self.names[int(number)] if labels else "" for number in self.boxes.cls]
        scores = [f"{score:.2f}" if conf else "" for score in self.boxes.conf]
        return [f"{n} {s}".strip() for n, s in zip(names, scores, strict=True)]

    def _records(self) -> list[dict[str, Any]]:
        if self.masks is None:
            return []
        stability = self.masks.stability_scores
        return [
            {
                "segmentation": rle,
                "area": area_from_rle(rle),
                "predicted_iou": float(self.boxes.conf[i]),
                **({} if stability is None else {"stability_score": float(stability[i])}),
            }
            for i, rle in enumerate(self.masks.rles)
        ]
