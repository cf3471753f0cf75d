"""What the README shows is run as it stands there, in a folder with a picture and a checkpoint.

Only the number of training steps is cut, and the place of nano is taken by a tiny model.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yolo_reference
from PIL import Image

from samjax import SamConfig, checkpoint, inference
from samjax.checkpoint import NANO, Model, save_checkpoint
from samjax.cli import main
from samjax.models.yolo import YoloConfig
from small_runs import write_pictures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHECKPOINT = "sam_vit_b_01ec64.pth"


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model under the checkpoint's name; the picture is as large as the clicks ask for."""
    from samjax.convert import save_pth

    folder = tmp_path_factory.mktemp("readme")
    config = SamConfig.tiny(128, decoder_depth=1)
    model = Model(inference.init_params(config), config)
    save_pth(folder / CHECKPOINT, model)
    save_checkpoint(folder / "assets" / NANO, model)
    for name, task in (("yolov8n.pt", "detect"), ("FastSAM-s.pt", "segment")):
        sizes = dict(widths=(8, 8, 8, 8, 8), depths=(1, 1, 1, 1), prototype_width=8)
        reference = yolo_reference.build(YoloConfig(task=task, num_classes=1, **sizes))
        torch.save(reference.state_dict(), folder / name)
    write_pictures(folder / "cells")
    (folder / "cells/validation.json").write_bytes((folder / "cells/instances.json").read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    (folder / "pictures").mkdir()
    Image.fromarray(pixels).save(folder / "picture.jpg")
    Image.fromarray(pixels).save(folder / "pictures" / "another.png")
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(checkpoint, "ASSETS", folder / "assets")


def test_python():
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["masks"].shape == (3, 600, 800)
    assert isinstance(names["records"], list)
    assert names["done"].pictures == 1 and names["fast"].failures == []
    assert names["predictions"].low_res_masks.shape[:3] == (1, 1, 4)
    assert "image_encoder" in names["gradient"]
    assert np.isfinite(names["metrics"].loss)
    before, after = names["model"].params, names["tuned"]
    token = ("mask_decoder", "iou_token")
    assert not np.array_equal(before[token[0]][token[1]], after[token[0]][token[1]])


def test_console(folder, capsys):
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "pip":
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", arguments[-1])[1]
            assert extra is None or f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
            continue
        assert program == "samjax"
        if arguments[0] == "train":
            arguments += ["--steps", "2"]
        assert main(arguments) == 0, capsys.readouterr().err
    assert (folder / "labels/annotations.json").is_file() and (folder / "labels/0.txt").is_file()
    assert (folder / "out/picture/overlay.png").is_file()
    assert (folder / "clicked/picture/0.png").is_file()
    assert (folder / "all/coco.json").is_file()
    assert (folder / "segmented/coco.json").is_file()
    assert (folder / "back.pth").is_file()
    assert (folder / "runs/cells/curves.png").is_file()
    assert (folder / "trained/coco.json").is_file()


def test_from_labels_to_a_model(folder, capsys):
    """The recipe of docs/annotate.md, on true boxes."""
    (folder / "boxes.json").write_bytes((folder / "cells/instances.json").read_bytes())
    commands = "".join(blocks("console", (ROOT / "docs/annotate.md").read_text()))
    commands = commands.replace("--output labels", "--output recipe")
    commands = commands.replace("labels/annotations", "recipe/annotations")
    commands = commands.replace("runs/cells", "runs/recipe").replace("--steps 200", "--steps 2")
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert (folder / "recipe/annotations.json").is_file()
    assert (folder / "runs/recipe/model/samjax.json").is_file()


def test_links():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README):
        assert f"\n{target}:" in makefile
