"""`samjax predict`."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samjax import Model, SamConfig, SamPredictor, load, save_checkpoint
from samjax.cli import main
from samjax.images import read_image
from samjax.models.architecture import abstract_params

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def predict(checkpoint, draw, tmp_path):
    """Runs the command on one picture; the output folder is `out`."""
    picture = draw("photo.png")

    def run(*options: object, model=checkpoint) -> int:
        argv = ["predict", picture, "--model", model, "--output", tmp_path / "out", *options]
        return main([str(arg) for arg in argv])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "photo"


def masks_in(folder) -> np.ndarray:
    files = sorted(path for path in folder.glob("*.png") if path.stem.isdecimal())
    return np.stack([np.array(Image.open(file)) > 0 for file in files])


@pytest.fixture
def predictor(tiny_model, tmp_path, draw):
    predictor = SamPredictor(tiny_model)
    predictor.set_image(draw("photo.png"))
    return predictor


def test_a_point(predict, out, predictor, capsys, checkpoint):
    assert predict("--point", 20, 30, "--save-logits") == 0
    masks, ious, low_res = predictor.predict([[20, 30]], [1])
    best = int(ious.argmax())
    np.testing.assert_array_equal(masks_in(out), masks[best : best + 1])
    np.testing.assert_array_equal(np.load(out / "0_low_res.npy"), low_res[best : best + 1])
    (annotation,) = json.loads((out / "annotations.json").read_text())["annotations"]
    ys, xs = np.nonzero(masks[best])
    x, y, right, bottom = xs.min(), ys.min(), xs.max(), ys.max()
    assert annotation["bbox"] == [x, y, right - x, bottom - y]
    assert annotation["area"] == masks[best].sum()
    assert annotation["point_coords"] == [[20, 30]]
    assert annotation["crop_box"] == [0, 0, 90, 60]
    assert 0 <= annotation["stability_score"] <= 1
    coco = COCO(out.parent / "coco.json")
    np.testing.assert_array_equal(coco.annToMask(coco.anns[1]), masks[best])
    drawn = read_image(out / "overlay.png")
    np.testing.assert_array_equal(drawn[30, 20], (46, 204, 64))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"loaded {checkpoint}: ViT of 2 blocks and width 32, 0.103 M parameters, float32"
    )
    assert lines[1] == (
        f"{out / '0.png'}: {masks[best].sum()} pixels, box {x} {y} {right} {bottom}, "
        f"predicted IoU {ious[best]:.3f}"
    )
    assert lines[2] == f"overlay: {out / 'overlay.png'}"


def test_points_and_a_box_are_one_object(predict, out, predictor):
    assert predict("--point", 20, 30, "--point", 5, 5, 0, "--box", 10, 10, 60, 50) == 0
    masks, _, _ = predictor.predict(
        [[20, 30], [5, 5]], [1, 0], box=[10, 10, 60, 50], multimask_output=False
    )
    np.testing.assert_array_equal(masks_in(out), masks)
    drawn = read_image(out / "overlay.png")
    np.testing.assert_array_equal(drawn[5, 5], (255, 51, 51))
    np.testing.assert_array_equal(drawn[40, 10], (46, 204, 64))


def test_boxes_are_an_object_each(predict, out, predictor):
    boxes = [[10, 10, 60, 50], [30, 5, 80, 40]]
    assert predict(*(arg for box in boxes for arg in ("--box", *box))) == 0
    masks, _, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
    assert masks.shape[:2] == (2, 1)
    np.testing.assert_array_equal(masks_in(out), masks[:, 0])


@pytest.mark.parametrize(
    "options, number, multimask",
    [(["--all-masks"], 3, True), (["--all-masks", "--single"], 1, False)],
)
def test_all_masks_of_a_point(predict, out, predictor, options, number, multimask):
    assert predict("--point", 20, 30, *options) == 0
    masks, _, _ = predictor.predict([[20, 30]], [1], multimask_output=multimask)
    assert len(masks) == number
    np.testing.assert_array_equal(masks_in(out), masks)


def test_multimask_of_a_box(predict, out, predictor):
    assert predict("--box", 10, 10, 60, 50, "--multimask", "--all-masks") == 0
    masks, _, _ = predictor.predict(box=[10, 10, 60, 50], multimask_output=True)
    np.testing.assert_array_equal(masks_in(out), masks)


def test_logits_go_in_again(predict, out, predictor, tmp_path):
    assert predict("--point", 20, 30, "--save-logits") == 0
    logits = (out / "0_low_res.npy").rename(tmp_path / "low_res.npy")
    assert predict("--point", 20, 30, "--mask-input", logits, "--overwrite") == 0
    masks, _, _ = predictor.predict(
        [[20, 30]], [1], mask_input=np.load(logits), multimask_output=False
    )
    np.testing.assert_array_equal(masks_in(out), masks)


def test_results_are_not_replaced_unasked(predict, out, capsys):
    assert predict("--point", 20, 30) == 0
    before = (out / "annotations.json").read_bytes()
    assert predict("--point", 50, 30) == 2
    err = capsys.readouterr().err
    assert "not empty" in err and "--overwrite" in err and "--resume" not in err
    assert (out / "annotations.json").read_bytes() == before
    assert predict("--point", 50, 30, "--overwrite") == 0
    assert (out / "annotations.json").read_bytes() != before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--all-masks"], "--all-masks is for an object that is shown; give --point"),
        (["--single"], "--single is for an object that is shown"),
        (["--save-logits"], "--save-logits is for an object"),
        (["--point", 1], "--point has 1 numbers"),
        (["--point", 1, 2, 1, 5], "--point has 4 numbers"),
        (["--point", 1, 2, 3], "LABEL of a --point is 3"),
        (["--point", 1, "nan"], "NaN"),
        (["--point", 100, 30], "point (100, 30) is outside the picture, which is 90 wide"),
        (["--point", -1, 30], "outside the picture"),
        (["--box", 50, 10, 20, 40], "is empty"),
        (["--box", 1, 2, 3], "--box: expected 4 arguments"),
        (["--box", 200, 200, 300, 300], "lies outside the picture"),
        (["--box", 1, 1, 9, 9, "--box", 2, 2, 9, 9, "--point", 5, 5], "2 boxes are as many obj"),
        (["--point", 1, 2, "--mask-input", "nowhere.npy"], "No such file or directory: nowhere"),
        (["--point", 1, 2, "--multimask", "--single"], "not allowed with"),
    ],
)
def test_bad_prompts_are_found_before_a_model_is_loaded(
    predict, tmp_path, capsys, options, message
):
    assert predict(*options, model=tmp_path / "no-model") == 2
    err = capsys.readouterr().err
    assert err.startswith("samjax: error: ") and message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["text", "pickle", "npz"])
def test_a_mask_that_is_no_array(predict, tmp_path, capsys, content):
    path = tmp_path / "mask.npy"
    if content == "text":
        path.write_text("0 1 1 0")
    elif content == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    else:
        np.savez(tmp_path / "mask.npz", np.zeros(3))
        (tmp_path / "mask.npz").rename(path)
    assert predict("--mask-input", path) == 2
    assert "mask.npy is no .npy file of low-resolution logits" in capsys.readouterr().err


def test_a_mask_of_the_pictures_size(predict, tmp_path, capsys):
    np.save(tmp_path / "mask.npy", np.zeros((60, 90), np.float32))
    assert predict("--mask-input", tmp_path / "mask.npy") == 2
    assert "mask_input has shape (60, 90); expected (1, 64, 64)" in capsys.readouterr().err


@pytest.mark.parametrize("name, message", [("none.png", "no such"), ("text.png", "not a picture")])
def test_a_bad_picture(checkpoint, tmp_path, capsys, name, message):
    (tmp_path / "text.png").write_text("hello")
    argv = ["predict", tmp_path / name, "--model", checkpoint, "--point", 1, 2, "--output",
            tmp_path / "out"]  # fmt: skip
    assert main([str(arg) for arg in argv]) == 2
    err = capsys.readouterr().err
    assert message in err and str(tmp_path / name) in err


def test_an_output_that_is_a_file(predict, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert predict("--point", 20, 30, model=tmp_path / "no-model") == 2
    assert "file in its place" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_the_hq_token_alone(predict, out, draw, tmp_path, checkpoint, capsys):
    config = SamConfig.tiny(64, hq=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), abstract_params(config)
    )
    save_checkpoint(tmp_path / "hq", Model(params, config))
    predictor = SamPredictor(load(tmp_path / "hq"))
    predictor.set_image(draw("photo.png"))
    found = []
    for flags in ([], ["--hq-token-only"]):
        assert predict("--point", 20, 30, "--save-logits", "--overwrite", *flags,
                       model=tmp_path / "hq") == 0  # fmt: skip
        found.append(np.load(out / "0_low_res.npy"))
        _, _, low_res = predictor.predict([[20, 30]], [1], hq_token_only=bool(flags))
        np.testing.assert_array_equal(found[-1], low_res)
    assert (found[0] != found[1]).any()
    assert predict("--point", 20, 30, "--hq-token-only", "--overwrite") == 2
    assert "hq_token_only" in capsys.readouterr().err
    assert predict("--hq-token-only", "--overwrite") == 2
    assert "--hq-token-only is for an object that is shown" in capsys.readouterr().err
