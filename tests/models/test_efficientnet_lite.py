"""nano's image encoder against the public torch package, and nano as a whole."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks.nano_in_torch import TorchEncoder, features
from nano_reference import backbone_features, random_backbone
from quick import jit
from random_model import random_module
from samjax import SamAutomaticMaskGenerator, SamPredictor, inference
from samjax.checkpoint import Model, load, save_checkpoint
from samjax.convert.efficientnet_lite import backbone_from_state_dict
from samjax.models import EfficientNetLiteConfig, ImageEncoderEfficientNetLite, SamConfig
from samjax.models.architecture import abstract_params, buffer_names, config_from_params
from samjax.models.efficientnet_lite import PooledAttention, pooled, relu6, upsample_twice
from samjax.models.params import flatten, unflatten

VARIANTS = {
    0: EfficientNetLiteConfig.lite0,
    1: EfficientNetLiteConfig.lite1,
    2: EfficientNetLiteConfig.lite2,
}
SHALLOW = EfficientNetLiteConfig.lite0(
    image_size=128, stage_depths=(1, 2, 1, 1, 1, 1, 1), output_stride=16, detail_strides=(2, 4, 8)
)
SMALL = SamConfig.nano(image_encoder=SHALLOW, decoder_mlp_width=64)


def close(ours, theirs, relative):
    """Within `relative` of the largest value there is."""
    ours, theirs = np.asarray(ours), np.asarray(theirs.detach())
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


def pictures(size, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def to_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def small_model():
    return Model(inference.init_params(SMALL, 0), SMALL)


@pytest.mark.optimized
@pytest.mark.parametrize("number, size", [(0, 64), (0, 96), (1, 64), (2, 64)])
def test_features_at_random_weights(number, size):
    reference = random_backbone(number, size, seed=0)
    cfg = VARIANTS[number](image_size=size)
    images = pictures(size, batch=2)
    found = backbone_features(cfg, backbone_from_state_dict(reference.state_dict(), cfg), images)
    with torch.no_grad():
        expected = features(reference, to_torch(images))
    assert [x.shape[1] for x in found] == [size // s for s in (2, 4, 8, 16, 32)]
    assert tuple(x.shape[-1] for x in found[2:]) == cfg.feature_widths
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0.5
        close(np.moveaxis(ours, -1, 1), theirs, 1e-5)


@pytest.mark.parametrize("number", VARIANTS)
def test_as_many_parameters_as_the_public_package(number):
    cfg = VARIANTS[number](image_size=64)
    config = SamConfig.nano(image_encoder=cfg)
    prefix = "image_encoder.backbone."
    leaves = {n: x for n, x in flatten(abstract_params(config)).items() if n.startswith(prefix)}
    constants = {name for name in buffer_names(config) if name.startswith(prefix)}
    assert {name.rsplit(".")[-1] for name in constants} == {"mean", "var"}
    reference = random_backbone(number, 64, seed=0)
    head = [reference._conv_head, reference._bn1, reference._fc]
    expected = sum(p.numel() for p in reference.parameters())
    expected -= sum(p.numel() for module in head for p in module.parameters())
    assert sum(x.size for n, x in leaves.items() if n not in constants) == expected


@pytest.mark.parametrize(
    "output_stride, detail_strides, neck_attention",
    [
        (16, (2, 4, 8), False),
        (8, (2, 4), True),
        pytest.param(4, (), False, marks=pytest.mark.slow),
        pytest.param(32, (4,), False, marks=pytest.mark.slow),
    ],
)
def test_the_whole_encoder_and_its_gradients(output_stride, detail_strides, neck_attention):
    reference = random_backbone(0, 64, seed=1)
    cfg = EfficientNetLiteConfig.lite0(
        image_size=64, output_stride=output_stride, out_channels=32, neck_depth=2,
        neck_mlp_width=48, detail_strides=detail_strides, neck_attention=neck_attention,
    )  # fmt: skip
    backbone = backbone_from_state_dict(reference.state_dict(), cfg)
    graphdef, params = random_module(ImageEncoderEfficientNetLite, cfg)
    params["backbone"] = backbone
    for i, detail in params["neck"].get("details", {}).items():
        assert not detail["kernel"].any()
        detail["kernel"] = 0.1 * jax.random.normal(jax.random.key(i), detail["kernel"].shape)
    attentive = [block["attn"] for block in params["neck"]["blocks"].values() if "attn" in block]
    assert len(attentive) == (2 if neck_attention else 0)
    for i, attention in enumerate(attentive):
        assert not attention["out_proj"]["kernel"].any()
        for j, name in enumerate(("q_proj", "kv_proj", "out_proj")):
            shape = attention[name]["kernel"].shape
            key = jax.random.key(10 * i + j)
            attention[name]["kernel"] = 0.4 * jax.random.normal(key, shape)
    images = pictures(64, batch=2)
    model = TorchEncoder(params, cfg, 0).eval()
    weights = np.random.default_rng(2).normal(size=(2, *[cfg.grid_size] * 2, 32))
    weights = weights.astype(np.float32)

    def loss(params, images):
        embeddings = nnx.merge(graphdef, params)(images)
        return (embeddings * weights).sum(), embeddings

    (gradients, image_gradient), ours = jit(jax.grad(loss, (0, 1), has_aux=True))(params, images)
    inputs = to_torch(images).requires_grad_()
    theirs = model(inputs)
    (theirs * to_torch(weights)).sum().backward()
    close(np.moveaxis(ours, -1, 1), theirs, 1e-5)
    close(np.moveaxis(image_gradient, -1, 1), inputs.grad, 1e-4)
    expected = {
        name: p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in model.backbone.named_parameters()
    }
    statistics = {name: x for name, x in model.backbone.named_buffers()}
    expected = flatten(backbone_from_state_dict(expected | statistics, cfg))
    found = flatten(gradients["backbone"])
    for name, gradient in expected.items():
        if not name.endswith((".mean", ".var")):
            close(found[name], torch.from_numpy(np.array(gradient)), 1e-4)
    for i in range(len(attentive)):
        for name in ("q_proj", "kv_proj", "out_proj"):
            theirs = model.blocks[i].attn.get_submodule(name).weight.grad
            close(gradients["neck"]["blocks"][i]["attn"][name]["kernel"].T, theirs, 1e-4)


def test_attention_of_one_place_is_what_it_says():
    """By hand: a place's weights are the softmax of its products with the means of 4x4 places."""
    graphdef, params = random_module(functools.partial(PooledAttention, dtype="float32"), 8)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    x = rng.normal(size=(1, 8, 12, 8)).astype(np.float32)
    found = nnx.merge(graphdef, params)(jnp.asarray(x))

    def linear(layer, y):
        return y @ layer["kernel"] + layer["bias"]

    centred = x - x.mean(axis=-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    y = (y * params["norm"]["scale"] + params["norm"]["bias"])[0]
    means = [y[i : i + 4, j : j + 4].mean(axis=(0, 1)) for i in (0, 4) for j in (0, 4, 8)]
    k, v = np.split(linear(params["kv_proj"], np.stack(means)), 2, axis=-1)
    q = linear(params["q_proj"], y[5, 7])
    context = []
    for head in range(4):
        channels = slice(2 * head, 2 * head + 2)
        weights = np.exp(k[:, channels] @ q[channels] / np.sqrt(2))
        context.append(weights / weights.sum() @ v[:, channels])
    expected = linear(params["out_proj"], np.concatenate(context))
    np.testing.assert_allclose(found[0, 5, 7], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side, blocks", [(8, 2), (6, 2), (2, 1), (5, 5), (1, 1)])
def test_means_of_as_many_places_as_fit(side, blocks):
    x = np.random.default_rng(0).normal(size=(2, side, 4, 3)).astype(np.float32)
    found = pooled(jnp.asarray(x))
    assert found.shape == (2, blocks, 1, 3)
    size = side // blocks
    np.testing.assert_allclose(found[:, 0, 0], x[:, :size].mean(axis=(1, 2)), atol=1e-6)


def test_the_gradient_of_relu6_is_that_of_torch():
    x = np.array([-1.0, 0.0, 1e-7, 3.0, 6.0, 7.0], np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.relu6(theirs).sum().backward()
    assert theirs.grad is not None
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(x), theirs.grad)
    np.testing.assert_array_equal(relu6(jnp.asarray(x)), np.clip(x, 0, 6))


def test_upsampling_is_bilinear():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = torch.nn.functional.interpolate(to_torch(x), scale_factor=2, mode="bilinear")
    close(np.moveaxis(jax.jit(upsample_twice)(x), -1, 1), expected, 1e-6)


def test_the_embedding_starts_small(small_model):
    embeddings = inference.encode_images(small_model.params, pictures(128), config=SMALL)
    np.testing.assert_allclose(np.asarray(embeddings).std(axis=-1), 0.1, rtol=0.01)


@pytest.mark.parametrize("compiler", [jit, pytest.param(lambda f: f, marks=pytest.mark.slow)])
def test_compiled_or_not_alone_or_in_a_batch(small_model, compiler):
    images = pictures(128, batch=3)
    batch = inference.encode_images(small_model.params, images, config=SMALL)
    encoder = inference.bind(SMALL, small_model.params).image_encoder
    alone = compiler(encoder)(jnp.asarray(images[1:2]))
    largest = np.abs(batch).max()
    np.testing.assert_allclose(alone, batch[1:2], rtol=0, atol=1e-5 * largest)


def test_bfloat16(small_model):
    images = pictures(128)
    exact = inference.encode_images(small_model.params, images, config=SMALL)
    config = SMALL.replace(dtype="bfloat16")
    rounded = inference.encode_images(small_model.params, images, config=config)
    assert rounded.dtype == jnp.float32
    error = np.asarray(rounded - exact)
    assert 0 < error.std() < 0.05 * np.asarray(exact).std()


def test_it_compiles_for_every_platform():
    params = abstract_params(SMALL)
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), "float32")

    def encode(params, images):
        return inference.bind(SMALL, params).image_encoder(images)

    exported = jax.export.export(jax.jit(encode), platforms=["cpu", "cuda", "tpu"])(params, images)
    assert exported.out_avals[0].shape == (1, 8, 8, 256)


CONFIGS = {
    "nano": SamConfig.nano(),
    "lite1": SamConfig.nano(image_encoder=EfficientNetLiteConfig.lite1()),
    "lite2, stride 16": SamConfig.nano(
        image_encoder=EfficientNetLiteConfig.lite2(image_size=1024, output_stride=16, neck_depth=1)
    ),
    "stride 4, another neck": SamConfig.nano(
        image_encoder=EfficientNetLiteConfig(
            image_size=256, output_stride=4, out_channels=64, neck_mlp_width=96
        )
    ),
    "stages of its own, stride 32": SamConfig.nano(
        image_encoder=EfficientNetLiteConfig(
            image_size=2048, stage_depths=(2, 1, 1, 1, 1, 1, 2),
            stage_widths=(8, 8, 16, 16, 16, 24, 24), stem_width=8, output_stride=32,
        ),
        num_multimask_outputs=1,
    ),
    "one fine feature": SamConfig.nano(
        image_encoder=EfficientNetLiteConfig(
            image_size=1024, output_stride=16, detail_strides=(4,)
        )
    ),
    "attention in the neck": SamConfig.nano(
        image_encoder=EfficientNetLiteConfig(
            image_size=1024, output_stride=16, neck_attention=True, neck_depth=1
        )
    ),
    "no fine features": SamConfig.nano(image_encoder=EfficientNetLiteConfig.lite1()),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config_comes_back_from_shapes_and_from_json(name):
    config = CONFIGS[name]
    assert config_from_params(abstract_params(config)) == config
    assert SamConfig.from_dict(config.to_dict()) == config


def test_shapes_do_not_show_the_input_size():
    config = SamConfig.nano(512)
    assert (config.grid_size, config.low_res_size) == (32, 128)
    found = config_from_params(abstract_params(config))
    assert found == SamConfig.nano(1024)
    assert (found.grid_size, found.low_res_size) == (64, 256)


def test_dicts_know_their_kind():
    values = SamConfig.vit_b().to_dict()
    assert values["image_encoder"].pop("kind") == "vit"
    assert SamConfig.from_dict(values) == SamConfig.vit_b()
    values = SamConfig.nano().to_dict()
    assert values["image_encoder"]["kind"] == "efficientnet_lite"
    values["image_encoder"]["kind"] = "hiera"
    with pytest.raises(
        ValueError, match=r"kind 'hiera'.*\['vit', 'tiny_vit', 'efficientnet_lite'\]"
    ):
        SamConfig.from_dict(values)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image_size=500), r"image_size is 500.*coarsest stride \(32\)"),
        (dict(output_stride=2), "output_stride is 2; use 4, 8, 16 or 32"),
        (dict(stage_depths=(1, 2, 3)), r"stage_depths is \(1, 2, 3\).*7 numbers"),
        (dict(stage_widths=(16, 24, 40, 80, 0, 192, 320)), "stage_widths is .*at least 1"),
        (dict(detail_strides=(1,)), r"detail_strides is \(1,\); with output_stride 8 .*\[2, 4\]"),
        (dict(output_stride=4, detail_strides=(4,)), r"detail_strides is \(4,\).*\[2\]"),
        (
            dict(neck_attention=True, out_channels=34),
            r"out_channels is 34.*heads of neck_attention \(4\)",
        ),
        (dict(neck_depth=0), "neck_depth is 0; it has to be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetLiteConfig(**changes)


@pytest.mark.parametrize(
    "path, shape, message",
    [
        ("backbone.stem.kernel", (3, 3, 1, 32), r"stem\.kernel has shape \(3, 3, 1, 32\)"),
        ("neck.laterals.1.kernel", (64, 256), r"laterals\.1\.kernel has shape \(64, 256\).*320"),
        ("neck.blocks.0.mlp.lin1.kernel", (64, 256), r"lin1\.kernel has .*embed_dim 256"),
        ("backbone.stages.1.0.project.kernel", None, r"stages\.1\.0\.project\.kernel is missing"),
    ],
)
def test_contradicting_shapes_are_named(path, shape, message):
    leaves = flatten(abstract_params(SamConfig.nano()))
    del leaves[f"image_encoder.{path}"]
    if shape:
        leaves[f"image_encoder.{path}"] = jax.ShapeDtypeStruct(shape, "float32")
    with pytest.raises(ValueError, match=message):
        config_from_params(unflatten(leaves))


def test_a_checkpoint_keeps_everything(small_model, tmp_path):
    save_checkpoint(tmp_path / "nano", small_model)
    read = load(tmp_path / "nano")
    assert read.config == SMALL
    before, after = flatten(small_model.params), flatten(read.params)
    assert list(before) == list(after)
    for name, x in before.items():
        np.testing.assert_array_equal(x, after[name], err_msg=name)
    half = load(tmp_path / "nano", dtype="bfloat16").params["image_encoder"]["backbone"]
    assert half["stem_norm"]["scale"].dtype == jnp.bfloat16
    assert half["stem_norm"]["var"].dtype == jnp.float32


def test_the_predictor_and_the_generator_run(small_model):
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    predictor = SamPredictor(small_model)
    predictor.set_image(image)
    assert predictor.features.shape == (1, 8, 8, 256)
    masks, ious, low_res = predictor.predict(np.array([[20.0, 30.0]]), np.array([1]))
    assert (masks.shape, ious.shape, low_res.shape) == ((3, 40, 52), (3,), (3, 32, 32))
    masks, *_ = predictor.predict(
        box=np.array([5.0, 5, 30, 30]), mask_input=low_res[:1], multimask_output=False
    )
    assert masks.shape == (1, 40, 52)
    generator = SamAutomaticMaskGenerator(
        small_model, points_per_side=3, pred_iou_thresh=-100.0, stability_score_thresh=0.0
    )
    records = generator.generate(image)
    assert records and all(r["segmentation"].shape == (40, 52) for r in records)
