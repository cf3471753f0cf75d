"""HQ-SAM's names: known from the tensors, every array in its place, every bit kept."""

import numpy as np
import pytest
import torch

from reference import random_reference
from samjax.checkpoint import load
from samjax.cli.common import summary
from samjax.convert import convert, from_state_dict, to_state_dict
from samjax.convert.key_maps.hq import HQ, HQ_ROWS, HQ_TINY_VIT
from samjax.convert.reference import build_reference
from samjax.convert.verify import verify
from samjax.models import ImageEncoderViTConfig, SamConfig, TinyViTConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten

ODD = SamConfig(
    image_encoder=ImageEncoderViTConfig(
        image_size=168, patch_size=14, width=48, depth=3, num_heads=3, mlp_width=100,
        out_channels=16, window_size=7, global_layers=(1,),
    ),
    mask_channels=8, decoder_depth=1, decoder_mlp_width=24, num_multimask_outputs=2,
    iou_head_depth=2, iou_head_width=40, attention_downsample_rate=1, hq=True,
)  # fmt: skip
TINY_VIT = SamConfig.vit_t(
    image_encoder=TinyViTConfig(
        widths=(16, 24, 32, 320), depths=(1, 2, 1, 1), num_heads=(2, 1, 5), num_classes=7
    ),
    decoder_depth=1, decoder_mlp_width=64, hq=True,
)  # fmt: skip
CONFIGS = {"tiny": SamConfig.tiny(hq=True), "odd": ODD, "TinyViT": TINY_VIT}


@pytest.mark.parametrize(
    "make, table",
    [(SamConfig.vit_b, HQ), (SamConfig.vit_l, HQ), (SamConfig.vit_h, HQ),
     (SamConfig.vit_t, HQ_TINY_VIT)],
)  # fmt: skip
def test_the_table_covers_every_array_once(make, table):
    names = list(flatten(abstract_params(make(hq=True))))
    matches = [table.find_target(name) for name in names]
    assert None not in matches
    sources = [match.source for match in matches]
    assert len(set(sources)) == len(names)
    assert [table.find_source(source).target for source in sources] == names


@pytest.mark.parametrize("name", CONFIGS)
def test_names_shapes_and_order_are_the_references(name):
    reference = build_reference(CONFIGS[name]).state_dict()
    assert type(build_reference(CONFIGS[name])).__module__.startswith("segment_anything_hq")
    model = from_state_dict(reference)
    assert model.config == CONFIGS[name]
    found = to_state_dict(model)
    assert list(found) == list(reference)
    assert [x.shape for x in found.values()] == [tuple(x.shape) for x in reference.values()]


def test_names_shapes_and_order_at_a_published_size():
    with torch.device("meta"):
        reference = build_reference(SamConfig.vit_l(hq=True)).state_dict()
    leaves = flatten(abstract_params(SamConfig.vit_l(hq=True)))
    matches = sorted((HQ.find_target(name) for name in leaves), key=HQ.order)
    assert [match.source for match in matches] == list(reference)
    for match in matches:
        ours = np.broadcast_to(np.float32(0), leaves[match.target].shape)
        shape = HQ.rows[match.row].transform.inverse(ours).shape
        assert shape == tuple(reference[match.source].shape), match.source


def test_the_published_tiny_vit():
    """As the package builds it, `sam_hq_vit_tiny.pth`'s reader."""
    from segment_anything_hq import sam_model_registry

    expected = sam_model_registry["vit_tiny"]()
    built = build_reference(SamConfig.vit_t(hq=True))
    assert type(built.image_encoder) is type(expected.image_encoder)
    model = from_state_dict(expected.state_dict())
    assert model.config == SamConfig.vit_t(hq=True)
    assert model.num_parameters == sum(x.numel() for x in expected.state_dict().values())
    assert summary(model) == "HQ TinyViT, 10.6 M parameters, float32"
    found = to_state_dict(model)
    assert list(found) == list(expected.state_dict()) == list(built.state_dict())
    for name, tensor in expected.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_bit_identical(tmp_path, name, dtype):
    expected = random_reference(CONFIGS[name], seed=1).to(dtype).state_dict()
    torch.save(expected, tmp_path / "source.pth")
    first = convert(tmp_path / "source.pth", tmp_path / "orbax")
    assert first.model.config == load(tmp_path / "orbax").config == CONFIGS[name]
    convert(tmp_path / "orbax", tmp_path / "target.pth")
    found = torch.load(tmp_path / "target.pth", weights_only=True)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        both = (x.reshape(-1).view(torch.uint8) for x in (found[key], tensor))
        assert torch.equal(*both), key


def test_verify(tmp_path):
    reference = random_reference(CONFIGS["tiny"], seed=2)
    torch.save(reference.state_dict(), tmp_path / "hq.pth")
    model = load(tmp_path / "hq.pth")
    report = verify(tmp_path / "hq.pth", model)
    assert report.largest_relative < 1e-5 and report.low_res_masks.scale > 0.1
    fusion = model.params["mask_decoder"]["hq"]["fusion"]["upscale_early"]["upscale2"]
    fusion["kernel"] = 1.1 * fusion["kernel"]
    assert verify(tmp_path / "hq.pth", model).low_res_masks.relative > 1e-3


@pytest.mark.parametrize("config", ["tiny", "TinyViT"])
@pytest.mark.parametrize("row", [0, 1, 7, -1])
def test_a_missing_array_is_named(row, config):
    state_dict = random_reference(CONFIGS[config], seed=3).state_dict()
    name = HQ_ROWS[row].source.replace("{i}", "1")
    del state_dict[name]
    with pytest.raises(ValueError, match="HQ-SAM's (TinyViT's )?names") as error:
        from_state_dict(state_dict)
    assert f"1 missing:\n  {name}" in str(error.value)


@pytest.mark.slow
def test_verify_at_the_published_size(tmp_path):
    torch.save(random_reference(SamConfig.vit_t(hq=True), seed=2).state_dict(), tmp_path / "hq.pth")
    report = convert(tmp_path / "hq.pth", tmp_path / "hq", verify=True).report
    assert report.largest_relative < 1e-5 and report.low_res_masks.scale > 0.1


def test_early_features_of_another_encoder_are_named():
    state_dict = random_reference(CONFIGS["tiny"], seed=4).state_dict()
    name = "mask_decoder.compress_vit_feat.0.weight"
    state_dict[name] = torch.cat([state_dict[name]] * 2)
    with pytest.raises(ValueError, match=r"compress_vit_feat\.0\.weight: \(64, .*expected \(32, "):
        from_state_dict(state_dict)


def test_a_plain_checkpoint_stays_plain():
    model = from_state_dict(random_reference(SamConfig.tiny(), seed=5).state_dict())
    assert not model.config.hq and not any("hf_" in name for name in to_state_dict(model))


def test_it_is_called_what_it_is():
    config = SamConfig.vit_b(hq=True)
    from samjax import Model

    assert summary(Model(abstract_params(config), config)).startswith("HQ ViT-B, ")
