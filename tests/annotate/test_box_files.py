"""Boxes of COCO files and of YOLO's label files in the place of a detector."""

import functools
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from samjax import auto_annotate
from samjax.annotate import open_detector
from samjax.images import write_image
from samjax.naming import Picture

annotate = functools.partial(auto_annotate, progress=False)

COCO_BOXES = {
    "images": [
        {"id": 7, "file_name": "sub/a.png", "height": 40, "width": 60},
        {"id": 8, "file_name": "b.png", "height": 50, "width": 30},
        {"id": 9, "file_name": "c.png", "height": 60, "width": 40},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 30], "score": 0.5},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 4], "iscrowd": 1},
        {"id": 4, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]},
    ],
    "categories": [{"id": 3, "name": "cup"}, {"id": 90, "name": "saucer"}],
}


def test_boxes_of_a_coco_file(pictures, model, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(COCO_BOXES))
    detector = open_detector(path)
    found = detector(Picture(pictures / "a.png", "a", "a.png"), np.zeros((40, 60, 3), np.uint8))
    np.testing.assert_array_equal(found.boxes, [[10, 5, 30, 35], [1, 2, 4, 6]])
    np.testing.assert_array_equal(found.scores, np.float32([0.5, np.nan]))
    assert found.classes.tolist() == [1, 0]
    done = annotate(pictures, path, model, conf=0.4)
    assert (done.masks, len(done.empty), len(done.failures)) == (2, 1, 1)
    assert "40 high and 60 wide" in done.failures[0] and "60 and 40" in done.failures[0]
    coco = COCO(str(done.folder / "annotations.json"))
    assert [a["category_id"] for a in coco.anns.values()] == [90, 3]
    path.write_text(json.dumps(COCO_BOXES | {"info": "another"}))
    with pytest.raises(ValueError, match="det_model was .*boxes.json"):
        annotate(pictures, path, model, conf=0.4)
    write_image(pictures / "d.png", np.zeros((9, 9, 3), np.uint8))
    again = annotate(pictures, path, model, output_dir=tmp_path / "again")
    assert any("says nothing of d.png" in failure for failure in again.failures)


ONE_IMAGE = '{"images": [{"id": 1, "file_name": "a.png"}], '


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ("[]", "is a list, as COCO results are"),
        ("3", "holds a int; expected a COCO file"),
        ('{"images": []}', "no COCO file of objects.*annotations"),
        (ONE_IMAGE + '"annotations": [{"image_id": 1, "bbox": [1, 2, 3]}]}', "no COCO file"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}', "picture 1 "),
        (
            ONE_IMAGE + '"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 5}],'
            ' "categories": [{"id": 1}]}',
            "category 5 is not among",
        ),
    ],
)
def test_files_that_are_no_coco_boxes(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        open_detector(path)


def test_boxes_of_yolo_files(pictures, model, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.25 0.3\n\n0 0.1 0.1 0.9 0.1 0.9 0.5\n")
    (labels / "classes.txt").write_text("tea\npot\n")
    detector = open_detector(labels, conf=0.2)
    found = detector(Picture(pictures / "a.png", "a", "a.png"), np.zeros((40, 60, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [[15, 15, 45, 25], [6, 4, 54, 20]])
    assert found.classes.tolist() == [1, 0] and [c.name for c in detector.categories] == [
        "tea",
        "pot",
    ]
    done = annotate(pictures, labels, model)
    assert (done.masks, len(done.empty)) == (2, 2)
    for line in ("1 0.5 0.5", "1 a b c d", "-1 .1 .1 .1 .1", "0.5 .1 .1 .1 .1", "nan 1 1 1 1"):
        (labels / "b.txt").write_text(line)
        failed = annotate(pictures, labels, model, output_dir=tmp_path / f"out {line[:5]}")
        assert "b.txt, line 1 is" in failed.failures[0]
    (labels / "data.yaml").write_text("names: 3")
    with pytest.raises(ValueError, match="has no names of classes"):
        open_detector(labels)
