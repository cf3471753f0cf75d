"""The documentation's snippets for SAM and MobileSAM, run as they stand in docs/ultralytics.md."""

import re
import shlex
from pathlib import Path

import pytest

import samjax
from samjax.cli import main
from samjax.ultralytics_style import Results

DOCUMENT = (Path(__file__).parents[2] / "docs/ultralytics.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "zidane.jpg", (720, 1280))
    write(tmp_path / "picture.jpg", (240, 320))
    for i in range(3):
        write(tmp_path / f"pictures/{i}.jpg", (240, 320), seed=i)
    return tmp_path


def run_snippets(folder):
    names = {}
    found = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    blocks = [block for block in found if "FastSAM" not in block]  # of which test_fast_sam.py is
    assert len(blocks) == 3 == len(found) - 1
    for block in blocks:
        exec(compile(block, "ultralytics.md", "exec"), names)
    assert isinstance(names["results"], list) and isinstance(names["result"], Results)
    assert {path.name for path in (folder / "out").iterdir()} >= {"0.jpg", "1.json", "2.jpg"}
    return names


def test_with_a_tiny_model(folder, downloads, tiny, capsys):
    downloads(tiny)
    run_snippets(folder)
    layers = r"sam_b\.pt: \d+ layers, [\d,]+ parameters, \d+\.\d MB, input 64 x 64"
    assert re.search(layers, capsys.readouterr().out)


@pytest.mark.slow
def test_with_nano(folder, downloads):
    downloads(samjax.load("nano"))
    run_snippets(folder)


def test_the_command_line(folder, monkeypatch, tiny, capsys):
    (command,) = re.findall(r"`(samjax predict [^`]+)`", DOCUMENT)
    samjax.save_checkpoint(folder / "sam_b.pt", tiny)
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    for run in ("predict", "predict2"):
        assert (folder / "runs/segment" / run / "picture/overlay.png").is_file()
        assert (folder / "runs/segment" / run / "coco.json").is_file()
