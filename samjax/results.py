"""What is written for pictures: a folder for each, and one COCO file for all.

    OUTPUT/
      settings.json          what made the results; a run that resumes compares it with its own
      coco.json              all masks, as COCO instances
      NAME/                  one picture (`Picture.name`), whole or not there
        0.png, 1.png, ...    masks, 0 and 255
        metadata.csv         a line for each mask, in the columns of the reference's amg.py
        annotations.json     the masks as compressed RLE, in SA-1B's layout
        overlay.png          the picture with its masks drawn over it

Boxes are the reference's in metadata.csv and annotations.json (width x1 - x0, between the first
and the last pixel), and COCO's in coco.json (width in pixels).
"""

import csv
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num, UInt8

from samjax.coco_files import COCO_HEAD, coco_annotation, coco_image, write_coco_file
from samjax.images import list_images, overlay, write_json, write_png
from samjax.naming import Picture, name_pictures
from samjax.postprocess.rle import rle_to_mask
from samjax.writing import check_writable, differing_settings, write_beside

COLUMNS = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
    "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
).split(",")

_SETTINGS, _COCO, _ANNOTATIONS = "settings.json", "coco.json", "annotations.json"
_OURS = re.compile(r"annotations\.json|metadata\.csv|overlay\.png|\d+\.png|\d+_low_res\.npy")
_PARTIAL = re.compile(r"\..*\.partial")


class Run(NamedTuple):
    """An output folder and what fills it. `id` tells its results from those of earlier runs."""

    folder: Path
    settings: dict[str, Any]
    id: str


def list_pictures(
    sources: Sequence[str | os.PathLike[str]], *, recursive: bool = False
) -> list[Picture]:
    """The pictures of files and folders, each once, with names of their own.

    Names are relative to the folder given (`samjax.naming`). Result folders are not searched.
    Raises `FileNotFoundError` for a source that is not there or a folder without pictures.
    """
    found: dict[str, tuple[Path, PurePosixPath]] = {}
    for source in map(Path, sources):
        paths = list_images(source, recursive=recursive)
        results = {folder for folder in {path.parent for path in paths} if _read(folder)}
        for path in paths:
            if source.is_file() or path.parent not in results:
                relative = path.name if source.is_file() else path.relative_to(source).as_posix()
                found.setdefault(os.path.abspath(path), (path, PurePosixPath(relative)))
    if not found:
        raise FileNotFoundError("the pictures in these folders are all results of samjax")
    return name_pictures(list(found.values()), reserved=frozenset({_COCO, _SETTINGS}))


def open_run(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    pictures: Sequence[Picture],
    *,
    overwrite: bool = False,
    resume: bool = False,
    resumable: bool = True,
) -> Run:
    """Checks that the results can be written, and makes the folder; `begin` writes the first file.

    `settings` are JSON values; results are only resumed under equal ones. `overwrite` replaces the
    results of these pictures and no file that samjax did not write. `resumable` says whether the
    caller offers `resume`. Raises `FileExistsError` for what would be overwritten, `ValueError`
    naming the settings that differ, `OSError` for a folder that cannot be written.
    """
    folder = Path(folder)
    check_writable(folder)
    earlier = _earlier(folder)
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        if not (overwrite or resume):
            offer = ", --resume does only the pictures that are missing" if resumable else ""
            raise FileExistsError(
                f"the output folder {folder} is not empty: --overwrite replaces results{offer}"
            )
        if resume and earlier is None:
            raise FileExistsError(
                f"{folder} has no {_SETTINGS} of samjax, so there is no run to resume; "
                "--overwrite writes into it all the same"
            )
        if earlier is None and (theirs := [n for n in (_COCO, _SETTINGS) if (folder / n).exists()]):
            raise FileExistsError(f"{folder / theirs[0]} is not samjax's, so it is not replaced")
    if resume and earlier:
        if differing := differing_settings(earlier.settings, settings):
            raise ValueError(
                f"{folder} was made with other settings, so it cannot be resumed: {differing}. "
                "Give the same settings, another folder, or --overwrite"
            )
    for picture in pictures:
        _check_replaceable(folder, picture)
    run_id = earlier.id if resume and earlier else secrets.token_hex(8)
    return Run(folder, dict(settings), run_id)


def missing(run: Run, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures that this run, or the one it resumes, has not done yet.

    Raises `ValueError` where a picture's folder holds the results of another file.
    """
    todo = []
    for picture in pictures:
        content = _read(run.folder / picture.name)
        if content is None or content["run"] != run.id:
            todo.append(picture)
        elif content["image"]["file_name"] != picture.file_name:
            raise ValueError(
                f"{run.folder / picture.name} holds the results of "
                f"{content['image']['file_name']}, not of {picture.file_name}; choose another "
                "output folder"
            )
    return todo


def begin(run: Run) -> None:
    """Writes settings.json, after which earlier results of other settings no longer count."""
    write_json(run.folder / _SETTINGS, {"samjax": 1, "run": run.id, "settings": run.settings})


def write_picture(
    run: Run,
    picture: Picture,
    image: UInt8[np.ndarray, "H W 3"],
    records: Sequence[Mapping[str, Any]],
    *,
    mask_files: bool = True,
    low_res_masks: Sequence[Float[np.ndarray, "1 h w"]] = (),
    points: Num[np.ndarray, "N 2"] | None = None,
    labels: Integer[np.ndarray, "N"] | None = None,
    boxes: Num[np.ndarray, "B 4"] | None = None,
) -> Path:
    """Writes a picture's folder, whole or not at all, and returns it.

    `records` are the generator's with output mode "coco_rle". Without `mask_files` the masks are
    in annotations.json only. `low_res_masks` are logits, written as `<id>_low_res.npy`. Points,
    labels and boxes are the prompts, drawn into the overlay. Raises `OSError` when the disk fails.
    """
    target = run.folder / picture.name
    with write_beside(target) as folder:
        folder.mkdir()
        for i, record in enumerate(records if mask_files else ()):
            write_png(folder / f"{i}.png", rle_to_mask(record["segmentation"]))
        for i, logits in enumerate(low_res_masks):
            np.save(folder / f"{i}_low_res.npy", logits)
        with open(folder / "metadata.csv", "w", newline="") as file:
            _write_metadata(file, records)
        masks = (rle_to_mask(record["segmentation"]) for record in records)
        drawn = overlay(image, masks, points=points, labels=labels, boxes=boxes)
        write_png(folder / "overlay.png", drawn)
        write_json(folder / _ANNOTATIONS, _annotations(run, picture, image.shape[:2], records))
    return target


def write_coco(run: Run) -> tuple[int, int]:
    """Writes coco.json from the folders of this run; returns the numbers of pictures and masks.

    The old file stays until the new one is whole. One picture's masks are in memory at a time.
    """
    found = sorted(_finished(run), key=lambda item: item[0])
    annotations = (
        coco_annotation(image, annotation)
        for folder, image in found
        for annotation in (_read(folder) or {}).get("annotations", ())
    )
    images = (coco_image(image) for _, image in found)
    return len(found), write_coco_file(run.folder / _COCO, COCO_HEAD, images, annotations)


def _check_replaceable(folder: Path, picture: Picture) -> None:
    target = folder / picture.name
    for parent in [folder.joinpath(p) for p in PurePosixPath(picture.name).parents][:-1]:
        if _read(parent) or (parent.exists() and not parent.is_dir()):
            raise FileExistsError(
                f"{target}, for the results of {picture.path}, would be inside {parent}, which is "
                "no folder or another picture's; choose another output folder"
            )
    if not target.exists():
        return
    strange = [""]
    if _read(target):
        strange = [entry.name for entry in target.iterdir() if not _OURS.fullmatch(entry.name)]
    if strange:
        raise FileExistsError(
            f"{target / strange[0]} is not samjax's, so {target} is not replaced; move it away or "
            "choose another output folder"
        )


def _earlier(folder: Path) -> Run | None:
    """The run that wrote settings.json, if there is one of ours."""
    try:
        content = json.loads((folder / _SETTINGS).read_text())
        return Run(folder, dict(content["settings"]), str(content["run"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(folder: Path) -> dict[str, Any] | None:
    """annotations.json of a result folder; None for any other folder."""
    try:
        content = json.loads((folder / _ANNOTATIONS).read_text())
        return content if {"run", "image", "annotations"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _finished(run: Run) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of this run, each with the `image` of its annotations."""
    for name, children, files in os.walk(run.folder):
        children[:] = [child for child in children if not _PARTIAL.fullmatch(child)]
        content = _read(Path(name)) if _ANNOTATIONS in files else None
        if content and content["run"] == run.id:
            yield Path(name), content["image"]


def _annotations(
    run: Run, picture: Picture, size: tuple[int, int], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """`image_id` follows from the name alone, so that jobs which share a folder agree on it."""
    digest = hashlib.sha256(os.fsencode(picture.name)).digest()
    image = {
        "image_id": int.from_bytes(digest[:6]),
        "width": size[1],
        "height": size[0],
        "file_name": picture.file_name,
    }
    annotations = [{"id": i, **record} for i, record in enumerate(records)]
    return {"run": run.id, "image": image, "annotations": annotations}


def _write_metadata(file: IO[str], records: Sequence[Mapping[str, Any]]) -> None:
    """A record without a point has none in its line; of several, the first."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, record in enumerate(records):
        point = record["point_coords"][0] if record["point_coords"] else ("", "")
        scores = record["predicted_iou"], record["stability_score"]
        writer.writerow([i, record["area"], *record["bbox"], *point, *scores, *record["crop_box"]])
