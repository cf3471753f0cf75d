"""MobileSAM's image encoder against the public torch package, at random weights."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from quick import jit
from random_model import abstract_module
from reference import random_reference
from samjax import inference
from samjax.checkpoint import Model, load, save_checkpoint
from samjax.convert import from_state_dict
from samjax.models import ImageEncoderTinyViT, SamConfig, TinyViTConfig
from samjax.models.architecture import abstract_params, buffer_names, config_from_params
from samjax.models.params import flatten, unflatten
from samjax.models.window_attention import attend_in_pieces, attend_whole, distance_bias
from samjax.train.config import TrainConfig
from samjax.train.gradients import Batch
from samjax.train.parameters import PARTS, init_lora, join_params, merge_lora, split_params
from samjax.train.step import init_state, train_step, trained_params

SIZE = 160
"""Grids of 20 and 10 places: windows of 7 stick out of both, and one of 14 is larger than all."""
ENCODER = TinyViTConfig(
    image_size=SIZE, widths=(16, 24, 32, 320), depths=(2, 1, 2, 1), num_heads=(2, 1, 5),
    num_classes=7,
)  # fmt: skip
SMALL = SamConfig.vit_t(image_encoder=ENCODER, decoder_mlp_width=64)


def close(ours, theirs, relative):
    """Within `relative` of the largest value there is."""
    ours, theirs = np.asarray(ours), np.asarray(theirs.detach())
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


def pictures(batch=2, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, size, size, 3)).astype(np.float32)


def channels_first(images):
    return torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy())


@pytest.fixture(scope="module")
def pair():
    reference = random_reference(SMALL, seed=1)
    model = from_state_dict(reference.state_dict())
    return reference, Model(model.params, SMALL)


@pytest.fixture(scope="module")
def encode():
    """One program for the tests: embeddings and what every stage hands on, of two pictures."""
    graphdef = nnx.split(abstract_module(ImageEncoderTinyViT, ENCODER))[0]

    @jit
    def encode(params, images):
        encoder = nnx.merge(graphdef, params)
        return encoder(images), encoder.features(images)

    return encode


def test_every_stage_and_the_embedding(pair, encode):
    reference, model = pair
    images = pictures()
    embeddings, features = encode(model.params["image_encoder"], images)
    x = reference.image_encoder.patch_embed(channels_first(images))
    stages = zip(features, reference.image_encoder.layers, (20, 10, 10, 10), strict=True)
    for ours, stage, side in stages:
        x = stage(x)
        assert ours.shape[1:3] == (side, side)
        close(ours.reshape(*x.shape), x, 5e-6)
    assert features[1].shape[-1] == ENCODER.early_width
    close(np.moveaxis(embeddings, -1, 1), reference.image_encoder(channels_first(images)), 5e-6)


def test_statistics_of_batch_norm_and_biases_of_distance_matter(pair, encode):
    """Each array but the classifier and the counts changes the embedding, if it is changed."""
    params, images = pair[1].params["image_encoder"], pictures()
    leaves, before = flatten(params), np.asarray(encode(params, images)[0])
    unused = [n for n in leaves if n.startswith("classifier.") or n.endswith("batches_tracked")]
    assert len(unused) == 4 + sum(n.endswith(".mean") for n in leaves)
    for name in leaves:
        other = np.asarray(1.2 * np.asarray(leaves[name]) + 0.1, leaves[name].dtype)
        changed, _ = encode(unflatten({**leaves, name: other}), images)
        assert np.array_equal(before, changed) == (name in unused), name


def test_gradients(pair):
    reference, model = pair
    images = pictures(seed=3)
    weights = np.random.default_rng(2).normal(size=(2, 10, 10, 256)).astype(np.float32)

    def loss(params, images):
        encoder = inference.bind(SMALL, params).image_encoder
        return (encoder(images) * weights).sum()

    gradients, of_images = jit(jax.grad(loss, (0, 1)))(model.params, images)
    encoder = reference.image_encoder
    # In training the reference looks its biases up again, and would change its batch norms.
    for module in encoder.modules():
        if type(module).__name__ == "Attention":
            module.training = True
    inputs = channels_first(images).requires_grad_()
    encoder.requires_grad_(True)
    (encoder(inputs) * channels_first(weights)).sum().backward()
    close(np.moveaxis(of_images, -1, 1), inputs.grad, 1e-4)
    arrays = {name: x.clone() for name, x in reference.state_dict().items()}
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            arrays[f"image_encoder.{name}"] = parameter.grad
    encoder.zero_grad()
    encoder.requires_grad_(False)
    reference.eval()
    expected, found = flatten(from_state_dict(arrays).params), flatten(gradients)
    compared = [n for n in found if n.startswith("image_encoder.") and n not in buffers()]
    assert len(compared) > 100
    for name in compared:
        close(found[name], torch.from_numpy(np.array(expected[name])), 2e-4)


def buffers():
    return buffer_names(SMALL)


def test_mapped_equals_in_a_batch(pair, encode):
    params, images = pair[1].params, jnp.asarray(pictures())
    batch, _ = encode(params["image_encoder"], images)
    mapped = jit(jax.vmap(inference.bind(SMALL, params).image_encoder))(images[:, None])[:, 0]
    np.testing.assert_allclose(mapped, batch, rtol=0, atol=5e-6 * np.abs(batch).max())


def test_half_precision(pair, encode):
    exact = np.asarray(encode(pair[1].params["image_encoder"], pictures())[0])
    half = inference.encode_images(
        pair[1].params, pictures(), config=SMALL.replace(dtype="bfloat16")
    )
    assert half.dtype == jnp.float32
    assert 0 < np.asarray(half - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("windows, size, heads", [(6, 7, 4), (1, 14, 5), (19, 3, 2)])
def test_the_programs_for_attention_agree(windows, size, heads):
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.normal(size=(windows, size**2, heads, 3, 8)), jnp.float32)
    bias = distance_bias(jnp.asarray(rng.normal(size=(heads, size**2)), jnp.float32), size)

    def both(program):
        out, pull = jax.vjp(program, qkv, bias)
        return out, *pull(jnp.ones_like(out) + out)

    for a, b in zip(jit(lambda: both(attend_in_pieces))(), both(attend_whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_biases_are_by_distance():
    bias = distance_bias(jnp.arange(9.0)[None], 3)[0]
    # From the first place of the middle row to the last of the last: one down, two across.
    assert bias[3, 8] == bias[8, 3] == 3 * 1 + 2
    assert not np.diagonal(bias).any()


def test_it_compiles_for_every_platform():
    params = abstract_params(SMALL)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), "float32")

    def gradient(params, images):
        return jax.grad(lambda p: inference.bind(SMALL, p).image_encoder(images).sum())(params)

    platforms = ["cpu", "cuda", "tpu"]
    exported = jax.export.export(jit(gradient), platforms=platforms)(params, images)
    assert len(exported.out_avals) == len(flatten(params))


def test_as_many_parameters_as_published():
    """10.13 M: MobileSAM counts the classifier, which nothing uses, and no statistics."""
    config = SamConfig.vit_t()
    leaves, constants = flatten(abstract_params(config)), buffer_names(config)
    classifier = {name for name in leaves if name.startswith("image_encoder.classifier.")}
    assert classifier < constants
    counted = set(leaves) - constants | classifier
    assert sum(leaves[name].size for name in counted) == 10_130_092
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), "float32")
    encode = nnx.eval_shape(lambda: ImageEncoderTinyViT(TinyViTConfig(), rngs=nnx.Rngs(0)))
    assert nnx.eval_shape(lambda m, x: m(x), encode, images).shape == (1, 64, 64, 256)


def test_lora_is_in_the_attention(pair):
    params = pair[1].params
    factors = flatten(init_lora(jax.random.key(0), params, rank=2))
    kernels = {name.rsplit(".", 2)[0] for name in factors}
    assert kernels == {
        f"image_encoder.stages.{stage}.blocks.{block}.attn.{name}.kernel"
        for stage, block in ((1, 0), (2, 0), (2, 1), (3, 0))
        for name in ("qkv", "proj")
    }
    merged = flatten(merge_lora(params, unflatten(jax.tree.map(jnp.ones_like, factors)), alpha=2.0))
    for name, before in flatten(params).items():
        expected = before + 2.0 if name in kernels else before
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("trained", sorted(set(PARTS) - {"hq"}))
def test_every_part_can_be_trained(pair, trained):
    """Statistics, counts and classifier stay; what is split comes back as it was."""
    train = TrainConfig(trained=trained)
    split = split_params(pair[1].params, SMALL, train, jax.random.key(0))
    assert split.trained and not set(split.trained) & buffers()
    joined = join_params(split.trained, split.frozen, SMALL, train)
    jax.tree.map(np.testing.assert_array_equal, joined, pair[1].params)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "lora+decoder"])
def test_a_training_step(pair, trained):
    config = SMALL.replace(image_encoder=dataclasses.replace(ENCODER, image_size=64))
    train = TrainConfig(trained=trained, num_points=1, refine_within=0, refine_at_end=0)
    state = init_state(config, train, pair[1].params, seed=0)
    truth = np.zeros((1, 1, 16, 16), bool)
    truth[..., :8, :5] = True
    batch = Batch(
        truth, np.ones((1, 1), bool), np.array([[64, 64]]), images=pictures(1, size=64)
    )  # fmt: skip
    step = train_step(config, train)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert np.isfinite(losses).all() and losses[-1] != losses[0]
    before, after = flatten(pair[1].params), flatten(trained_params(config, train, state))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "image_encoder.stages.2.blocks.0.attn.qkv.kernel" in changed
    assert not changed & buffers()


CONFIGS = {
    "published": SamConfig.vit_t(),
    "TinyViT-11M": SamConfig.vit_t(
        image_encoder=TinyViTConfig(widths=(64, 128, 256, 448), num_heads=(4, 8, 14))
    ),
    "of its own size": SamConfig.vit_t(
        image_encoder=TinyViTConfig(
            widths=(8, 12, 16, 24), depths=(1, 2, 3, 4), num_heads=(3, 2, 6),
            window_sizes=(3, 1, 5), expansion=3, mlp_ratio=2, out_channels=64, num_classes=1,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config_comes_back_from_shapes_and_from_json(name):
    config = CONFIGS[name]
    assert config_from_params(abstract_params(config)) == config
    assert SamConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image_size=1000), r"image_size is 1000.*coarsest stride \(16\)"),
        (dict(widths=(64, 128, 160)), r"widths is \(64, 128, 160\).*4 numbers"),
        (dict(widths=(63, 128, 160, 320)), r"widths\[0\] is 63"),
        (dict(num_heads=(4, 3, 10)), r"widths\[2\] is 160.*num_heads \(3\)"),
        (dict(window_sizes=(7, 0, 7)), "window_sizes is .*at least 1"),
        (dict(mlp_ratio=0), "mlp_ratio is 0; it has to be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        TinyViTConfig(**changes)


@pytest.mark.parametrize(
    "path, shape, message",
    [
        ("stages.1.blocks.0.attn.attention_biases", (4, 48), "has 48 columns; expected a square"),
        ("stages.1.blocks.0.attn.attention_biases", None, "attention_biases is missing"),
        ("neck.conv1.kernel", (1, 1, 160, 256), r"neck\.conv1\.kernel has shape.*320"),
        ("stages.0.blocks.0.expand.conv.kernel", (64, 100), r"expand.* has to divide expanded"),
    ],
)
def test_contradicting_shapes_are_named(path, shape, message):
    leaves = flatten(abstract_params(SamConfig.vit_t()))
    del leaves[f"image_encoder.{path}"]
    if shape:
        leaves[f"image_encoder.{path}"] = jax.ShapeDtypeStruct(shape, "float32")
    with pytest.raises(ValueError, match=message):
        config_from_params(unflatten(leaves))


def test_a_checkpoint_keeps_everything(pair, tmp_path):
    model = pair[1]
    save_checkpoint(tmp_path / "model", model)
    read = load(tmp_path / "model")
    assert read.config == SMALL
    for name, x in flatten(model.params).items():
        np.testing.assert_array_equal(x, flatten(read.params)[name], err_msg=name)
    norm = load(tmp_path / "model", dtype="bfloat16").params["image_encoder"]["patch_embed"]
    norm = norm["conv1"]["norm"]
    assert norm["scale"].dtype == jnp.bfloat16
    assert norm["var"].dtype == norm["num_batches_tracked"].dtype == jnp.float32
