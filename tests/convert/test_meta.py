"""Meta's names: every array has its place, and the way there and back keeps every bit."""

import numpy as np
import pytest
import torch

import samjax.checkpoint
from reference import random_reference, trained_config, trained_reference
from samjax.convert import convert, from_state_dict, load_pth, save_pth, to_state_dict
from samjax.convert.key_maps.meta import META
from samjax.convert.reference import build_reference
from samjax.models import ImageEncoderViTConfig, SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten

ODD = SamConfig(
    image_encoder=ImageEncoderViTConfig(
        image_size=168, patch_size=14, width=48, depth=3, num_heads=3, mlp_width=100,
        out_channels=16, window_size=7, global_layers=(0,),
    ),
    mask_channels=8, decoder_depth=1, decoder_mlp_width=24, num_multimask_outputs=2,
    iou_head_depth=2, iou_head_width=40, attention_downsample_rate=1,
)  # fmt: skip
CONFIGS = {"tiny": SamConfig.tiny(), "odd": ODD, "windows only": trained_config(512)}


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def assert_same_bits(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(bits(found[name]), bits(tensor), err_msg=name)


@pytest.mark.parametrize("make", [SamConfig.vit_b, SamConfig.vit_l, SamConfig.vit_h, lambda: ODD])
def test_the_table_covers_every_array_once(make):
    names = list(flatten(abstract_params(make())))
    matches = [META.find_target(name) for name in names]
    assert None not in matches
    sources = [match.source for match in matches]
    assert len(set(sources)) == len(names)
    assert [META.find_source(source).target for source in sources] == names


@pytest.mark.parametrize("name", CONFIGS)
def test_names_shapes_and_order_are_metas(name):
    reference = build_reference(CONFIGS[name]).state_dict()
    model = from_state_dict(reference)
    assert model.config == CONFIGS[name]
    found = to_state_dict(model)
    assert list(found) == list(reference)
    assert [x.shape for x in found.values()] == [tuple(x.shape) for x in reference.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_meta_to_orbax_to_meta_is_bit_identical(tmp_path, name, dtype):
    expected = random_reference(CONFIGS[name], seed=1).to(dtype).state_dict()
    torch.save(expected, tmp_path / "source.pth")
    first = convert(tmp_path / "source.pth", tmp_path / "orbax")
    second = convert(tmp_path / "orbax", tmp_path / "target.pth")
    assert (first.format, second.format) == ("orbax", "meta")
    assert first.model.config == second.model.config == CONFIGS[name]
    found = torch.load(tmp_path / "target.pth", weights_only=True)
    assert_same_bits(found, expected)


def test_types_may_be_mixed_and_every_bit_pattern_survives(tmp_path):
    expected = random_reference(SamConfig.tiny(), seed=2).state_dict()
    name = "mask_decoder.transformer.layers.0.self_attn.q_proj.weight"
    patterns = torch.arange(expected[name].numel(), dtype=torch.int32).to(torch.int16) * 61 + 3
    expected[name] = patterns.view(torch.bfloat16).nan_to_num().reshape(expected[name].shape)
    expected["image_encoder.pos_embed"] = expected["image_encoder.pos_embed"].half()
    expected["mask_decoder.iou_token.weight"].fill_(-0.0)
    torch.save(expected, tmp_path / "source.pth")
    convert(tmp_path / "source.pth", tmp_path / "orbax")
    convert(tmp_path / "orbax", tmp_path / "target.pth")
    assert_same_bits(torch.load(tmp_path / "target.pth", weights_only=True), expected)


def test_vit_b_at_full_size(tmp_path):
    expected = random_reference(SamConfig.vit_b(), seed=3).state_dict()
    torch.save(expected, tmp_path / "vit_b.pth")
    conversion = convert(tmp_path / "vit_b.pth", tmp_path / "vit_b")
    assert conversion.model.config == SamConfig.vit_b()
    assert conversion.model.num_parameters == sum(x.numel() for x in expected.values())
    convert(tmp_path / "vit_b", tmp_path / "again.pth")
    assert_same_bits(torch.load(tmp_path / "again.pth", weights_only=True, mmap=True), expected)


def test_layouts():
    """Layers whose names and shapes would also fit when they are transposed wrongly."""
    reference = random_reference(SamConfig.tiny(), seed=4)
    params = from_state_dict(reference.state_dict()).params
    linear = reference.image_encoder.blocks[1].attn.proj.weight
    kernel = params["image_encoder"]["blocks"][1]["attn"]["proj"]["kernel"]
    np.testing.assert_array_equal(kernel, linear.T)
    conv = reference.image_encoder.neck[2].weight
    kernel = params["image_encoder"]["neck"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 2, 5, 7], conv[7, 5, 0, 2])
    transposed = reference.mask_decoder.output_upscaling[0].weight
    kernel = params["mask_decoder"]["output_upscaling"]["upscale1"]["kernel"]
    np.testing.assert_array_equal(kernel[3, 0, 1, 5], transposed[3, 5, 0, 1])


def test_numpy_arrays_serve_as_well_and_are_copied():
    arrays = {
        k: v.numpy() for k, v in random_reference(SamConfig.tiny(), seed=5).state_dict().items()
    }
    model = from_state_dict(arrays)
    arrays["mask_decoder.iou_token.weight"] += 1
    changed = to_state_dict(model)["mask_decoder.iou_token.weight"]
    np.testing.assert_array_equal(changed + 1, arrays["mask_decoder.iou_token.weight"])


def test_the_reference_takes_what_save_pth_writes(tmp_path):
    source = trained_reference(trained_config(), seed=6)
    save_pth(tmp_path / "model.pth", from_state_dict(source.state_dict()))
    target = build_reference(trained_config())
    target.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert_same_bits(target.state_dict(), source.state_dict())


def test_load_and_convert_read_the_same(tmp_path):
    torch.save(random_reference(ODD, seed=7).state_dict(), tmp_path / "model.bin")
    by_load = samjax.checkpoint.load(tmp_path / "model.bin")
    by_name = load_pth(tmp_path / "model.bin")
    assert by_load.config == by_name.config
    for name, array in flatten(by_load.params).items():
        np.testing.assert_array_equal(array, flatten(by_name.params)[name])


def test_the_flag_decides_where_the_name_does_not(tmp_path):
    model = from_state_dict(random_reference(SamConfig.tiny(), seed=8).state_dict())
    save_pth(tmp_path / "a.pth", model)
    assert convert(tmp_path / "a.pth", tmp_path / "b.pth", to="orbax").format == "orbax"
    assert (tmp_path / "b.pth").is_dir()
    assert convert(tmp_path / "b.pth", tmp_path / "c", to="meta").format == "meta"
    assert (tmp_path / "c").is_file()
    with pytest.raises(ValueError, match="'onnx'; use one of 'meta', 'huggingface'"):
        convert(tmp_path / "a.pth", tmp_path / "d", to="onnx")


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_build_reference_has_the_sizes_of_the_config(name):
    config = CONFIGS[name]
    reference = build_reference(config)
    encoder = reference.image_encoder
    assert encoder.img_size == config.image_size
    assert [block.window_size == 0 for block in encoder.blocks] == [
        i in config.image_encoder.global_layers for i in range(config.image_encoder.depth)
    ]
    assert encoder.blocks[0].mlp.lin1.out_features == config.image_encoder.mlp_width
    assert not reference.training


def test_random_reference_leaves_nothing_constant():
    state_dict = random_reference(SamConfig.tiny(), seed=9).state_dict()
    for name, tensor in state_dict.items():
        assert tensor.unique().numel() > 0.9 * tensor.numel(), name
    again = random_reference(SamConfig.tiny(), seed=9).state_dict()
    assert_same_bits(again, state_dict)
