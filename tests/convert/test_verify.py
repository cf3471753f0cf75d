"""The original and the converted model side by side."""

import re
import sys

import pytest
import torch

from reference import random_reference, trained_config, trained_reference
from samjax.convert import convert, from_state_dict, save_pth
from samjax.convert.verify import verify
from samjax.models import SamConfig


def test_random_weights_agree(tmp_path):
    torch.save(random_reference(SamConfig.tiny(), seed=0).state_dict(), tmp_path / "a.pth")
    report = convert(tmp_path / "a.pth", tmp_path / "a", verify=True).report
    assert report.image_embeddings.scale > 1
    assert report.largest_relative < 1e-5
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["difference", *report._fields]
    assert all(re.search(r"\d\.\d{3}e[-+]\d\d$", line) for line in lines[1:])


def test_the_trained_decoder_agrees(tmp_path):
    torch.save(trained_reference(trained_config(), seed=0).state_dict(), tmp_path / "a.pth")
    report = convert(tmp_path / "a.pth", tmp_path / "a", verify=True).report
    assert report.image_embeddings.relative < 1e-5
    assert report.low_res_masks.largest < 2e-3
    assert report.iou_predictions.largest < 1e-5


def test_half_precision_is_compared_in_float32(tmp_path):
    half = random_reference(SamConfig.tiny(), seed=1).half().state_dict()
    save_pth(tmp_path / "a.pth", from_state_dict(half))
    convert(tmp_path / "a.pth", tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b.pth", verify=True).report
    assert report.largest_relative < 1e-5


@pytest.mark.parametrize(
    "name", ["image_encoder.neck.0.weight", "mask_decoder.iou_token.weight",
             "prompt_encoder.not_a_point_embed.weight"],
)  # fmt: skip
def test_one_changed_weight_shows(tmp_path, name):
    state_dict = random_reference(SamConfig.tiny(), seed=2).state_dict()
    model = from_state_dict(state_dict)
    state_dict[name].flatten()[3] += 1.0
    torch.save(state_dict, tmp_path / "a.pth")
    assert verify(tmp_path / "a.pth", model).largest_relative > 1e-3


def test_nothing_to_verify_against(tmp_path):
    torch.save(random_reference(SamConfig.tiny(), seed=3).state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a")
    with pytest.raises(ValueError, match="no original to verify against"):
        convert(tmp_path / "a", tmp_path / "b", verify=True)
    assert not (tmp_path / "b").exists()


def test_a_model_of_another_size(tmp_path):
    torch.save(random_reference(SamConfig.tiny(), seed=4).state_dict(), tmp_path / "a.pth")
    other = from_state_dict(random_reference(SamConfig.tiny(512), seed=4).state_dict())
    with pytest.raises(ValueError, match=r"a\.pth does not fit the model's config"):
        verify(tmp_path / "a.pth", other)


def test_without_metas_package(tmp_path, monkeypatch):
    torch.save(random_reference(SamConfig.tiny(), seed=5).state_dict(), tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ImportError, match="pip install segment-anything"):
        convert(tmp_path / "a.pth", tmp_path / "a", verify=True)
