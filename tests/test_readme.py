"""What the README shows is run as it stands there, in a folder with a picture and a checkpoint."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samjax import SamConfig, inference
from samjax.checkpoint import Model
from samjax.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHECKPOINT = "sam_vit_b_01ec64.pth"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model under the checkpoint's name; the picture is as large as the clicks ask for."""
    from samjax.convert import save_pth

    folder = tmp_path_factory.mktemp("readme")
    config = SamConfig.tiny(128)
    save_pth(folder / CHECKPOINT, Model(inference.init_params(config), config))
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    (folder / "pictures").mkdir()
    Image.fromarray(pixels).save(folder / "picture.jpg")
    Image.fromarray(pixels).save(folder / "pictures" / "another.png")
    return folder


def test_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["masks"].shape == (3, 600, 800)
    assert isinstance(names["records"], list)
    assert names["predictions"].low_res_masks.shape[:3] == (1, 1, 4)
    assert "image_encoder" in names["gradient"]


def test_console(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "pip":
            extra = re.fullmatch(r"\.\[(\w+)\]", arguments[-1])[1]
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
            continue
        assert program == "samjax"
        assert main(arguments) == 0, capsys.readouterr().err
    assert (folder / "out/picture/overlay.png").is_file()
    assert (folder / "clicked/picture/0.png").is_file()
    assert (folder / "all/coco.json").is_file()
    assert (folder / "back.pth").is_file()


def test_links():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README):
        assert f"\n{target}:" in makefile
