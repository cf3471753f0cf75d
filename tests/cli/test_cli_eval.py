"""`samjax eval`."""

import csv
import json

import numpy as np
import pytest

from samjax import SamPredictor
from samjax.cli import main
from samjax.datasets import open_coco
from samjax.evaluate import evaluate
from samjax.postprocess import coco_encode_rle, mask_to_rle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def data(draw, tmp_path):
    """Two pictures of 60 x 90 pixels with a thing each, and a third one that is missing."""
    draw("pictures/a.png", "pictures/b.png")
    content = {"images": [], "annotations": []}
    for i, name in enumerate("abc"):
        mask = np.zeros((60, 90), bool)
        mask[5:40, 10 + 20 * i : 45] = True
        content["images"].append({"id": i, "file_name": f"{name}.png", "height": 60, "width": 90})
        rle = coco_encode_rle(mask_to_rle(mask))
        content["annotations"].append({"id": i, "image_id": i, "segmentation": rle})
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def run(checkpoint, data, tmp_path):
    def command(*options, model=checkpoint, path=data):
        argv = ["eval", "--model", model, "--data", path, "--images", tmp_path / "pictures"]
        return main([str(arg) for arg in [*argv, *options]])

    return command


def test_table_and_files(run, data, tiny_model, tmp_path, capsys):
    assert run("--output", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    result = evaluate(SamPredictor(tiny_model), open_coco(data, tmp_path / "pictures"))
    lines = out.splitlines()
    assert lines[0].startswith("loaded ")
    assert lines[1] == f"2 things of 100 pixels and more in 2 pictures of {data}"
    assert lines[2:-2] == result.table().splitlines()
    assert lines[-2:] == [str(tmp_path / "out" / f"evaluation.{kind}") for kind in ("csv", "json")]
    assert "missing picture" in err and "c.png" in err
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 4
    for row, expected in zip(rows, result.rows(), strict=True):
        assert row["protocol"] == expected["protocol"]
        if expected["mean_iou"] is not None:
            assert float(row["mean_iou"]) == pytest.approx(expected["mean_iou"], abs=1e-6)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["things"] == 2


def test_fewer_pictures_and_larger_things(run, capsys):
    assert run("--max-pictures", 1) == 0
    assert "1 thing of 100 pixels and more in 1 picture of" in capsys.readouterr().out
    assert run("--min-area", 1000) == 0
    assert "1 thing of 1000 pixels and more in 1 picture of" in capsys.readouterr().out
    assert run("--min-area", 5000) == 2
    assert "no thing of 5000 pixels and more" in capsys.readouterr().err


def test_results_are_not_replaced_unasked(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    before = tmp_path / "out" / "evaluation.json"
    before.write_text("mine")
    assert run("--output", tmp_path / "out", model="no-model") == 2
    err = capsys.readouterr().err
    assert "evaluation.json is there already; --overwrite" in err
    assert before.read_text() == "mine"
    assert run("--output", tmp_path / "out", "--overwrite", "--max-pictures", 1) == 0
    assert json.loads(before.read_text())["pictures"] == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-pictures", 0], "--max-pictures has to be at least 1, not 0"),
        (["--min-area", -3], "--min-area has to be at least 1, not -3"),
        (["--images", "nowhere"], "no such folder of pictures: nowhere"),
        (["--data", "nowhere.json"], "there is no file or folder nowhere.json"),
        (["--max-pictures", "many"], "invalid int value"),
    ],
)
def test_bad_arguments_are_found_before_a_model_is_loaded(run, capsys, options, message):
    assert run(*options, model="no-model") == 2
    err = capsys.readouterr().err
    assert err.startswith("samjax: error: ") and message in err


def test_bad_files(run, data, tmp_path, capsys):
    (tmp_path / "text.json").write_text("hello")
    assert run(path=tmp_path / "text.json", model="no-model") == 2
    assert "text.json is no COCO instances file" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert run("--output", tmp_path / "file", model="no-model") == 2
    assert "file in its place" in capsys.readouterr().err
    assert run(model=tmp_path / "no-model") == 2
    assert "no-model" in capsys.readouterr().err
