"""`samjax info`."""

import dataclasses

import jax
import numpy as np
import pytest

from samjax.checkpoint import Model
from samjax.cli import info, main
from samjax.models import EverythingThresholds, SamConfig
from samjax.models.architecture import abstract_params


def lines(text: str) -> dict[str, str]:
    return {line[:20].strip(): line[20:] for line in text.splitlines()}


def test_a_tiny_model(checkpoint, tiny_model, capsys):
    assert main(["info", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"loaded {checkpoint}: ViT of 2 blocks and width 32, 0.103 M parameters")
    found = lines(out)
    parts = [found[f"{part}"] for part in ("image encoder", "prompt encoder", "mask decoder")]
    assert found["architecture"] == "Segment Anything, ViT of its own size"
    assert found["attention"] == "windows of 5 patches; the whole picture in blocks 1"
    assert found["parameters"] == f"{tiny_model.num_parameters:,}"
    assert found["dtype"] == "float32; computes in float32"
    assert found["input size"] == "256 x 256 pixels"
    assert found["image embedding"] == "16 x 16 x 32"
    assert found["low-res masks"] == "64 x 64"
    assert found["everything"] == "Meta's thresholds"
    assert found["size in memory"] == "413 kB"
    disk = sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file())
    assert found["size on disk"] == f"{disk / 1000:.0f} kB"
    logits_mb = 64 * 4 * 64 * 64 * 4 / 1e6
    size, unit = found["decode 64 clicks"].split()
    assert unit == "MB" and logits_mb < float(size) < 100 * logits_mb
    assert found["encode 1 picture"].split()[1] in ("kB", "MB")
    assert parts[1] == "1,100"


def test_without_memory_nothing_is_compiled(checkpoint, capsys, monkeypatch):
    def compile_(model):
        raise AssertionError("compiled")

    monkeypatch.setattr(info, "working_memory", compile_)
    assert main(["info", str(checkpoint), "--no-memory"]) == 0
    assert "working memory" not in capsys.readouterr().out


def test_the_parts_add_up_for_a_published_size():
    shapes = abstract_params(SamConfig.vit_b())
    arrays = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    model = Model(arrays, SamConfig.vit_b())
    found = info.description(model)
    assert found["architecture"] == "Segment Anything, ViT-B"
    assert found["  attention"].endswith("blocks 2, 5, 8, 11")
    sizes = [int(v.replace(",", "")) for k, v in found.items() if k in (
        "  image encoder", "  prompt encoder", "  mask decoder")]  # fmt: skip
    assert len(sizes) == 3 and sum(sizes) == model.num_parameters == 93735728


class _Silent:
    """What a backend without memory analysis gives."""

    def __init__(self, answer):
        self.answer = answer

    def memory_analysis(self):
        if self.answer is NotImplementedError:
            raise NotImplementedError
        return self.answer


@pytest.mark.parametrize("answer", [None, NotImplementedError])
def test_a_compiler_that_says_nothing(answer, checkpoint, capsys, monkeypatch):
    assert info._bytes(_Silent(answer)) is None
    monkeypatch.setattr(info, "working_memory", lambda model: {"encode 1 picture": None})
    assert main(["info", str(checkpoint)]) == 0
    assert lines(capsys.readouterr().out)["encode 1 picture"] == "the compiler does not say"


def test_thresholds_that_a_model_carries(tiny_model):
    thresholds = EverythingThresholds(pred_iou_thresh=0.4, box_nms_thresh=1.0)
    found = info.description(dataclasses.replace(tiny_model, everything=thresholds))
    assert found["everything"] == "pred_iou_thresh=0.4 box_nms_thresh=1"


def test_types_are_counted(tiny_model):
    half = tiny_model.astype("bfloat16")
    assert info.description(half)["dtype"] == "bfloat16 and float32; computes in float32"
    assert jax.tree.leaves(half.params)[0].dtype == "bfloat16"
