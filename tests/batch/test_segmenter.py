"""The callable for other people's pipelines, and pictures in a bucket."""

import json
import pickle

import numpy as np
import pytest
from etils import epath

from memory_bucket import use_bucket
from samjax import SamAutomaticMaskGenerator, batch
from samjax.images import read_image
from small_batch import EASY, make_pictures


def test_it_goes_through_pickle_and_does_what_the_generator_does(
    pictures, model_folder, small_model
):
    segmenter = pickle.loads(pickle.dumps(batch.Segmenter(str(model_folder), **EASY)))
    files = sorted(pictures.glob("*.png"))[:3]
    content = [file.read_bytes() for file in files] + [b"no picture"]
    done = segmenter({"bytes": content, "path": [*map(str, files), "bad.png"]})
    assert list(done["error"][:3]) == ["", "", ""] and "bad.png" in done["error"][3]
    generator = SamAutomaticMaskGenerator(small_model, **EASY, output_mode="coco_rle")
    for file, text in zip(files, done["annotations"], strict=False):
        assert json.loads(text) == generator.generate(file)
    assert done["annotations"][3] == "[]"
    arrays = segmenter({"image": [read_image(file) for file in files]})
    paths = segmenter({"path": [str(file) for file in files]})
    assert (
        list(arrays["annotations"]) == list(paths["annotations"]) == list(done["annotations"][:3])
    )
    copy = pickle.loads(pickle.dumps(segmenter))
    assert copy._loaded is None
    copy({"path": [str(files[0])]})
    assert copy._loaded is segmenter._loaded, "read once for both"
    embedded = batch.Segmenter(str(model_folder), mode="embeddings")({"path": paths["path"]})
    assert embedded["embeddings"][2].ndim == 3


def test_what_it_refuses(small_model):
    with pytest.raises(TypeError, match="give its path or name"):
        batch.Segmenter(small_model)
    with pytest.raises(ValueError, match="'boxes'"):
        batch.Segmenter(mode="boxes")
    with pytest.raises(ValueError, match="columns file; expected image, bytes or path"):
        batch.Segmenter("nano")({"file": []})


def test_with_ray(pictures, model_folder):
    ray = pytest.importorskip("ray", reason="Ray is no part of the test requirements")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        files = ray.data.read_binary_files(str(pictures), include_paths=True)
        done = files.map_batches(
            batch.Segmenter,
            fn_constructor_kwargs={"model": str(model_folder), **EASY},
            batch_size=4,
            concurrency=1,
        )
        rows = done.select_columns(["path", "annotations", "error"]).take_all()
    finally:
        ray.shutdown()
    assert len(rows) == 10 and not any(row["error"] for row in rows)
    assert all(len(json.loads(row["annotations"])) > 1 for row in rows)


def test_with_beam(pictures, model_folder, tmp_path):
    beam = pytest.importorskip("apache_beam", reason="Beam is no part of the test requirements")
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    segment = batch.Segmenter(str(model_folder), **EASY)
    files = sorted(map(str, pictures.rglob("*.png")))

    def lines(paths):
        done = segment({"path": paths})
        columns = paths, done["annotations"], done["error"]
        return [json.dumps(row) for row in zip(*columns, strict=True)]

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        batches = pipeline | beam.Create(files) | beam.BatchElements(4, 4)
        batches | beam.FlatMap(lines) | beam.io.WriteToText(str(tmp_path / "masks"))
    written = "".join(file.read_text() for file in tmp_path.glob("masks*"))
    rows = [json.loads(line) for line in written.splitlines()]
    assert sorted(path for path, _, _ in rows) == files and not any(error for *_, error in rows)
    assert all(len(json.loads(annotations)) > 1 for _, annotations, _ in rows)


def test_pictures_in_a_bucket(tmp_path, pictures, small_model, monkeypatch):
    use_bucket(monkeypatch)
    for file in pictures.rglob("*.png"):
        there = epath.Path("gs://bucket/in") / file.relative_to(pictures).as_posix()
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(file.read_bytes())
    settings = {"model": small_model, "progress": False, **EASY}
    here = batch.run(pictures, tmp_path / "1", **settings)
    there = batch.run("gs://bucket/in", tmp_path / "2", **settings)
    assert there.pictures == here.pictures == 10 and not there.errors
    assert (tmp_path / "1/coco.json").read_bytes() == (tmp_path / "2/coco.json").read_bytes()
    with pytest.raises(FileNotFoundError, match="gs://bucket/nowhere"):
        batch.run("gs://bucket/nowhere", tmp_path / "3", **settings)


def test_sharded_weights_find_the_same(tmp_path, model_folder):
    """On two devices, in a process of its own."""
    from devices import run_on_devices

    make_pictures(tmp_path / "in", 3)
    code = """
import sys
from pathlib import Path
from pycocotools.coco import COCO
from samjax import batch
from small_batch import EASY
source, model, out = sys.argv[1:]
for weights in ("replicated", "sharded"):
    batch.run(source, f"{out}/{weights}", model=model, weights=weights, progress=False, **EASY)
"""
    run_on_devices(2, code, str(tmp_path / "in"), str(model_folder), str(tmp_path), cwd=tmp_path)
    one, two = (
        json.loads((tmp_path / name / "coco.json").read_text())["annotations"]
        for name in ("replicated", "sharded")
    )
    assert len(one) == len(two) > 20
    for a, b in zip(one, two, strict=True):
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-4)
        assert abs(a["area"] - b["area"]) <= np.maximum(3, 0.01 * a["area"])
