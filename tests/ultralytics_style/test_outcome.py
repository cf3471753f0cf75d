"""`Boxes`, `Masks` and `Results` of masks that are known."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samjax.images import read_image
from samjax.postprocess import box_from_rle, compress_mask
from samjax.ultralytics_style import Boxes, Masks, Results

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (60, 90)


def some_masks():
    square, ring, nothing = (np.zeros(SIZE, bool) for _ in range(3))
    square[10:20, 30:50] = True
    ring[30:55, 5:40] = True
    ring[38:45, 15:30] = False
    ring[2:6, 80:88] = True
    return np.stack([square, ring, nothing])


@pytest.fixture
def result():
    masks = some_masks()
    rles = [compress_mask(mask) for mask in masks]
    scores = np.array([0.9, 0.5, 0.3])
    data = np.column_stack([[box_from_rle(rle) for rle in rles], scores, [0, 1, 2]])
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    logits = np.zeros((3, 16, 16), np.float32)
    return Results(
        image, "in/photo.jpg", {i: str(i) for i in range(3)},
        boxes=Boxes(data.astype(np.float32), SIZE), masks=Masks(rles, SIZE, logits=logits),
    )  # fmt: skip


def nothing_found(result):
    return Results(
        result.orig_img, "in/photo.jpg", {}, boxes=Boxes(np.zeros((0, 6), np.float32), SIZE),
        masks=None,
    )  # fmt: skip


def test_boxes(result):
    boxes = result.boxes
    assert boxes.xyxy.tolist() == [[30, 10, 49, 19], [5, 2, 87, 54], [0, 0, 0, 0]]
    assert boxes.xywh[0].tolist() == [39.5, 14.5, 19, 9]
    np.testing.assert_allclose(boxes.xyxyn[0], [30 / 90, 10 / 60, 49 / 90, 19 / 60], rtol=1e-6)
    np.testing.assert_allclose(boxes.xywhn[0], [39.5 / 90, 14.5 / 60, 19 / 90, 9 / 60], rtol=1e-6)
    assert boxes.cls.tolist() == [0, 1, 2] and boxes.shape == (3, 6) and boxes.id is None
    assert type(boxes.xyxy.cpu().numpy()) is np.ndarray
    assert [int(box.cls[0]) for box in boxes] == [0, 1, 2]


def test_masks(result):
    np.testing.assert_array_equal(result.masks.data, some_masks())
    assert type(result.masks.data.cpu().numpy()) is np.ndarray
    assert result.masks.shape == (3, *SIZE)
    xy, xyn = result.masks.xy, result.masks.xyn
    assert len(xy) == 3 and xy[2].shape == (0, 2)
    canvas = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(canvas, [xy[0].astype(np.int32)], 1)
    np.testing.assert_array_equal(canvas.astype(bool), some_masks()[0])
    np.testing.assert_allclose(xyn[1] * [90, 60], xy[1], rtol=1e-5)


@pytest.mark.parametrize(
    "index, left",
    [
        (1, [1]),
        (-1, [2]),
        (slice(0, 2), [0, 1]),
        ([2, 0], [2, 0]),
        (np.array([True, False, True]), [0, 2]),
    ],
)
def test_a_part_of_the_masks(result, index, left):
    part = result[index]
    assert part.boxes.cls.tolist() == left and len(part) == len(left)
    np.testing.assert_array_equal(part.masks.data, some_masks()[left])
    assert part.masks.logits.shape == (len(left), 16, 16)


def test_rows_that_are_not_there(result):
    with pytest.raises(IndexError):
        result[3]
    assert result[[]].masks is None and len(list(result)) == 3


def test_plot_is_bgr_and_shows_what_is_asked_for(result):
    drawn = result.plot()
    assert drawn.shape == result.orig_img.shape and drawn.dtype == np.uint8
    bare = result.plot(boxes=False, masks=False)
    np.testing.assert_array_equal(bare, result.orig_img)
    np.testing.assert_array_equal(np.array(result.plot(pil=True)), drawn[..., ::-1])
    assert (result.plot(labels=False, conf=False) != drawn).any()
    only_masks = result.plot(boxes=False)
    changed = (only_masks != result.orig_img).any(axis=2)
    assert changed[some_masks().any(axis=0)].mean() > 0.95
    with pytest.raises(ValueError, match="img has shape"):
        result.plot(img=np.zeros((5, 5, 3), np.uint8))


def test_saving_a_picture(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert result.save() == "results_photo.jpg"
    assert Image.open("results_photo.jpg").format == "JPEG"
    assert result.save("out/a.png", boxes=False) == "out/a.png"
    np.testing.assert_array_equal(read_image("out/a.png"), result.plot(boxes=False)[..., ::-1])
    with pytest.raises(ValueError, match="a.xyz ends in .xyz, which is no picture format"):
        result.save("a.xyz")
    assert not (tmp_path / "a.xyz").exists()


def test_coco_keeps_parts_and_holes(result, tmp_path, capsys):
    content = result.to_coco(tmp_path / "a.json", image_id=7, first_annotation_id=5)
    assert json.loads((tmp_path / "a.json").read_text()) == content
    coco = COCO(tmp_path / "a.json")
    assert coco.imgs[7]["file_name"] == "photo.jpg" and sorted(coco.anns) == [5, 6, 7]
    for mask, annotation in zip(some_masks(), coco.anns.values(), strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum() and "stability_score" not in annotation
    assert coco.anns[5]["bbox"] == [30, 10, 20, 10]


def test_yolo_lines_give_the_masks_again(result, tmp_path):
    lines = result.to_yolo(tmp_path / "labels/a.txt", class_ids=[4, 5, 6])
    assert (tmp_path / "labels/a.txt").read_text().splitlines() == lines
    assert [line.split()[0] for line in lines] == ["4", "5"]
    for line, mask in zip(lines, some_masks(), strict=False):
        polygon = np.array(line.split()[1:], float).reshape(-1, 2) * [90, 60]
        canvas = np.zeros(SIZE, np.uint8)
        cv2.fillPoly(canvas, [np.rint(polygon).astype(np.int32)], 1)
        assert (canvas.astype(bool) & mask).sum() == mask.sum()
        assert (canvas.astype(bool) | mask).sum() <= mask.sum() + 60
    with pytest.raises(ValueError, match="2 class_ids for 3 masks"):
        result.to_yolo(class_ids=[1, 2])


def test_a_line_is_never_as_long_as_a_box():
    """Five numbers would be read as a box."""
    mask = np.zeros(SIZE, bool)
    mask[3, 4] = True
    boxes = Boxes(np.array([[4, 3, 4, 3, 0.5, 0]], np.float32), SIZE)
    one = Results(
        np.zeros((*SIZE, 3), np.uint8), "a.jpg", {0: "0"}, boxes=boxes,
        masks=Masks([compress_mask(mask)], SIZE),
    )  # fmt: skip
    (line,) = one.to_yolo()
    assert len(line.split()) == 7


def test_text_files_and_crops(result, tmp_path):
    lines = (tmp_path / result.save_txt(tmp_path / "a.txt", save_conf=True)).read_text().split("\n")
    assert [line.split()[0] for line in lines if line] == ["0", "1"]
    assert [line.split()[-1] for line in lines if line] == ["0.9", "0.5"]
    result.save_crop(tmp_path / "crops", "c.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "crops/0/c_0.png"), result.orig_img[10:20, 30:50, ::-1]
    )


def test_summary(result):
    first, *_ = json.loads(result.to_json())
    assert first["name"] == "0" and first["class"] == 0 and first["confidence"] == 0.9
    assert first["box"] == {"x1": 30, "y1": 10, "x2": 49, "y2": 19}
    assert len(first["segments"]["x"]) == len(first["segments"]["y"]) == 4
    assert result.summary(normalize=True)[0]["box"]["x1"] == round(30 / 90, 5)


def test_a_notebook_shows_a_small_png(result):
    shown = Image.open(io.BytesIO(result._repr_png_()))
    np.testing.assert_array_equal(np.array(shown), result.plot()[..., ::-1])
    large = Results(
        np.zeros((500, 3000, 3), np.uint8), "a.jpg", {},
        boxes=Boxes(np.zeros((0, 6), np.float32), (500, 3000)), masks=None,
    )  # fmt: skip
    assert Image.open(io.BytesIO(large._repr_png_())).size == (1024, 171)


def test_nothing_found(result, tmp_path):
    empty = nothing_found(result)
    assert len(empty) == 0 and empty.masks is None and empty.summary() == []
    np.testing.assert_array_equal(empty.plot(), empty.orig_img)
    assert empty.to_yolo(tmp_path / "a.txt") == [] and not (tmp_path / "a.txt").exists()
    assert empty.to_coco()["annotations"] == []
    assert "0 masks" in repr(empty) and empty.verbose() == "60x90, 0 masks"
