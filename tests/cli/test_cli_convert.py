"""`samjax convert`."""

import dataclasses

import jax
import numpy as np
import pytest

from samjax.checkpoint import load, save_checkpoint
from samjax.cli import convert as command
from samjax.cli import main
from samjax.convert import save_pth
from samjax.models import EverythingThresholds
from samjax.models.params import flatten


@pytest.fixture(scope="module")
def pth(tmp_path_factory, tiny_model):
    path = tmp_path_factory.mktemp("pth") / "tiny.pth"
    save_pth(path, tiny_model)
    return path


def assert_equal(first, second):
    for name, array in flatten(first.params).items():
        np.testing.assert_array_equal(array, flatten(second.params)[name], err_msg=name)


def test_there_and_back(pth, tmp_path, tiny_model, capsys):
    assert main(["convert", str(pth), str(tmp_path / "orbax")]) == 0
    assert capsys.readouterr().out == (
        f"converted {pth} to {tmp_path / 'orbax'} (orbax): ViT of 2 blocks and width 32, "
        "0.103 M parameters, float32, 413 kB\n"
    )
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "b.bin"), "--to", "meta"]) == 0
    assert "(meta)" in capsys.readouterr().out
    assert_equal(load(tmp_path / "orbax"), tiny_model)
    assert_equal(load(tmp_path / "b.bin"), tiny_model)


def test_verify_prints_a_table(pth, tmp_path, capsys):
    assert main(["convert", str(pth), str(tmp_path / "orbax"), "--verify"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert table[0] == ["difference", "scale", "relative"]
    assert [row[0] for row in table[1:]] == [
        "image_embeddings", "low_res_masks", "iou_predictions"]  # fmt: skip
    assert all(float(row[3]) < 1e-4 for row in table[1:])


def test_verify_fails_when_the_models_differ(pth, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "VERIFY_LIMIT", -1.0)
    assert main(["convert", str(pth), str(tmp_path / "orbax"), "--verify"]) == 1
    assert "the models differ by more than" in capsys.readouterr().err


def test_a_target_that_exists(pth, tmp_path, capsys):
    argv = ["convert", str(pth), str(tmp_path / "orbax")]
    assert main(argv) == 0
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "content, message",
    [(None, "There is no"), (b"", "is an empty file"), (b"PK\x03\x04cut", "not copied to its end"),
     (b"GIF89a", "neither a checkpoint directory nor a torch file")],
)  # fmt: skip
def test_a_bad_checkpoint(tmp_path, capsys, content, message):
    source = tmp_path / "model.pth"
    if content is not None:
        source.write_bytes(content)
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 2
    err = capsys.readouterr().err
    assert message in err and str(source) in err
    assert not (tmp_path / "orbax").exists()


def test_a_folder_in_half_precision_with_thresholds(checkpoint, tmp_path, tiny_model, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ["--everything", "pred_iou_thresh=0.4", "box_nms_thresh=1"]
    assert main(["convert", str(checkpoint), str(first), "--dtype", "float16", *flags]) == 0
    assert "float16 and float32" in capsys.readouterr().out
    assert main(["convert", str(first), str(second), "--everything", "box_nms_thresh=0.5"]) == 0
    half = tiny_model.astype("float16")
    for path, nms in ((first, 1.0), (second, 0.5)):
        found = load(path)
        assert_equal(found, half)
        assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(half)]
        assert found.everything == EverythingThresholds(pred_iou_thresh=0.4, box_nms_thresh=nms)


def test_values_too_large_for_half_precision(tmp_path, tiny_model, capsys):
    params = jax.tree.map(lambda x: x, tiny_model.params)
    params["image_encoder"]["pos_embed"] += 1e5
    save_checkpoint(tmp_path / "large", dataclasses.replace(tiny_model, params=params))
    argv = ["convert", str(tmp_path / "large"), str(tmp_path / "half"), "--dtype"]
    assert main([*argv, "float16"]) == 2
    err = capsys.readouterr().err
    assert "float16 cannot hold" in err and "1 arrays:\n  image_encoder.pos_embed" in err
    assert not (tmp_path / "half").exists()
    assert main([*argv, "bfloat16"]) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--everything", "iou=0.4"], "a model carries no iou; this samjax knows pred_iou_thresh"),
        (["--everything", "pred_iou_thresh"], "'pred_iou_thresh' is not NAME=NUMBER"),
        (["--everything", "pred_iou_thresh=high"], "'pred_iou_thresh=high' is not NAME=NUMBER"),
        (["--everything", "pred_iou_thresh=nan"], "pred_iou_thresh is nan; it has to be a finite"),
        (["--everything", "pred_iou_thresh=0.4", "--to", "meta"], "carries no thresholds"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_bad_options(checkpoint, tmp_path, capsys, options, message):
    assert main(["convert", str(checkpoint), str(tmp_path / "new"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
