"""FastSAM: what prompts choose of everything."""

import jax
import numpy as np
import pytest

import samjax
from samjax.detection import Detections, YoloDetector
from samjax.models.yolo import YoloConfig
from samjax.postprocess import compress_mask, rle_to_mask
from samjax.ultralytics_style import fast_sam
from samjax.yolo_model import YoloModel, abstract_params

CONFIG = YoloConfig(
    task="segment", num_classes=1, widths=(8, 8, 8, 16, 16), depths=(1, 1, 1, 1), prototype_width=8
)
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    shapes = abstract_params(CONFIG)
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype), shapes)
    return YoloModel(params, CONFIG, ("object",))


BOXES = np.array([[0, 0, 40, 40], [10, 10, 30, 30], [50, 5, 90, 60], [5, 50, 9, 60]], np.float32)


class Known(YoloDetector):
    """Four objects: a frame, what is in it, one beside them, and one without a pixel."""

    names = {0: "object"}
    calls = 0

    def __init__(self, model, **options):
        self.options = options

    def __call__(self, image):
        type(self).calls += 1
        masks = np.zeros((4, 64, 96), bool)
        masks[0, :40, :40] = True
        masks[0, 10:30, 10:30] = False
        masks[1, 10:30, 10:30] = True
        masks[2, 5:60, 50:90] = True
        scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
        rles = [compress_mask(mask) for mask in masks]
        return Detections(BOXES, scores, np.zeros(4, np.int32), rles)


@pytest.fixture
def known(model, monkeypatch):
    monkeypatch.setattr(fast_sam, "YoloDetector", Known)
    monkeypatch.setattr(Known, "calls", 0)
    return samjax.FastSAM(model)


def chosen(results):
    (result,) = results
    return [float(x) for x in np.round(result.boxes.conf, 2)]


def test_everything_is_the_detectors(model):
    fast = samjax.FastSAM(model)
    (result,) = fast(PICTURE, conf=0.01, iou=0.5, imgsz=64, max_det=5, verbose=False)
    found = YoloDetector(model, conf=0.01, iou=0.5, imgsz=64, max_det=5)(PICTURE[..., ::-1].copy())
    assert len(found.boxes) == 5
    kept = [i for i, rle in enumerate(found.masks) if rle_to_mask(rle).any()]
    assert len(result) == len(kept) > 0
    np.testing.assert_array_equal(result.boxes.xyxy, found.boxes[kept])
    np.testing.assert_array_equal(result.boxes.conf, found.scores[kept])
    assert result.masks.rles == [found.masks[i] for i in kept]
    assert result.names == {0: "object"} and set(result.boxes.cls.tolist()) == {0}
    assert result.plot().shape == PICTURE.shape
    assert len(result.to_coco()["annotations"]) == len(kept) == len(result.to_yolo())


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({}, [0.9, 0.8, 0.7]),
        ({"bboxes": [11, 9, 31, 29]}, [0.8]),
        ({"bboxes": [[0, 0, 41, 39], [50, 5, 80, 60]]}, [0.9, 0.7]),
        ({"points": [5, 5]}, [0.9]),
        ({"points": [[5, 5], [20, 20]], "labels": [1, 1]}, [0.9, 0.8]),
        ({"points": [[5, 5], [20, 20]], "labels": [1, 0]}, [0.9]),
        ({"points": [[[60, 30], [20, 20]]], "labels": [[0, 1]]}, [0.8]),
        ({"points": [60, 30], "labels": [0]}, [0.9, 0.8]),
        ({"points": [95, 63]}, []),
        ({"points": [5, 5], "bboxes": [50, 5, 90, 60]}, [0.9, 0.7]),
    ],
)
def test_prompts(known, prompts, expected):
    assert chosen(known(PICTURE, verbose=False, **prompts)) == pytest.approx(expected)


def test_texts_by_a_function(known):
    asked = []

    def score(crops, text):
        asked.append((text, [crop.shape for crop in crops]))
        sizes = np.array([crop.size for crop in crops])
        return sizes if text == "large" else -sizes

    large = known(PICTURE, texts="large", score=score, verbose=False)
    assert chosen(large) == pytest.approx([0.7])
    assert asked == [("large", [(40, 40, 3), (20, 20, 3), (55, 40, 3)])]
    several = known(PICTURE, texts=["small", "large"], score=score, verbose=False)
    assert chosen(several) == pytest.approx([0.8, 0.7])
    with pytest.raises(ValueError, match=r"texts need a function.*score=.*text_to_mask\.md"):
        known(PICTURE, texts="a dog")
    with pytest.raises(ValueError, match="texts hold 3"):
        known(PICTURE, texts=[3], score=score)


def test_the_model_runs_once_for_a_picture(known):
    known(PICTURE, verbose=False)
    assert chosen(known(points=[20, 20], verbose=False)) == pytest.approx([0.8])
    assert Known.calls == 1
    known(points=[20, 20], conf=0.1, verbose=False)
    assert Known.calls == 2
    known(PICTURE, verbose=False)
    assert Known.calls == 3


def test_documented_defaults(known, monkeypatch):
    given = {}
    monkeypatch.setattr(Known, "__init__", lambda self, model, **options: given.update(options))
    known(PICTURE, device="cpu", retina_masks=True, imgsz=1024, conf=0.4, iou=0.9, verbose=False)
    documented = dict(given)
    known(PICTURE, verbose=False)
    assert given == documented == {"conf": 0.4, "iou": 0.9, "imgsz": 1024, "max_det": 300}


def test_errors(known, model):
    with pytest.raises(RuntimeError, match="there is no source"):
        known(verbose=False)
    with pytest.raises(ValueError, match=r"point \(96, 70\) is outside|point \(100, 3\)"):
        known(PICTURE, points=[100, 3], verbose=False)
    with pytest.raises(ValueError, match="labels hold 2"):
        known(PICTURE, points=[1, 3], labels=[2])
    with pytest.raises(ValueError, match="bboxes have shape"):
        known(PICTURE, bboxes=[1, 2, 3])
    with pytest.raises(TypeError, match="no argument 'pionts'"):
        known(PICTURE, pionts=[1, 2])
    detect = YoloModel(model.params, YoloConfig(num_classes=1), ("object",))
    with pytest.raises(ValueError, match="finds 'detect' only"):
        samjax.FastSAM(detect)
    with pytest.raises(ValueError, match=r"nano.* is a Segment Anything model"):
        samjax.FastSAM("nano")


def test_info(model, capsys):
    info = samjax.FastSAM(model).info()
    assert (
        info.parameters == model.num_parameters and "input 1024 x 1024" in capsys.readouterr().out
    )
