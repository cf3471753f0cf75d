"""`samjax.batch.run`: what is written, going on, and what it does about faults."""

import csv
import errno
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from samjax import SamAutomaticMaskGenerator, SamPredictor, batch
from samjax.batch import job, shards
from samjax.batch.prompt_files import PromptFile
from samjax.cli import main
from samjax.images import read_image, write_image, write_json
from small_batch import EASY, contents, make_pictures


@pytest.fixture
def go(small_model, tmp_path):
    """Runs with small settings; what is named replaces them."""

    def run(source, output=tmp_path / "out", **changes):
        settings = {"model": small_model, "shard_size": 4, "progress": False} | changes
        if settings.get("mode", "everything") == "everything":
            settings = EASY | settings
        return batch.run(source, output, **settings)

    return run


@pytest.fixture
def one_at_a_time(small_model):
    return SamAutomaticMaskGenerator(small_model, **EASY, output_mode="coco_rle")


def test_all_forms_hold_what_the_generator_finds(go, pictures, one_at_a_time, tmp_path):
    import pyarrow.parquet as pq

    done = go(pictures, formats=["sa1b", "coco", "parquet"], overlays=True)
    out = tmp_path / "out"
    assert done[:2] == (out, 10) and done.done_now == 10 and not done.errors
    table = pq.read_table(sorted((out / "shards").glob("*/masks.parquet"))).to_pylist()
    whole = COCO(str(out / "coco.json"))
    assert len(table) == done.masks == len(whole.anns) > 20
    ids = []
    for file in sorted((out / "shards").glob("*/**/*.json")):
        content = json.loads(file.read_text())
        if "annotations" not in content or "image" not in content:
            continue
        image = content["image"]
        ids.append(image["image_id"])
        expected = one_at_a_time.generate(pictures / image["file_name"])
        assert [
            {k: v for k, v in a.items() if k != "id"} for a in content["annotations"]
        ] == expected
        rows = [row for row in table if row["image_id"] == image["image_id"]]
        assert [row["counts"] for row in rows] == [r["segmentation"]["counts"] for r in expected]
        assert [row["area"] for row in rows] == [r["area"] for r in expected]
        ours = whole.loadAnns(whole.getAnnIds(imgIds=image["image_id"]))
        assert [a["segmentation"] for a in ours] == [r["segmentation"] for r in expected]
        shard = next(p for p in file.parents if p.parent.name == "shards")
        name = file.relative_to(shard).with_suffix(".jpg")
        assert read_image(shard / "overlays" / name).shape[0] == image["height"]
    assert sorted(ids) == list(range(10))
    report = (out / "report.html").read_text()
    assert "<svg" in report and "data:image/jpeg" in report and "http" not in report


def test_on_with_what_is_missing_to_the_same_bytes(go, pictures, tmp_path):
    go(pictures)
    before = contents(tmp_path / "out")
    (tmp_path / "out/shards/00001/coco.json").write_text("cut")
    (tmp_path / "out/shards/00002/manifest.json").unlink()
    (tmp_path / "out/coco.json").unlink()
    assert go(pictures).done_now == 6
    assert contents(tmp_path / "out") == before
    assert go(pictures).done_now == 0


def test_pictures_that_come_later(go, pictures, tmp_path):
    go(pictures)
    old = {n: b for n, b in contents(tmp_path / "out").items() if n.startswith("shards/0")}
    make_pictures(pictures, 3, start=100)
    done = go(pictures)
    assert done.pictures == 13 and done.done_now == 3
    assert old.items() <= contents(tmp_path / "out").items()
    assert len(COCO(str(tmp_path / "out/coco.json")).imgs) == 13


def test_an_output_within_the_source(go, pictures):
    first = go(pictures, pictures / "masks", overlays=True)
    assert go(pictures, pictures / "masks", overlays=True) == first._replace(done_now=0)


def test_other_settings(go, pictures, tmp_path, small_model):
    go(pictures)
    with pytest.raises(ValueError, match="box_nms_thresh was 1.0 and is now 0.5.*--new-output"):
        go(pictures, box_nms_thresh=0.5)
    with pytest.raises(ValueError, match="model_sha256 was"):
        go(pictures, model=small_model.astype("bfloat16"))
    done = go(pictures, box_nms_thresh=0.5, new_output=True)
    assert done.folder.name == "out2" and done.pictures == 10
    assert go(pictures, box_nms_thresh=0.5, new_output=True).done_now == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="thesis.txt"):
        go(pictures, tmp_path / "mine")


def test_faults_are_recorded_and_the_rest_is_done(go, pictures, tmp_path, capsys):
    (pictures / "0003.png").write_bytes(b"no picture")
    (pictures / "0007.png").write_bytes((pictures / "0007.png").read_bytes()[:200])
    write_image(pictures / "wide.png", np.zeros((1, 3000, 3), np.uint8))
    (pictures / "cut.tar").write_bytes(b"not a tar" * 100)
    (pictures / "cut.array_record").write_bytes(b"no records" * 10_000)
    done = go(pictures)
    assert done.pictures == 9
    rows = list(csv.DictReader((tmp_path / "out/errors.csv").open()))
    assert [row["key"] for row in rows] == ["0003.png", "0007.png", "", ""]
    assert "0003.png" in rows[0]["reason"]
    assert [Path(row["path"]).name for row in rows[2:]] == ["cut.array_record", "cut.tar"]
    assert "0007.png" in (tmp_path / "out/report.html").read_text()
    make_pictures(pictures, 1, start=3)
    assert go(pictures).done_now == 0
    assert [e["key"] for e in go(pictures, retry_errors=True).errors] == ["0007.png", "", ""]


def test_a_picture_of_30000_pixels_a_side(go, tmp_path):
    """Not read to its end: Pillow's guard sees the header."""
    make_pictures(tmp_path / "in", 2)
    header = io.BytesIO()
    Image.new("1", (30000, 30000)).save(header, format="PNG")
    (tmp_path / "in/huge.png").write_bytes(header.getvalue())
    done = go(tmp_path / "in")
    assert done.pictures == 2 and "too large" in done.errors[0]["reason"]


def test_a_full_disk_stops_it_and_nothing_is_lost(go, pictures, tmp_path, monkeypatch):
    """More shards are left than may be open at a time."""
    go(pictures, tmp_path / "whole", shard_size=1)
    monkeypatch.setattr(job, "WRITE_PAUSES", (0.01,))
    real, written = shards.write_json, []

    def full(path, content):
        written.append(path)
        if content["shard"] >= 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(shards, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        go(pictures, shard_size=1)
    assert [path.parent.name for path in written] == ["00000", "00001", "00001"]
    assert [path.name for path in (tmp_path / "out/shards").iterdir()] == ["00000"]
    monkeypatch.setattr(shards, "write_json", real)
    assert go(pictures, shard_size=1).done_now == 9
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_archives_hold_the_same_pictures(go, pictures, tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    files = sorted(pictures.rglob("*.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
            info = tarfile.TarInfo(file.with_suffix(".cls").name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"3"))
    writer = ArrayRecordWriter(str(tmp_path / "b.array_record"), "group_size:1")
    for file in files:
        writer.write(file.read_bytes())
    writer.close()
    (tmp_path / "list.txt").write_text("# some\n" + "\n".join(f"in/{f.name}" for f in files[:3]))
    whole = go(pictures, tmp_path / "1")
    in_tar = go(tmp_path / "a.tar", tmp_path / "2")
    in_record = go(tmp_path / "b.array_record", tmp_path / "3")
    globbed = go(str(pictures / "**/*.png"), tmp_path / "4")
    listed = go(tmp_path / "list.txt", tmp_path / "5")
    assert whole.masks == in_tar.masks == in_record.masks == globbed.masks > 0
    assert whole.pictures == in_tar.pictures == in_record.pictures == globbed.pictures == 10
    assert listed.pictures == 3
    assert contents(tmp_path / "1") == contents(tmp_path / "4") | {
        "plan.jsonl": contents(tmp_path / "1")["plan.jsonl"]
    }
    names = [i["file_name"] for i in json.loads((tmp_path / "2/coco.json").read_text())["images"]]
    assert names[0] == "a.tar/0000.png"


def test_boxes_and_points(go, pictures, tmp_path, small_model):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.png"))
    boxes = {name: [[2, 3, 20, 25], [5, 5, 15, 30]][: i % 3] for i, name in enumerate(names)}
    write_json(tmp_path / "boxes.json", {
        "images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
        "annotations": [
            {"image_id": i, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for i, n in enumerate(names) for x0, y0, x1, y1 in boxes[n]
        ],
    })  # fmt: skip
    done = go(pictures, tmp_path / "b", mode="boxes", prompts=tmp_path / "boxes.json")
    assert done.pictures == 10 and done.masks == sum(map(len, boxes.values())) and not done.errors
    together = go(pictures, tmp_path / "c", mode="boxes", prompts=tmp_path / "boxes.json", batch=3)
    assert together.masks == done.masks
    predictor = SamPredictor(small_model)
    found = COCO(str(tmp_path / "b/coco.json"))
    for image in found.imgs.values():
        if not (wanted := boxes[image["file_name"]]):
            continue
        predictor.set_image(pictures / image["file_name"])
        masks, ious, _ = predictor.predict_batch(boxes=wanted, multimask_output=False)
        ours = found.loadAnns(found.getAnnIds(imgIds=image["id"]))
        for one, mask, iou in zip(ours, masks, ious, strict=True):
            np.testing.assert_array_equal(coco.decode(one["segmentation"]), mask[0])
            assert one["predicted_iou"] == pytest.approx(iou[0], abs=1e-6)
    rows = [{"file_name": n, "point_coords": [[5.0, 6.0], [9.0, 9.0]], "point_labels": [1, 0]}
            for n in names]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "points.parquet")
    done = go(pictures, tmp_path / "p", mode="points", prompts=tmp_path / "points.parquet")
    assert done.masks == 10
    predictor.set_image(pictures / names[0])
    masks, ious, _ = predictor.predict([[5, 6], [9, 9]], [1, 0])
    first = json.loads((tmp_path / "p/shards/00000/0000.json").read_text())["annotations"][0]
    np.testing.assert_array_equal(coco.decode(first["segmentation"]), masks[ious.argmax()])
    (tmp_path / "few.json").write_text(json.dumps({
        "images": [{"id": 0, "file_name": names[0]}],
        "annotations": [{"image_id": 0, "bbox": [500, 3, 5, 5]}],
    }))  # fmt: skip
    done = go(pictures, tmp_path / "f", mode="boxes", prompts=tmp_path / "few.json")
    assert len(done.errors) == 10 and "outside the picture" in done.errors[0]["reason"]
    assert "says nothing of" in done.errors[1]["reason"]


def test_embeddings_are_zarr(go, pictures, tmp_path, small_model):
    import zarr

    go(pictures, mode="embeddings")
    group = zarr.open_group(tmp_path / "out/shards/00002/embeddings.zarr", mode="r")
    keys, array = group.attrs["keys"], group["image_embeddings"]
    assert array.shape[0] == len(keys) == 2 and array.dtype == "float32"
    predictor = SamPredictor(small_model)
    predictor.set_image(pictures / keys[1])
    np.testing.assert_array_equal(array[1], np.asarray(predictor.features)[0])
    go(pictures, tmp_path / "three", mode="embeddings", batch=3)
    array = zarr.open_group(tmp_path / "three/shards/00002/embeddings.zarr", mode="r")
    np.testing.assert_allclose(array["image_embeddings"][1], predictor.features[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "boxes"}, "'boxes' needs a file of prompts"),
        ({"prompts": "x.json"}, "takes no file of prompts"),
        ({"mode": "masks"}, "'masks'; use one of"),
        ({"mode": "embeddings", "points_per_side": 3}, "points_per_side: for mode 'everything'"),
        ({"formats": ["voc"]}, "'voc'"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"weights": "cut"}, "weights is 'cut'"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
    ],
)
def test_wrong_arguments(go, pictures, changes, words):
    with pytest.raises(ValueError, match=words):
        go(pictures, **changes)


def test_wrong_sources(go, pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        go(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures in"):
        go(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/0000.png").write_bytes((pictures / "0000.png").read_bytes())
    with pytest.raises(ValueError, match="two pictures are called 0000.png"):
        go([pictures, tmp_path / "other"])
    with pytest.raises(ValueError, match="no COCO file"):
        (tmp_path / "x.json").write_text("[")
        PromptFile(tmp_path / "x.json", "boxes")


def test_command(pictures, tmp_path, model_folder, capsys):
    command = ["batch", str(pictures), str(tmp_path / "out"), "--model", str(model_folder),
               "--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0",
               "--shard-size", "4"]  # fmt: skip
    assert main(command) == 0
    assert "10 pictures (10 now)" in capsys.readouterr().out
    (pictures / "bad.png").write_bytes(b"x")
    assert main(command) == 1
    assert "errors.csv" in capsys.readouterr().err


def test_without_grain(tmp_path):
    """In a process of its own, for which there is none."""
    code = (
        "import sys; sys.modules['grain'] = None\n"
        f"from samjax.cli import main; sys.exit(main(['batch', 'a', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert 'error: samjax.batch needs grain: pip install "samjax[batch]"' in done.stderr
