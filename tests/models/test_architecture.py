"""The config read from the arrays' shapes: exact for every architecture, clear where it fails."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from samjax.models import ImageEncoderViTConfig, Sam, SamConfig
from samjax.models.architecture import abstract_params, buffer_names, config_from_params
from samjax.models.params import describe, differences, flatten, unflatten


def small(*, decoder: dict | None = None, **encoder) -> SamConfig:
    sizes = dict(image_size=256, width=32, depth=3, num_heads=2, mlp_width=64, out_channels=32,
                 window_size=5, global_layers=(1,))  # fmt: skip
    return SamConfig(image_encoder=ImageEncoderViTConfig(**sizes | encoder), **decoder or {})


CONFIGS = {
    "vit_b": SamConfig.vit_b(),
    "vit_l": SamConfig.vit_l(),
    "vit_h": SamConfig.vit_h(),
    "tiny": SamConfig.tiny(),
    "tiny 512": SamConfig.tiny(512),
    "patch 8": small(patch_size=8),
    "512 pixels, patch 32": small(image_size=512, patch_size=32),
    "an odd size": small(image_size=210, patch_size=14),
    "no global layer": small(global_layers=()),
    "global layers only": small(global_layers=(0, 1, 2), window_size=14),
    "windows larger than the grid": small(image_size=64, window_size=7),
    "windows of one patch": small(window_size=1),
    "one block": small(depth=1, global_layers=()),
    "one head": small(num_heads=1),
    "MLP narrower than the blocks": small(mlp_width=17),
    "wide neck": small(out_channels=512),
    "another decoder": small(
        decoder=dict(mask_channels=8, decoder_depth=3, decoder_mlp_width=40,
                     attention_downsample_rate=4, num_multimask_outputs=5, iou_head_depth=4,
                     iou_head_width=24)
    ),
    "no multimask outputs": small(decoder=dict(num_multimask_outputs=0)),
    "no downsampling in attention": small(decoder=dict(attention_downsample_rate=1)),
    "IoU head of one layer": small(decoder=dict(iou_head_depth=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config_comes_back_from_shapes(name):
    assert config_from_params(abstract_params(CONFIGS[name])) == CONFIGS[name]


def test_windows_of_the_whole_grid_are_read_as_global():
    config = small(image_size=80, window_size=5, global_layers=())
    encoder = config_from_params(abstract_params(config)).image_encoder
    assert encoder.global_layers == (0, 1, 2)
    assert [encoder.attention_size(i) for i in range(3)] == [5, 5, 5]


def test_arrays_and_tracers_serve_as_well():
    config = SamConfig.tiny()
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(config))
    assert config_from_params(params) == config

    def traced(params):
        assert config_from_params(params) == config
        return 0

    jax.jit(traced)(params)


def test_abstract_params_are_those_of_the_module():
    config = SamConfig.tiny()
    state = nnx.split(nnx.eval_shape(lambda: Sam(config, rngs=nnx.Rngs(0))))[1]
    module, abstract = flatten(nnx.to_pure_dict(state)), flatten(abstract_params(config))
    assert list(abstract) == list(module)
    for name, leaf in module.items():
        assert (abstract[name].shape, abstract[name].dtype) == (leaf.shape, leaf.dtype), name
    assert jax.tree.structure(abstract_params(config)) == jax.tree.structure(
        nnx.to_pure_dict(state)
    )


def test_abstract_params_are_the_callers_own():
    config = SamConfig.tiny()
    del abstract_params(config)["image_encoder"]
    assert "image_encoder" in abstract_params(config)


def test_only_the_positional_encoding_is_a_constant():
    assert buffer_names(SamConfig.tiny()) == {"prompt_encoder.pe_layer.gaussian_matrix"}


CONTRADICTIONS = {
    "patch_embed of another width": (
        "image_encoder.patch_embed.kernel", (16, 16, 3, 48),
        r"patch_embed\.kernel has shape \(16, 16, 3, 48\).*width 32",
    ),
    "pos_embed that is not square": (
        "image_encoder.pos_embed", (1, 16, 12, 32), r"pos_embed has shape .*\(1, grid, grid, width",
    ),
    "a flat pos_embed": (
        "image_encoder.pos_embed", (1, 256, 32), r"pos_embed has shape \(1, 256, 32\); expected",
    ),
    "an even number of relative positions": (
        "image_encoder.blocks.0.attn.rel_pos_h", (10, 16), r"blocks\.0.*10 rows; expected 31 .*odd",
    ),
    "two sizes of window": (
        "image_encoder.blocks.2.attn.rel_pos_h", (11, 16), r"blocks\.2.*11 rows.*31.*9, as other",
    ),
    "heads that do not divide the width": (
        "image_encoder.blocks.0.attn.rel_pos_h", (9, 7), r"rel_pos_h has shape \(9, 7\).*32",
    ),
    "a downsampling that is no number": (
        "mask_decoder.transformer.final_attn_token_to_image.q_proj.kernel", (32, 20),
        r"q_proj\.kernel has shape \(32, 20\).*embed_dim, which is 32",
    ),
    "mask tokens of another width": (
        "mask_decoder.mask_tokens", (4, 64), r"mask_tokens has shape \(4, 64\).*embed_dim 32",
    ),
    "an empty axis": ("mask_decoder.mask_tokens", (0, 32), r"mask_tokens has shape \(0, 32\)"),
    "a scalar": ("mask_decoder.mask_tokens", (), r"mask_tokens has shape \(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradicting_shapes_are_named(name):
    path, shape, message = CONTRADICTIONS[name]
    leaves = flatten(abstract_params(small()))
    leaves[path] = jax.ShapeDtypeStruct(shape, "float32")
    with pytest.raises(ValueError, match=message):
        config_from_params(unflatten(leaves))


@pytest.mark.parametrize(
    "path",
    [
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "mask_decoder.transformer.layers.0.mlp.lin1.kernel",
        "mask_decoder.mask_tokens",
    ],
)
def test_a_missing_array_is_named(path):
    leaves = flatten(abstract_params(small()))
    del leaves[path]
    with pytest.raises(ValueError, match=f"{path} is missing"):
        config_from_params(unflatten(leaves))


def test_a_gap_in_a_list_is_named():
    params = copy.deepcopy(abstract_params(small()))
    del params["image_encoder"]["blocks"][1]
    with pytest.raises(ValueError, match=r"image_encoder\.blocks .*0, 1, 2.*\[0, 2\]"):
        config_from_params(params)


def test_something_else_altogether():
    with pytest.raises(ValueError, match="image_encoder.pos_embed is missing"):
        config_from_params({"dense": {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}})


def test_flatten_and_unflatten_are_inverse():
    params = abstract_params(SamConfig.tiny())
    assert unflatten(flatten(params)) == params


def test_differences_are_complete_and_the_listing_is_capped():
    config = SamConfig.tiny()
    expected = flatten(abstract_params(config))
    found = flatten(
        abstract_params(
            dataclasses.replace(
                config,
                image_encoder=dataclasses.replace(config.image_encoder, depth=3),
                mask_channels=8,
            )
        )
    )
    del found["mask_decoder.iou_token"]
    groups = differences(found, expected)
    assert groups["missing"] == ["mask_decoder.iou_token"]
    assert len(groups["unexpected"]) == 14
    assert all(".blocks.2." in name for name in groups["unexpected"])
    assert (
        "prompt_encoder.mask_downscaling.conv1.bias: (2,), expected (4,)"
        in (groups["of the wrong shape"])
    )
    text = describe(groups)
    assert "14 unexpected:" in text and "... and 2 more" in text
