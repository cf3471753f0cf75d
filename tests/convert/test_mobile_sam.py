"""MobileSAM's names, with the integers of its batch norms, and the commands that read its files."""

import sys

import numpy as np
import pytest
import torch

import samjax
from reference import random_reference
from samjax.cli import main
from samjax.convert import convert, from_state_dict
from samjax.convert.key_maps.mobile_sam import MOBILE_SAM
from samjax.convert.reference import build_reference
from samjax.convert.verify import verify
from samjax.models import SamConfig, TinyViTConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten

SMALL = SamConfig.vit_t(
    image_encoder=TinyViTConfig(
        widths=(16, 24, 32, 320), depths=(1, 1, 1, 1), num_heads=(2, 1, 5), num_classes=7
    ),
    decoder_mlp_width=64,
)
COUNT = "image_encoder.layers.2.blocks.0.local_conv.bn.num_batches_tracked"


@pytest.fixture(scope="module")
def state_dict():
    return random_reference(SMALL, seed=0).state_dict()


def small(image_size):
    encoder = TinyViTConfig(
        image_size=image_size, widths=(16, 24, 32, 320), depths=(1, 1, 1, 1), num_heads=(2, 1, 5)
    )
    return SamConfig.vit_t(image_encoder=encoder, decoder_mlp_width=64)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def assert_same_bits(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        np.testing.assert_array_equal(bits(found[name]), bits(tensor), err_msg=name)


def test_the_table_covers_every_array_once():
    names = list(flatten(abstract_params(SamConfig.vit_t())))
    sources = [MOBILE_SAM.find_target(name).source for name in names]
    assert len(set(sources)) == len(names)
    assert [MOBILE_SAM.find_source(source).target for source in sources] == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back_keeps_every_bit(state_dict, tmp_path, dtype):
    expected = {n: x.to(dtype) if x.is_floating_point() else x for n, x in state_dict.items()}
    assert {x.dtype for x in expected.values()} == {dtype, torch.int64}
    torch.save(expected, tmp_path / "source.pt")
    first = convert(tmp_path / "source.pt", tmp_path / "orbax")
    second = convert(tmp_path / "orbax", tmp_path / "target.pt")
    assert (first.format, second.format) == ("orbax", "meta")
    assert first.model.config == second.model.config == SMALL
    assert_same_bits(torch.load(tmp_path / "target.pt", weights_only=True), expected)


def test_the_published_size(tmp_path):
    """As the package builds it: with the published file's names, shapes, order and types."""
    from mobile_sam import sam_model_registry

    reference = sam_model_registry["vit_t"]()
    expected = reference.state_dict()
    torch.save(expected, tmp_path / "mobile_sam.pt")
    conversion = convert(tmp_path / "mobile_sam.pt", tmp_path / "mobile_sam")
    assert conversion.model.config == SamConfig.vit_t()
    convert(tmp_path / "mobile_sam", tmp_path / "again.pt")
    found = torch.load(tmp_path / "again.pt", weights_only=True)
    assert_same_bits(found, expected)
    reference.load_state_dict(found)


@pytest.mark.parametrize(
    "name, value, message",
    [
        (COUNT, torch.tensor(2**24 + 1), "16777217, expected a count of at most"),
        (COUNT, torch.tensor(3.0), "float32 of shape .*expected one int64"),
        (COUNT, torch.tensor([3]), "has type int64; expected float32"),
        (COUNT, None, rf"1 missing:\n  {COUNT}"),
        ("image_encoder.head.bias", torch.ones(8), r"head\.bias: \(8,\), expected \(7,\)"),
        ("image_encoder.layers.0.blocks.0.attn.qkv.bias", torch.ones(8), "1 unexpected"),
    ],
)
def test_what_does_not_fit_is_named(state_dict, name, value, message):
    changed = {n: x for n, x in state_dict.items() if n != name}
    if value is not None:
        changed[name] = value
    with pytest.raises(ValueError, match=message) as error:
        from_state_dict(changed)
    assert "does not fit Segment Anything in MobileSAM's names" in str(error.value)


def test_commands(tmp_path, capsys):
    """No flag says that it is MobileSAM."""
    source, target = tmp_path / "mobile_sam.pt", tmp_path / "mobile_sam"
    torch.save(random_reference(SamConfig.vit_t(), seed=0).state_dict(), source)
    assert main(["convert", str(source), str(target)]) == 0
    assert "MobileSAM, 10.1 M parameters, float32" in capsys.readouterr().out
    assert main(["info", str(target), "--no-memory"]) == 0
    lines = capsys.readouterr().out
    assert "Segment Anything, MobileSAM" in lines
    assert "TinyViT, 12 blocks in 4 stages of widths 64, 128, 160, 320" in lines
    assert "windows of 7, 14, 7 places and 4, 5, 10 heads in stages 1, 2, 3" in lines
    assert samjax.load(source).config == samjax.load(target).config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same small model, once as it is and once with another bias of distance."""
    folder = tmp_path_factory.mktemp("files")
    state_dict = random_reference(small(1024), seed=3).state_dict()
    torch.save(state_dict, folder / "a.pt")
    state_dict["image_encoder.layers.2.blocks.0.attn.attention_biases"][0, 3] += 1.0
    torch.save(state_dict, folder / "b.pt")
    return folder


def test_verify(files, tmp_path):
    report = convert(files / "a.pt", tmp_path / "a", verify=True).report
    assert report.image_embeddings.scale > 1
    assert report.largest_relative < 1e-5


def test_one_changed_weight_shows(files):
    assert verify(files / "b.pt", samjax.load(files / "a.pt")).largest_relative > 1e-4


def test_without_the_package(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mobile_sam", None)
    with pytest.raises(ImportError, match="pip install mobilesam-mirror timm"):
        convert(files / "a.pt", tmp_path / "a", verify=True)


@pytest.mark.parametrize("widths", [(64, 128, 160, 300), (64, 128, 320, 320)])
def test_what_the_package_cannot_build(widths):
    encoder = TinyViTConfig(widths=widths, num_heads=(4, 5, 10))
    with pytest.raises(ValueError, match="there is no original to compare"):
        build_reference(SamConfig.vit_t(image_encoder=encoder))
