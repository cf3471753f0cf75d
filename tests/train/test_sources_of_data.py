"""Sources of annotated pictures: what they read, and what they leave out."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from samjax.datasets import (
    REASONS,
    BadRecordError,
    Reason,
    decode_mask,
    open_coco,
    open_mask_folder,
    open_sa1b,
    read_picture,
    scan,
)
from samjax.postprocess import mask_to_rle
from samjax.train.data import LoadExample
from small_coco import PLAIN, SIZE, rectangle, rle, truncate_a_picture


def test_all_forms_of_a_coco_mask(coco):
    mask = rectangle()
    polygon = [[6, 4, 20, 4, 20, 16, 6, 16]]
    source = coco([[polygon, mask_to_rle(mask), rle(mask)]])
    record = source.read(0)
    assert record.size == SIZE and record.source == "coco" and not record.left_out
    for index in range(3):
        np.testing.assert_array_equal(decode_mask(record, index), mask)


def test_a_polygon_in_two_parts_one_of_them_degenerate(coco):
    source = coco([[[[6, 4, 20, 4, 20, 16, 6, 16], [1, 1, 2, 2]]]])
    np.testing.assert_array_equal(decode_mask(source.read(0), 0), rectangle())
    assert not scan(source).counts


def test_sa1b(tmp_path):
    masks = [rectangle(), rectangle(0, 0, 3, 3)]
    for name in ("sa_1", "sa_2", "sa_3"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}.jpg")
        content = {
            "image": {
                "image_id": 1,
                "height": SIZE[0],
                "width": SIZE[1],
                "file_name": f"{name}.jpg",
            },
            "annotations": [{"id": i, "segmentation": rle(mask)} for i, mask in enumerate(masks)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "sa_2.json").write_text("{")
    (tmp_path / "sa_3.jpg").unlink()
    source = open_sa1b(tmp_path, name="SA-1B")
    record = source.read(0)
    assert record.path.name == "sa_1.jpg" and record.source == "SA-1B"
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(decode_mask(record, index), mask)
    report = scan(source, pictures=True)
    assert (report.pictures, report.masks) == (1, 2)
    assert report.counts == {Reason.BROKEN_ANNOTATIONS: 1, Reason.MISSING_PICTURE: 1}
    assert "broken annotations" in str(report) and "sa_2.json" in str(report)


def test_real_sa1b_annotations(shared_dir, tmp_path):
    for path in (shared_dir / "data" / "sa1b").glob("sa_*.json"):
        shutil.copy(path, tmp_path)
        content = json.loads(path.read_text())
        size = content["image"]["width"], content["image"]["height"]
        Image.new("RGB", size).save(tmp_path / f"{path.stem}.jpg")
    source = open_sa1b(tmp_path)
    assert len(source) == 3
    for index in range(3):
        record = source.read(index)
        annotations = json.loads(record.path.with_suffix(".json").read_text())["annotations"]
        for i, annotation in enumerate(annotations):
            assert decode_mask(record, i).sum() == annotation["area"]


def test_mask_folder(tmp_path):
    first, second = rectangle(), rectangle(18, 1, 22, 9)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "files").mkdir(parents=True)
    for name in ("files.jpg", "numbers.png", "without.png"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / name)
    for i, mask in enumerate((first, second)):
        Image.fromarray(mask).save(tmp_path / "masks" / "files" / f"{i}.png")
    numbers = first.astype(np.uint16) * np.uint16(1000) + second.astype(np.uint16)
    Image.fromarray(numbers).save(tmp_path / "masks" / "numbers.png")
    source = open_mask_folder(tmp_path)
    assert [entry.path.name for entry in source.entries] == ["files.jpg", "numbers.png"]
    for index, expected in enumerate([(first, second), (second, first)]):
        record = source.read(index)
        assert len(record.masks) == 2
        for i, mask in enumerate(expected):
            np.testing.assert_array_equal(decode_mask(record, i), mask)
    assert source.report.counts == {Reason.NO_MASKS: 1}


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: Image.new("1", (5, 5), 1).save(path), Reason.MASK_SIZE),
        (lambda path: Image.new("1", SIZE[::-1]).save(path), Reason.EMPTY_MASK),
        (lambda path: path.write_text("no picture"), Reason.BROKEN_MASK),
    ],
)
def test_a_bad_file_in_a_mask_folder(tmp_path, spoil, reason):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "a").mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png")
    Image.fromarray(rectangle()).save(tmp_path / "masks" / "a" / "0.png")
    spoil(tmp_path / "masks" / "a" / "1.png")
    report = scan(open_mask_folder(tmp_path))
    assert report.counts == {reason: 1}
    assert (report.pictures, report.masks) == (1, 1)
    assert str(reason) in str(report) and "1.png" in str(report)


BAD_MASKS = {
    "no run set": (rle(np.zeros(SIZE, bool)), Reason.EMPTY_MASK),
    "an empty list": ([], Reason.EMPTY_MASK),
    "outside the picture": ([[40, 2, 50, 2, 50, 9, 40, 9]], Reason.EMPTY_MASK),
    "a transposed size": (rle(rectangle().T), Reason.MASK_SIZE),
    "two points": ([[1, 1, 9, 9]], Reason.DEGENERATE_POLYGON),
    "an odd number": ([[1, 1, 9, 9, 1, 9, 4]], Reason.DEGENERATE_POLYGON),
    "a line": ([[1, 1, 5, 5, 9, 9]], Reason.DEGENERATE_POLYGON),
    "not a number": ([[1, 1, 5, float("nan"), 9, 2]], Reason.DEGENERATE_POLYGON),
    "far away": ([[1, 1, 1e12, 5, 9, 2]], Reason.DEGENERATE_POLYGON),
    "words": ([["a", 1, 5, 5, 9, 2]], Reason.DEGENERATE_POLYGON),
    "nothing": (None, Reason.BROKEN_MASK),
    "too few runs": ({"size": list(SIZE), "counts": [3, 4]}, Reason.BROKEN_MASK),
    "negative runs": ({"size": list(SIZE), "counts": [10, -5, 763]}, Reason.BROKEN_MASK),
    "a damaged string": ({"size": list(SIZE), "counts": "n\x01p"}, Reason.BROKEN_MASK),
    "a string cut off": ({"size": list(SIZE), "counts": "oW"}, Reason.BROKEN_MASK),
    "no counts": ({"size": list(SIZE)}, Reason.BROKEN_MASK),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_bad_mask_is_left_out_and_counted(coco, name):
    segmentation, reason = BAD_MASKS[name]
    source = coco([[segmentation, rle(rectangle())]])
    report = scan(source)
    assert report.counts == {reason: 1}
    assert (report.pictures, report.masks) == (1, 1)
    line = str(report).splitlines()[1]
    assert str(reason) in line and " 1 " in line and ("annotation 100" in line or "mask 0" in line)
    example = LoadExample([source], PLAIN, replace=False)((0, 0), np.random.default_rng(0))
    assert example.valid.tolist() == [True, False]
    assert example.left_out[REASONS.index(reason)] == 1 == example.left_out.sum()


def _remove(root, content):
    (root / "2.png").unlink()


def _shrink(root, content):
    Image.new("RGB", (5, 5)).save(root / "2.png")


def _crowd(root, content):
    content["annotations"][1]["iscrowd"] = 1


def _category(root, content):
    content["annotations"][1]["category_id"] = 99


def _picture(root, content):
    content["annotations"][1]["image_id"] = 99


@pytest.mark.parametrize(
    "change, reason, where",
    [
        (_remove, Reason.MISSING_PICTURE, "2.png"),
        (truncate_a_picture, Reason.BROKEN_PICTURE, "2.png"),
        (_shrink, Reason.PICTURE_SIZE, "2.png is 5 high and 5 wide"),
        (_crowd, Reason.CROWD, "annotation 101"),
        (_category, Reason.UNKNOWN_CATEGORY, "annotation 101"),
        (_picture, Reason.UNKNOWN_PICTURE, "annotation 101"),
    ],
)
def test_a_bad_record_is_left_out_and_counted(coco, change, reason, where):
    source = coco([[rle(rectangle())]] * 2, change=change)
    report = scan(source, pictures=True)
    assert report.counts == {reason: 1}
    assert (report.pictures, report.masks) == (1, 1)
    assert str(reason) in str(report) and where in str(report)
    assert str(report).startswith("coco: 1 pictures, 1 masks")


def test_a_picture_that_goes_missing_later(coco, tmp_path):
    source = coco()
    (tmp_path / "coco" / "1.png").unlink()
    with pytest.raises(BadRecordError, match="missing picture: .*1.png") as caught:
        read_picture(source.read(0))
    assert caught.value.reason is Reason.MISSING_PICTURE


def test_a_report_shows_some_places_and_counts_all(coco):
    source = coco([[[]] * 5 + [rle(rectangle())]])
    report = scan(source)
    line = str(report).splitlines()[1]
    assert report.counts[Reason.EMPTY_MASK] == 5
    assert line.count("annotation") == 3 and line.endswith(", ...")
    assert not source.report.counts, "scanning leaves the report of opening alone"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no COCO instances file"),
        ("[]", "is no COCO instances file"),
        ('{"images": []}', "'annotations' is missing"),
        ('{"images": [{"id": 1}], "annotations": []}', "is missing"),
        ('{"images": [], "annotations": []}', "no picture with masks that can be used"),
    ],
)
def test_a_file_that_is_not_coco(tmp_path, text, message):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_coco(path, tmp_path)
    assert str(path) in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
    for opener in (open_sa1b, open_mask_folder, lambda path: open_coco(tmp_path / "a.json", path)):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            opener(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a.json"):
        open_coco(tmp_path / "a.json", tmp_path)
