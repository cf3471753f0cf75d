"""The protocols of clicks and boxes, with predictors whose answers are known."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from samjax import SamPredictor, inference
from samjax.checkpoint import Model
from samjax.datasets import open_coco
from samjax.evaluate import Evaluation, evaluate, evaluate_picture, mask_iou, next_click
from samjax.models import SamConfig
from samjax.postprocess import coco_encode_rle, mask_to_rle

SIZE = (40, 60)
PROTOCOLS = ["1 click, oracle", "1 click", "3 clicks", "5 clicks", "box", "filled box",
             "filled ellipse"]  # fmt: skip


def rectangle(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


IMAGE = np.zeros((*SIZE, 3), np.uint8)
THINGS = np.stack([rectangle(2, 2, 22, 22), np.pad(np.tri(30, 20, -3, bool), ((5, 5), (30, 10)))])


class Known:
    """Answers what a function of the thing's number makes of it: (C, H, W) masks and C IoUs.

    Low-resolution logits hold the number of the call and of the mask, so that their way through the
    protocol can be followed. `calls` keeps the arguments."""

    def __init__(self, things, answer):
        self.things, self.answer, self.calls, self.images = things, answer, [], []

    def set_image(self, image):
        self.images.append(image)

    def predict_batch(
        self, point_coords=None, point_labels=None, boxes=None, mask_input=None,
        multimask_output=True,
    ):  # fmt: skip
        self.calls.append(dict(points=point_coords, labels=point_labels, boxes=boxes,
                               masks=mask_input, multimask=multimask_output))  # fmt: skip
        numbers = self._by_box(boxes) if boxes is not None else self._by_point(point_coords)
        masks, ious = zip(*(self.answer(n, multimask_output) for n in numbers), strict=True)
        masks, ious = np.array(masks, bool), np.array(ious, np.float32)
        marks = len(self.calls) * 10 + np.arange(masks.shape[1], dtype=np.float32)
        low_res = np.broadcast_to(marks[None, :, None, None], (*masks.shape[:2], 4, 4))
        return masks, ious, low_res

    def _by_point(self, coords):
        """The first click is inside the thing."""
        return [
            next(n for n, thing in enumerate(self.things) if thing[int(xy[0, 1]), int(xy[0, 0])])
            for xy in coords
        ]

    def _by_box(self, boxes):
        middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
        return self._by_point([np.array([middle]) for middle in middles])


def test_an_oracle_reaches_one():
    def truth(number, multimask):
        return [THINGS[number]] * (3 if multimask else 1), [0.5] * (3 if multimask else 1)

    oracle = Known(THINGS, truth)
    found = evaluate_picture(oracle, IMAGE, THINGS)
    assert list(found) == PROTOCOLS
    for name in PROTOCOLS[:5]:
        np.testing.assert_array_equal(found[name], [1, 1])
    assert len(oracle.calls) == 2, "nothing is wrong after a click, so only the box follows"
    assert found["filled box"].tolist() == [1, THINGS[1].sum() / (27 * 20)]


def test_choice_among_three_masks():
    half = rectangle(2, 2, 12, 22)
    wide = rectangle(2, 2, 22, 42)

    def answer(number, multimask):
        if multimask:
            return [half, THINGS[0], wide], [0.2, 0.3, 0.9]
        return [half], [0.1]

    predictor = Known(THINGS[:1], answer)
    found = evaluate_picture(predictor, IMAGE, THINGS[:1])
    assert found["1 click, oracle"].tolist() == [1.0]
    assert found["1 click"].tolist() == [0.5], "the wide one, of the highest predicted IoU"
    assert found["3 clicks"].tolist() == found["5 clicks"].tolist() == [0.5]
    assert found["box"].tolist() == [0.5]


def test_what_is_asked_of_the_predictor():
    wide = rectangle(2, 2, 22, 42)
    half = rectangle(2, 2, 12, 22)

    def answer(number, multimask):
        return ([half, wide, half], [0.1, 0.9, 0.3]) if multimask else ([half], [0.1])

    predictor = Known(THINGS[:1], answer)
    evaluate_picture(predictor, IMAGE, THINGS[:1])
    first, second, third, fourth, fifth, box = predictor.calls
    assert [call["multimask"] for call in predictor.calls] == [True] + [False] * 5
    center = next_click(THINGS[0])
    assert first["points"][0].tolist() == [list(center[:2])]
    assert first["labels"][0].tolist() == [1] and first["masks"] is None
    background = next_click(THINGS[0], wide)
    assert background.label == 0 and background.x >= 22
    assert second["points"][0].tolist() == [list(center[:2]), list(background[:2])]
    assert second["labels"][0].tolist() == [1, 0]
    np.testing.assert_array_equal(second["masks"][0], np.full((1, 4, 4), 11, np.float32))
    assert third["labels"][0].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(third["masks"][0], np.full((1, 4, 4), 20, np.float32))
    assert fifth["labels"][0].tolist() == [1, 0, 1, 1, 1]
    np.testing.assert_array_equal(fourth["points"][0], fifth["points"][0][:4])
    np.testing.assert_array_equal(box["boxes"], [[2, 2, 22, 22]])
    assert box["points"] is None and box["masks"] is None


def test_a_thing_without_error_is_left_alone():
    def answer(number, multimask):
        mask = THINGS[0] if number == 0 else rectangle(5, 30, 35, 50)
        return [mask] * (3 if multimask else 1), [0.5] * (3 if multimask else 1)

    predictor = Known(THINGS, answer)
    found = evaluate_picture(predictor, IMAGE, THINGS)
    expected = mask_iou(THINGS[1], rectangle(5, 30, 35, 50))
    assert 0 < expected < 1
    for name in PROTOCOLS[:5]:
        np.testing.assert_array_equal(found[name], [1, expected])
    assert [len(call["points"]) for call in predictor.calls[:5]] == [2, 1, 1, 1, 1]


def test_other_numbers_of_clicks():
    def answer(number, multimask):
        return [THINGS[0]] * (3 if multimask else 1), [0.5] * (3 if multimask else 1)

    found = evaluate_picture(Known(THINGS[:1], answer), IMAGE, THINGS[:1], clicks=(2,))
    assert list(found) == ["2 clicks", *PROTOCOLS[4:]]
    for wrong in [(), (0, 1), (3, 1), (1, 1)]:
        with pytest.raises(ValueError, match="ascending numbers from 1"):
            evaluate_picture(Known(THINGS, answer), IMAGE, THINGS, clicks=wrong)


def test_many_things_go_in_parts(monkeypatch):
    monkeypatch.setattr("samjax.evaluate.protocols.MAX_PIXELS", 5 * 3 * SIZE[0] * SIZE[1])
    things = np.stack([rectangle(0, 5 * i, 12, 5 * i + 4) for i in range(11)])

    def answer(number, multimask):
        mask = rectangle(0, 5 * number, number + 1, 5 * number + 4)
        return [mask] * (3 if multimask else 1), [0.5] * (3 if multimask else 1)

    predictor = Known(things, answer)
    found = evaluate_picture(predictor, IMAGE, things, clicks=(1,))
    np.testing.assert_array_equal(found["1 click"], np.arange(1, 12) / 12)
    np.testing.assert_array_equal(found["box"], np.arange(1, 12) / 12)
    assert [len(c["points"]) for c in predictor.calls if c["points"]] == [4, 4, 3]
    assert len(predictor.images) == 1


@pytest.fixture
def coco(tmp_path):
    """A COCO file of pictures with the same things; opens it."""

    def make(number=1, things=THINGS):
        content = {"images": [], "annotations": []}
        for i in range(number):
            Image.fromarray(IMAGE + np.uint8(i)).save(tmp_path / f"{i}.png")
            content["images"].append(
                {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
            )
            for thing in things:
                rle = coco_encode_rle(mask_to_rle(thing))
                content["annotations"].append({"id": 9, "image_id": i, "segmentation": rle})
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return open_coco(tmp_path / "instances.json", tmp_path)

    return make


def perfect(number, multimask):
    return [THINGS[number]] * (3 if multimask else 1), [0.5] * (3 if multimask else 1)


def test_evaluate_a_source(coco):
    source = coco(4)
    result = evaluate(Known(THINGS, perfect), source, model="oracle")
    assert (
        result.num_pictures == 4 and result.areas.tolist() == THINGS.sum(axis=(1, 2)).tolist() * 4
    )
    for name in PROTOCOLS[:5]:
        assert result.mean_iou(name) == 1
    predictor = Known(THINGS, perfect)
    some = evaluate(predictor, source, max_pictures=2)
    assert some.num_pictures == 2 and [int(image.max()) for image in predictor.images] == [0, 2]


def test_small_things_are_left_out(coco):
    source = coco(things=[*THINGS, rectangle(30, 0, 40, 9), rectangle(30, 10, 40, 20)])
    things = np.stack([*THINGS, rectangle(30, 10, 40, 20)])

    def answer(number, multimask):
        return [things[number]] * (3 if multimask else 1), [0.5] * (3 if multimask else 1)

    result = evaluate(Known(things, answer), source)
    assert sorted(result.areas.tolist())[0] == 100 and len(result.areas) == 3
    with pytest.raises(ValueError, match="no thing of 5000 pixels and more in 1 of 1 pictures"):
        evaluate(Known(things, answer), source, min_area=5000)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(Known(things, answer), source, min_area=0)


def test_bad_pictures_are_counted(coco, tmp_path):
    source = coco(3)
    (tmp_path / "1.png").write_text("no picture")
    with pytest.warns(UserWarning, match="left out: broken picture: .*1.png"):
        result = evaluate(Known(THINGS, perfect), source)
    assert result.num_pictures == 2 and result.left_out == {"broken picture": 1}


def small_result(min_area=100):
    areas = np.array([100, 1023, 1024, 9215, 9216, 50000])
    ious = {"1 click": np.array([0.1, 0.3, 0.5, 0.7, 0.8, 1.0]), "box": np.ones(6)}
    kept = areas >= min_area
    return Evaluation("m", "d", min_area, 3, areas[kept], {k: v[kept] for k, v in ious.items()},
                      {"crowd": 2})  # fmt: skip


def test_area_classes():
    result = small_result()
    names = [group.name for group in result.groups()]
    assert names == ["all", "100 to 1023", "1024 to 9215", "9216 and more"]
    means = [result.mean_iou("1 click", group) for group in result.groups()]
    assert means == pytest.approx([3.4 / 6, 0.2, 0.6, 0.9], abs=1e-12)
    larger = small_result(2000)
    assert [g.name for g in larger.groups()] == ["all", "2000 to 9215", "9216 and more"]
    assert larger.mean_iou("1 click", larger.groups()[1]) == 0.7


def test_table():
    lines = small_result().table().splitlines()
    assert lines[0].split() == "mean IoU all 100 to 1023 1024 to 9215 9216 and more".split()
    assert lines[1].split() == ["things", "6", "2", "2", "2"]
    assert lines[2].split() == ["1", "click", "0.567", "0.200", "0.600", "0.900"]
    assert lines[3].split() == ["box", "1.000", "1.000", "1.000", "1.000"]
    assert len({len(line) for line in lines}) == 1


def test_an_empty_class_has_no_mean(tmp_path):
    result = Evaluation("m", "d", 100, 1, np.array([200]), {"box": np.array([0.25])})
    assert math.isnan(result.mean_iou("box", result.groups()[-1]))
    assert result.table().splitlines()[-1].split() == ["box", "0.250", "0.250", "-", "-"]
    result.write(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"][-1]["mean_iou"] is None


def test_files(tmp_path):
    table, whole = small_result().write(tmp_path / "out")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[1] == {"protocol": "1 click", "pixels": "100 to 1023", "things": "2",
                       "mean_iou": rows[1]["mean_iou"]}  # fmt: skip
    assert float(rows[1]["mean_iou"]) == pytest.approx(0.2)
    content = json.loads(whole.read_text())
    assert content["things"] == 6 and content["left_out"] == {"crowd": 2}
    assert [row["protocol"] for row in content["rows"]] == ["1 click"] * 4 + ["box"] * 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.csv", "evaluation.json"]  # fmt: skip


def test_the_predictor_itself():
    """Both things at once, through the same calls made by hand."""
    model = Model.from_params(inference.init_params(SamConfig.tiny(256), 0))
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    predictor = SamPredictor(model)
    found = evaluate_picture(predictor, image, THINGS, clicks=(1, 2))

    clicks = [next_click(truth) for truth in THINGS]
    points = [[click[:2]] for click in clicks]
    masks, ious, low_res = predictor.predict_batch(points, [[1], [1]])
    best, both = ious.argmax(axis=1), np.arange(2)
    overlaps = mask_iou(masks, THINGS[:, None])
    np.testing.assert_array_equal(found["1 click, oracle"], overlaps.max(axis=1))
    np.testing.assert_array_equal(found["1 click"], overlaps[both, best])

    seconds = [next_click(*pair) for pair in zip(THINGS, masks[both, best], strict=True)]
    masks, _, _ = predictor.predict_batch(
        [[first[:2], second[:2]] for first, second in zip(clicks, seconds, strict=True)],
        [[1, second.label] for second in seconds],
        mask_input=low_res[both, best][:, None],
        multimask_output=False,
    )
    np.testing.assert_array_equal(found["2 clicks"], mask_iou(masks[:, 0], THINGS))

    boxes = [[2, 2, 22, 22], [30, 8, 50, 35]]
    masks, _, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
    np.testing.assert_array_equal(found["box"], mask_iou(masks[:, 0], THINGS))
