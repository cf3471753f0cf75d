"""`samjax convert`."""

import numpy as np
import pytest

from samjax.checkpoint import load
from samjax.cli import convert as command
from samjax.cli import main
from samjax.convert import save_pth
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
