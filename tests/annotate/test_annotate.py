"""Folders to labels."""

import dataclasses
import functools
import logging

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from samjax import SamPredictor, auto_annotate
from samjax.annotate.output import Labelled, open_output
from samjax.checkpoint import save_checkpoint
from samjax.cli import main
from samjax.images import read_image, write_image
from samjax.models.params import flatten, unflatten
from samjax.models.yolo import YoloConfig
from samjax.naming import Picture
from samjax.postprocess import compress_mask
from samjax.yolo_model import YoloModel
from samjax.yolo_model import abstract_params as abstract_yolo


def two_boxes(image):
    height, width, _ = image.shape
    boxes = [[1, 2, width / 2, height / 2], [5, 5, width - 3, height - 3]]
    return np.array(boxes), np.array([0.9, 0.6]), np.array([1, 0])


annotate = functools.partial(auto_annotate, progress=False)


def read(folder):
    """Everything that was written, but for the settings."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name[0] not in ".p"}


def test_what_is_written(pictures, model, tmp_path):
    done = annotate(pictures, two_boxes, model, names=["x", "y"], overlays=True)
    folder = tmp_path / "in_auto_annotate_labels"
    assert done[:4] == (folder, 3, 6, 3) and not (done.failures or done.empty)
    assert sorted(read(folder)) == [
        "a.txt", "annotations.json", "b.txt", "c.txt", "data.yaml",
        *(f"overlays/{name}.png" for name in "abc"),
    ]  # fmt: skip
    coco = COCO(str(folder / "annotations.json"))
    assert [image["file_name"] for image in coco.imgs.values()] == ["a.png", "b.png", "c.png"]
    assert [c["name"] for c in coco.cats.values()] == ["x", "y"]
    for key, image in coco.imgs.items():
        picture = read_image(pictures / image["file_name"])
        predictor = SamPredictor(model)
        predictor.set_image(picture)
        boxes, scores, numbers = two_boxes(picture)
        masks, ious, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
        for i, annotation in enumerate(coco.imgToAnns[key]):
            np.testing.assert_array_equal(coco.annToMask(annotation), masks[i, 0])
            assert annotation["predicted_iou"] == pytest.approx(float(ious[i, 0]), rel=1e-5)
            assert annotation["category_id"] == numbers[i] + 1
            assert annotation["score"] == pytest.approx(scores[i])
            assert annotation["area"] == masks[i, 0].sum()
        lines = (folder / f"{image['file_name'][0]}.txt").read_text().splitlines()
        assert [int(line.split()[0]) for line in lines] == [1, 0]
        assert (
            read_image(folder / "overlays" / f"{image['file_name'][0]}.png").shape == picture.shape
        )


def test_several_pictures_at_a_time(pictures, model, tmp_path):
    def unequal(image):
        number = {40: 3, 50: 1}[len(image)]
        return np.stack([[i, 2, 20 + i, 30] for i in range(number)])

    one, three = tmp_path / "one", tmp_path / "three"
    annotate(pictures, unequal, model, output_dir=one)
    annotate(pictures, unequal, model, output_dir=three, batch=2)
    ours, theirs = (COCO(str(f / "annotations.json")) for f in (one, three))
    assert len(ours.anns) == 7 == len(theirs.anns)
    for key, annotation in ours.anns.items():
        different = ours.annToMask(annotation) != theirs.annToMask(theirs.anns[key])
        assert different.mean() < 0.002
        assert annotation["predicted_iou"] == pytest.approx(
            theirs.anns[key]["predicted_iou"], abs=1e-4
        )


def test_holes_and_parts_survive(tmp_path):
    """In COCO to the pixel; in YOLO but for the bridges."""
    mask = np.zeros((60, 80), bool)
    mask[5:50, 5:40] = True
    mask[15:30, 12:28] = False
    mask[20:25, 15:20] = True
    mask[10:20, 60:75] = True
    output = open_output(tmp_path / "out", {})
    output.begin()
    picture = Picture(tmp_path / "x.jpg", "x", "x.jpg")
    labelled = Labelled(compress_mask(mask), 0, float("nan"), 0.9)
    output.write(picture, np.zeros((60, 80, 3), np.uint8), [labelled])
    assert output.finish(None) == (1, 1)
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    np.testing.assert_array_equal(coco.annToMask(coco.anns[1]), mask)
    assert "score" not in coco.anns[1] and coco.cats[1]["name"] == "class0"
    (line,) = (tmp_path / "out" / "x.txt").read_text().splitlines()
    points = np.rint(np.array(line.split()[1:], float).reshape(-1, 2) * (80, 60))
    filled = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(filled, [points.astype(np.int32)], 1)
    different = filled.astype(bool) != mask
    assert different.sum() <= 60 and not (mask & ~filled.astype(bool)).any()


def test_goes_on_where_it_stopped(pictures, model, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    annotate(pictures, two_boxes, model, output_dir=whole)
    seen = []

    def stops(image, at=2):
        seen.append(image.shape)
        if len(seen) == at:
            raise KeyboardInterrupt
        return two_boxes(image)

    stops.__name__ = "two_boxes"
    with pytest.raises(KeyboardInterrupt):
        annotate(pictures, stops, model, output_dir=broken)
    assert COCO(str(broken / "annotations.json")).imgs[1]["file_name"] == "a.png"
    with (broken / "progress.jsonl").open("a") as file:
        file.write('{"name": "b", "file_na')
    seen[:] = [None] * 9
    done = annotate(pictures, stops, model, output_dir=broken)
    assert (done.pictures, done.done_now) == (3, 2) and len(seen) == 9 + 2
    assert read(broken) == read(whole)
    again = annotate(pictures, stops, model, output_dir=broken)
    assert (again.pictures, again.done_now) == (3, 0) and len(seen) == 11
    assert read(broken) == read(whole)


def test_runs_are_not_mixed(pictures, model, tmp_path):
    folder = tmp_path / "out"
    annotate(pictures, two_boxes, model, output_dir=folder)
    before = read(folder)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"conf was 0\.25 and is now 0\.7.*overwrite"):
        annotate(pictures, two_boxes, model, output_dir=folder, conf=0.7)
    assert read(folder) == before | {"mine.txt": b"mine"}
    annotate(pictures, two_boxes, model, output_dir=folder, conf=0.95, overwrite=True)
    assert sorted(read(folder)) == ["annotations.json", "data.yaml", "mine.txt"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not empty, and there is no run of samjax"):
            annotate(pictures, two_boxes, model, output_dir=foreign, overwrite=overwrite)
    assert read(foreign) == {"a.txt": b"0 0.5 0.5 0.1 0.1"}


def test_a_damaged_record_of_progress(pictures, model, tmp_path):
    done = annotate(pictures, two_boxes, model)
    progress = done.folder / "progress.jsonl"
    lines = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join([lines[0], lines[1], lines[2][:40] + "\n", lines[3]]))
    before = read(done.folder)
    with pytest.raises(ValueError, match=r"progress\.jsonl, line 3 is damaged: remove that line"):
        annotate(pictures, two_boxes, model)
    assert read(done.folder) == before
    progress.write_text("".join([lines[0], lines[1], lines[3]]))
    assert annotate(pictures, two_boxes, model).done_now == 1
    assert read(done.folder) == before


def test_bad_pictures(pictures, model, tmp_path, caplog):
    (pictures / "b2.png").write_bytes((pictures / "b.png").read_bytes()[:50])
    (pictures / "a.jpg").write_bytes(b"")
    write_image(pictures / "a.jpg", read_image(pictures / "b.png"))
    done = annotate(pictures, two_boxes, model)
    assert done.pictures == 4 and len(done.failures) == 1
    assert "b2.png cannot be decoded" in done.failures[0] and "b2.png" in caplog.text
    names = {name for name in read(done.folder) if name.endswith(".txt")}
    assert names == {"a.jpg.txt", "a.png.txt", "b.txt", "c.txt"}
    write_image(pictures / "b2.png", read_image(pictures / "b.png"))
    assert annotate(pictures, two_boxes, model).done_now == 1
    for path in pictures.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 5 pictures could be done; the first"):
        annotate(pictures, two_boxes, model, output_dir=tmp_path / "none")


def test_masks_without_a_pixel(pictures, model):
    blind = dataclasses.replace(model, config=model.config.replace(mask_threshold=1e9))
    done = annotate(pictures, two_boxes, blind)
    assert (done.masks, done.empty_masks, len(done.empty)) == (0, 6, 3)
    assert sorted(read(done.folder)) == ["annotations.json", "data.yaml"]


def test_boxes_of_no_use(pictures, model, caplog):
    def odd(image):
        if image.shape[0] == 50:
            return np.zeros((0, 4))
        return np.array([
            [0, 0, 0, 9], [-30, 0, -5, 10], [100, 2, 120, 8], [np.nan, 0, 5, 5], [9, 9, 3, 3],
            [-5, -5, 20, 20],
        ])  # fmt: skip

    with caplog.at_level(logging.WARNING):
        done = annotate(pictures, odd, model)
    assert (done.masks, done.dropped_boxes) == (2, 10)
    assert "5 boxes left out" in caplog.text
    assert done.empty == [str(pictures / "b.png")] and "b.txt" not in read(done.folder)
    assert len(COCO(str(done.folder / "annotations.json")).imgs) == 3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("boxes", "returned boxes of type str"),
        (np.zeros((2, 5)), r"boxes of shape \(2, 5\); expected \(N, 4\)"),
        ((np.zeros((2, 4)), np.ones(3)), r"scores of shape \(3,\) for 2 boxes"),
        ((np.zeros((1, 4)), None, np.array([0.5])), "whole numbers from 0"),
    ],
)
def test_functions_that_return_something_else(pictures, model, returned, message):
    with pytest.raises(ValueError, match=message):
        annotate(pictures, lambda image: returned, model)


def test_classes_and_their_names(pictures, model):
    names = {0: 'a "b": #c', 1: "ä/ö\\n", 3: ""}

    def detector(image):
        return np.tile([[2, 2, 20, 20]], (4, 1)), None, np.arange(4)

    done = annotate(pictures, detector, model, names=names, classes=[1, 3], max_det=1)
    listed = yaml.safe_load((done.folder / "data.yaml").read_text())["names"]
    assert listed == {0: 'a "b": #c', 1: "ä/ö\\n", 2: "class2", 3: ""}
    coco = COCO(str(done.folder / "annotations.json"))
    assert {a["category_id"] for a in coco.anns.values()} == {2} and len(coco.anns) == 3
    assert coco.cats[2]["name"] == "ä/ö\\n"


def test_a_yolov8_as_the_detector(pictures, model, tmp_path):
    config = YoloConfig(num_classes=2, widths=(8, 8, 8, 8, 8), depths=(1, 1, 1, 1))
    rng = np.random.default_rng(0)
    leaves = flatten(abstract_yolo(config))
    arrays = {n: 0.3 * rng.standard_normal(x.shape, np.float32) for n, x in leaves.items()}
    yolo = YoloModel(unflatten(arrays), config, ("one", "two"))
    save_checkpoint(tmp_path / "yolo", yolo)
    done = annotate(pictures, tmp_path / "yolo", model, conf=0.01, imgsz=64, max_det=3, classes=[1])
    assert done.masks == 9
    coco = COCO(str(done.folder / "annotations.json"))
    assert {a["category_id"] for a in coco.anns.values()} == {2} and coco.cats[2]["name"] == "two"


def test_folders_without_pictures(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        annotate(tmp_path / "nowhere", two_boxes, model)
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        annotate(tmp_path / "in", two_boxes, model)
    (tmp_path / "in" / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        annotate(tmp_path / "in", two_boxes, model)
    assert not (tmp_path / "in_auto_annotate_labels").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"conf": 1.5}, ValueError, r"conf is 1\.5; it has to be a number from 0 to 1"),
        ({"iou": float("nan")}, ValueError, "iou is nan"),
        ({"max_det": 0}, ValueError, "max_det is 0"),
        ({"classes": [-1]}, ValueError, "classes is"),
        ({"det_model": 3}, TypeError, "det_model is of type int; it can be a YOLOv8"),
        ({"device": "abacus"}, ValueError, "device is 'abacus'"),
    ],
)
def test_wrong_arguments(pictures, model, options, error, message):
    with pytest.raises(error, match=message):
        annotate(pictures, **{"det_model": two_boxes, "sam_model": model} | options)
    assert not (pictures.parent / "in_auto_annotate_labels").exists()


def test_the_command(pictures, model, tmp_path, capsys):
    save_checkpoint(tmp_path / "sam", model)
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    command = ["annotate", str(pictures), "--det-model", str(labels), "--sam-model",
               str(tmp_path / "sam"), "--output", str(tmp_path / "out")]  # fmt: skip
    assert main([*command, "--overlays"]) == 0
    told = capsys.readouterr().out
    assert "nothing found in 2 pictures" in told and "3 pictures, 1 mask, " in told
    assert main(command) == 2
    assert "overlays was True and is now False" in capsys.readouterr().err
    (pictures / "d.png").write_bytes(b"x")
    assert main([*command, "--overlays"]) == 1
    told = capsys.readouterr()
    assert "3 pictures (3 done earlier), 1 mask" in told.out and "1 picture not done" in told.err
    assert main([*command, "--imgsz", "1", "2", "3"]) == 2
