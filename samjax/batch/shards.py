"""One shard on disk: the results of some pictures, in the forms that were asked for.

    shards/00012/
      manifest.json        its pictures, what went wrong, counts, and size and SHA-256 of each file
      NAME.json            a picture's masks in SA-1B's layout      ("sa1b")
      coco.json            all of the shard as COCO instances       ("coco")
      masks.parquet        a row for each mask                      ("parquet")
      embeddings.zarr/     the pictures' embeddings (Zarr 3)        (mode "embeddings")
      overlays/NAME.jpg    pictures with masks drawn over them      (on request)
      samples/NAME.jpg     small ones, for the report

`NAME` is the picture's key without suffix, or with it where two would be the same. A shard has no
times in it: the same pictures and settings give the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from samjax.batch.items import Item
from samjax.batch.plan import Shard, shard_folder
from samjax.coco_files import COCO_HEAD, coco_annotation, coco_image, write_coco_file
from samjax.images import write_json
from samjax.writing import write_beside

MANIFEST = "manifest.json"
FORMATS = ("sa1b", "coco", "parquet")
BINS = 20


class Result(NamedTuple):
    """What came of one picture. `records` are the generator's, with compressed run lengths;
    `embeddings` arrays by name; pictures are JPEG files."""

    size: tuple[int, int]
    records: list[dict[str, Any]]
    embeddings: Mapping[str, np.ndarray] = {}
    overlay: bytes | None = None
    sample: bytes | None = None


class Manifest(NamedTuple):
    """`pictures` have key, image_id, width, height and masks; `errors` key, path and reason."""

    number: int
    pictures: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    histograms: dict[str, list[int]]
    files: dict[str, dict[str, Any]]


def write_shard(
    folder: Path,
    shard: Shard,
    results: Sequence[Result | str],
    formats: Sequence[str],
) -> None:
    """Writes a shard's folder, whole or not at all. A result that is a str is what went wrong.

    Raises `OSError` where it cannot be written.
    """
    with write_beside(shard_folder(folder, shard.number)) as staged:
        staged.mkdir()
        names = _names(shard.items)
        done = [
            (_image(shard, i, one), names[i], one)
            for i, one in enumerate(results) if isinstance(one, Result)
        ]  # fmt: skip
        if "sa1b" in formats:
            for image, name, one in done:
                annotations = [{"id": k, **record} for k, record in enumerate(one.records)]
                _write(
                    staged / f"{name}.json",
                    json.dumps({"image": image, "annotations": annotations}).encode(),
                )
        if "coco" in formats:
            rows = (coco_annotation(image, r) for image, _, one in done for r in one.records)
            images = [coco_image(image) for image, _, _ in done]
            write_coco_file(staged / "coco.json", COCO_HEAD, images, rows)
        if "parquet" in formats:
            _write_parquet(staged / "masks.parquet", done)
        if any(one.embeddings for _, _, one in done):
            _write_zarr(staged / "embeddings.zarr", shard, results, names)
        for what in ("overlay", "sample"):
            for _, name, one in done:
                if content := getattr(one, what):
                    _write(staged / f"{what}s" / f"{name}.jpg", content)
        files = sorted(file for file in staged.rglob("*") if file.is_file())
        write_json(staged / MANIFEST, {
            "shard": shard.number,
            "pictures": [
                {"key": shard.items[image["image_id"] - shard.first].key,
                 "masks": len(one.records), **image}
                for image, _, one in done
            ],
            "errors": [
                {"key": item.key, "path": item.path, "reason": one}
                for item, one in zip(shard.items, results, strict=True) if isinstance(one, str)
            ],
            "histograms": _histograms(done),
            "files": {
                file.relative_to(staged).as_posix(): {
                    "bytes": file.stat().st_size,
                    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                }
                for file in files
            },
        })  # fmt: skip


def read_manifest(folder: Path, shard: Shard, *, thorough: bool = False) -> Manifest | None:
    """The manifest of a shard that is done; None where it is not, or not of these pictures.

    Sizes of files are compared with what it says, and with `thorough` their content too.
    """
    root = shard_folder(folder, shard.number)
    try:
        content = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(
            content["shard"], content["pictures"], content["errors"], content["histograms"],
            content["files"],
        )  # fmt: skip
        keys = sorted(one["key"] for one in manifest.pictures + manifest.errors)
        if keys != sorted(item.key for item in shard.items):
            return None
        for name, about in manifest.files.items():
            if (root / name).stat().st_size != about["bytes"]:
                return None
            if thorough:
                digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
                if digest != about["sha256"]:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def _names(items: Sequence[Item]) -> list[str]:
    """Safe on file systems that do not tell case apart, and below each other."""
    names: list[str] = []
    taken: set[str] = {"manifest", "coco"}
    for item in items:
        path = PurePosixPath(*[part for part in PurePosixPath(item.key).parts if part != ".."])
        name = str(path.with_suffix("")).lstrip("/")
        if name.casefold() in taken:
            name = str(path).lstrip("/")
        taken.add(name.casefold())
        names.append(name)
    return names


def _image(shard: Shard, i: int, one: Result) -> dict[str, Any]:
    height, width = one.size
    return {
        "image_id": shard.first + i,
        "width": width,
        "height": height,
        "file_name": shard.items[i].key,
    }


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_parquet(path: Path, done: Sequence[tuple[dict[str, Any], str, Result]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            **image,
            "counts": record["segmentation"]["counts"],
            **{name: record[name] for name in _NUMBERS},
            "bbox": [float(x) for x in record["bbox"]],
            "point_coords": [[float(x) for x in point] for point in record["point_coords"]],
            "crop_box": [float(x) for x in record["crop_box"]],
        }
        for image, _, one in done
        for record in one.records
    ]
    floats = pa.list_(pa.float32())
    schema = pa.schema({
        "image_id": pa.int64(), "file_name": pa.string(), "height": pa.int32(),
        "width": pa.int32(), "counts": pa.string(), "area": pa.int64(), "bbox": floats,
        "predicted_iou": pa.float32(), "stability_score": pa.float32(),
        "point_coords": pa.list_(floats), "crop_box": floats,
    })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")


_NUMBERS = ("area", "predicted_iou", "stability_score")


def _write_zarr(
    path: Path, shard: Shard, results: Sequence[Result | str], names: Sequence[str]
) -> None:
    """A group of arrays (N, ...), a chunk for each picture; rows of pictures that failed are empty
    (zeros). `keys` and `input sizes` are attributes."""
    import tensorstore as ts

    shapes = next(one.embeddings for one in results if isinstance(one, Result) and one.embeddings)
    for name, like in shapes.items():
        store = ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(path / name)},
                "metadata": {
                    "shape": [len(results), *like.shape],
                    "chunk_grid": {
                        "name": "regular",
                        "configuration": {"chunk_shape": [1, *like.shape]},
                    },
                    "data_type": str(like.dtype),
                    "codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "zstd", "configuration": {"level": 3}},
                    ],
                },
            },
            create=True,
        ).result()
        for i, one in enumerate(results):
            if isinstance(one, Result):
                store[i].write(one.embeddings[name]).result()
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "keys": [item.key for item in shard.items],
            "original_sizes": [
                list(one.size) if isinstance(one, Result) else None for one in results
            ],
        },
    }
    (path / "zarr.json").write_text(json.dumps(group))


def _histograms(done: Sequence[tuple[dict[str, Any], str, Result]]) -> dict[str, list[int]]:
    """Counts of masks: areas as a share of the picture by halves, from 1/2 down, and scores in
    twentieths of 0..1."""
    records = [(record, one.size) for _, _, one in done for record in one.records]
    areas = np.array([record["area"] / (size[0] * size[1]) for record, size in records])
    halves = np.clip(-np.log2(np.maximum(areas, 2.0**-BINS)), 0, BINS - 1).astype(int)
    histograms = {"area": np.bincount(halves, minlength=BINS).tolist()}
    for name in ("predicted_iou", "stability_score"):
        values = np.array([record[name] for record, _ in records], np.float64)
        bins = np.clip(values * BINS, 0, BINS - 1).astype(int)
        histograms[name] = np.bincount(bins, minlength=BINS).tolist()
    return histograms
