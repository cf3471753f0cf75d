"""Wrong pictures and prompts: an error that names the value, and the predictor as it was."""

import numpy as np
import pytest
from PIL import Image

from samjax import Model, SamConfig, SamPredictor, inference

HEIGHT, WIDTH = 40, 60


@pytest.fixture(scope="module")
def model():
    config = SamConfig.tiny(64)
    return Model(inference.init_params(config), config)


@pytest.fixture
def predictor(model):
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return predictor


def check(error, words):
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "prompt, words",
    [
        ({}, ["no prompt", "point_coords", "box", "mask_input"]),
        (dict(point_coords=[[1, 2]]), ["point_labels is missing"]),
        (dict(point_labels=[1]), ["point_coords is missing"]),
        (dict(point_coords=np.zeros((0, 2)), point_labels=[]), ["(0, 2)", "N > 0"]),
        (dict(point_coords=[1, 2], point_labels=[1]), ["(2,)", "(N, 2)"]),
        (dict(point_coords=[[1, 2, 3]], point_labels=[1]), ["(1, 3)", "(N, 2)"]),
        (dict(point_coords=[[1, 2], [3, 4]], point_labels=[1]), ["(1,)", "2 points", "(2,)"]),
        (dict(point_coords=[[1, 2]], point_labels=[2]), ["2", "1 (object)", "0 (background)"]),
        (dict(point_coords=[[1, np.nan]], point_labels=[1]), ["point_coords", "NaN"]),
        (dict(point_coords=[[1, np.inf]], point_labels=[1]), ["point_coords", "infinity"]),
        (dict(point_coords=[["a", "b"]], point_labels=[1]), ["point_coords", "numbers"]),
        (dict(point_coords=[[70, 2]], point_labels=[1]), ["(70, 2)", "60 wide", "40 high"]),
        (dict(point_coords=[[7, -2]], point_labels=[0]), ["(7, -2)", "outside"]),
        (dict(point_coords=[[50, 50]], point_labels=[1]), ["(50, 50)", "(x, y)"]),
        (dict(box=[1, 2, 3]), ["(3,)", "x0, y0, x1, y1"]),
        (dict(box=[30, 20, 10, 30]), ["30, 20, 10, 30", "x0 < x1"]),
        (dict(box=[10, 20, 10, 30]), ["empty"]),
        (dict(box=[60, 20, 90, 30]), ["outside", "60 wide"]),
        (dict(box=[10, 20, np.nan, 30]), ["box", "NaN"]),
        (dict(mask_input=np.zeros((1, 40, 60), np.float32)), ["(1, 40, 60)", "(1, 16, 16)"]),
        (dict(mask_input=np.zeros((1, 16, 16), bool)), ["bool", "logits"]),
        (dict(mask_input=np.zeros((1, 16, 16), np.uint8)), ["uint8", "logits"]),
        (dict(mask_input=np.full((1, 16, 16), np.nan)), ["mask_input", "NaN"]),
    ],
)
def test_wrong_prompts(predictor, prompt, words):
    with pytest.raises(ValueError) as error:
        predictor.predict(**prompt)
    check(error, words)
    assert predictor.is_image_set


@pytest.mark.parametrize(
    "prompts, words",
    [
        (dict(boxes=np.zeros((0, 4))), ["boxes", "0"]),
        (dict(boxes=[[1, 2, 30, 30]], point_coords=[[[1, 2]]] * 2, point_labels=[[1]] * 2),
         ["different numbers", "'boxes': 1", "'point_coords': 2"]),
        (dict(boxes=[[1, 2, 30, 30], [5, 5, 4, 9]]), ["5, 5, 4, 9"]),
        (dict(boxes=[[1, 2, 30, 30], None]), ["object 1", "no prompt"]),
    ],
)  # fmt: skip
def test_wrong_batches(predictor, prompts, words):
    with pytest.raises(ValueError) as error:
        predictor.predict_batch(**prompts)
    check(error, words)


def test_points_and_boxes_on_the_edge_are_inside(predictor):
    predictor.predict(point_coords=[[0, 0], [WIDTH, HEIGHT]], point_labels=[1, 0])
    predictor.predict(box=[-5, -5, WIDTH + 5, HEIGHT + 5])


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.predict(point_coords=[[1, 2]], point_labels=[1]),
        lambda p: p.predict_batch(boxes=[[0, 0, 1, 1]]),
        lambda p: p.get_image_embedding(),
        lambda p: p.original_size,
        lambda p: p.features,
    ],
)
def test_before_set_image(model, predictor, call):
    fresh = SamPredictor(model)
    with pytest.raises(RuntimeError, match="set_image"):
        call(fresh)
    predictor.reset_image()
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match="set_image"):
        call(predictor)


@pytest.mark.parametrize(
    "image, error, words",
    [
        ("missing.jpg", FileNotFoundError, ["missing.jpg"]),
        ("notes.txt", ValueError, ["notes.txt", "picture"]),
        ("cut.png", ValueError, ["cut.png"]),
        (".", IsADirectoryError, ["folder"]),
        (np.zeros((0, 5, 3), np.uint8), ValueError, ["(0, 5, 3)"]),
        (np.zeros((3, 40, 60), np.uint8), ValueError, ["(3, 40, 60)"]),
        (np.zeros((4, 4, 7), np.uint8), ValueError, ["(4, 4, 7)"]),
        (np.full((4, 4, 3), np.nan), ValueError, ["NaN"]),
        (np.full((4, 4, 3), 255.0), ValueError, ["[0, 1]"]),
    ],
)
def test_wrong_pictures_leave_the_last_one_set(
    predictor, tmp_path, monkeypatch, image, error, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture")
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    before = predictor.get_image_embedding()
    with pytest.raises(error) as raised:
        predictor.set_image(image)
    check(raised, words)
    np.testing.assert_array_equal(predictor.get_image_embedding(), before)
    assert predictor.original_size == (HEIGHT, WIDTH)


def test_wrong_channel_order(predictor):
    with pytest.raises(ValueError) as error:
        predictor.set_image(np.zeros((4, 4, 3), np.uint8), image_format="RBG")
    check(error, ["RBG", "BGR"])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (30, 20000)])
def test_odd_sizes_work(model, size):
    predictor = SamPredictor(model)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    masks, ious, low_res = predictor.predict(point_coords=[[0.5, 0.5]], point_labels=[1])
    assert masks.shape == (3, *size) and masks.dtype == bool
    assert np.isfinite(ious).all() and np.isfinite(low_res).all()


def test_every_kind_of_picture_is_the_same_picture(model, tmp_path):
    """Grey as RGB, RGBA, 16-bit, float, boolean, BGR, and files that say the same."""
    grey = np.random.default_rng(0).integers(0, 2, (30, 50), dtype=np.uint8) * 255
    rgb = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    turned = Image.fromarray(np.rot90(rgb).copy())
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    alike = [
        grey,
        grey[..., None],
        np.dstack([rgb, np.full_like(grey, 9)]),
        grey.astype(np.uint16) * 257,
        grey / 255.0,
        grey > 0,
        tmp_path / "grey.png",
        str(tmp_path / "sixteen.png"),
        tmp_path / "turned.png",
    ]
    predictor = SamPredictor(model)
    predictor.set_image(rgb)
    expected = predictor.get_image_embedding()
    for picture in alike:
        predictor.set_image(picture)
        np.testing.assert_array_equal(predictor.get_image_embedding(), expected)
    coloured = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    predictor.set_image(coloured)
    expected = predictor.get_image_embedding()
    predictor.set_image(coloured[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(predictor.get_image_embedding(), expected)
