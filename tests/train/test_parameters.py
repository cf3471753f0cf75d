"""What is trained and what is frozen, LoRA, and the optimizer's rates and decay by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from random_model import random_params
from samjax import SamConfig
from samjax.models.architecture import buffer_names
from samjax.models.params import flatten, unflatten
from samjax.train.config import TrainConfig
from samjax.train.optimizer import (
    learning_rate_factors,
    learning_rate_schedule,
    make_optimizer,
)
from samjax.train.parameters import (
    PARTS,
    has_prefix,
    init_lora,
    join_params,
    merge_lora,
    split_params,
)

CONFIG = SamConfig.tiny(128)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, scale=1.0)


@pytest.fixture(scope="module")
def lora(params):
    """Factors as they are after some training: b is not zero."""
    factors = init_lora(jax.random.key(1), params, rank=3)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32), factors)


@pytest.mark.parametrize(
    "trained, modules",
    [
        ("all", {"image_encoder", "prompt_encoder", "mask_decoder"}),
        ("decoder", {"mask_decoder"}),
        ("decoder+neck", {"mask_decoder", "image_encoder"}),
        ("lora", {"lora"}),
        ("lora+decoder", {"lora", "mask_decoder"}),
        (("prompt_encoder", "image_encoder.blocks.1"), {"prompt_encoder", "image_encoder"}),
    ],
)
def test_split_and_join(params, trained, modules):
    train = TrainConfig(trained=trained)
    split = split_params(params, CONFIG, train, jax.random.key(0))
    assert {name.split(".")[0] for name in split.trained} == modules
    assert not set(split.trained) & (set(split.frozen) | buffer_names(CONFIG))
    whole = set(split.trained) | set(split.frozen)
    assert {n for n in whole if not has_prefix(n, "lora")} == set(flatten(params))
    joined = join_params(split.trained, split.frozen, CONFIG, train)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_neck_is_all_that_is_trained_of_the_encoder(params):
    trained = split_params(params, CONFIG, TrainConfig(trained="decoder+neck")).trained
    of_encoder = {name for name in trained if has_prefix(name, "image_encoder")}
    assert of_encoder == {n for n in flatten(params) if n.startswith("image_encoder.neck.")}


def test_everything_but_the_buffers_is_trained(params):
    split = split_params(params, CONFIG, TrainConfig())
    assert set(split.frozen) == buffer_names(CONFIG) != set()


def test_prefixes_are_whole_components():
    assert has_prefix("image_encoder.blocks.1.norm1.scale", "image_encoder.blocks.1")
    assert not has_prefix("image_encoder.blocks.11.norm1.scale", "image_encoder.blocks.1")


@pytest.mark.parametrize(
    "trained, words",
    [
        ("head", ["'head'", *PARTS]),
        (("image_encoder.neckk",), ["image_encoder.neckk"]),
        ("lora", ["key"]),
    ],
)
def test_parts_that_do_not_exist(params, trained, words):
    with pytest.raises(ValueError) as error:
        split_params(params, CONFIG, TrainConfig(trained=trained))
    for word in words:
        assert word in str(error.value)


def test_lora_needs_attention(params):
    without = {**params, "image_encoder": {"neck": params["image_encoder"]["neck"]}}
    with pytest.raises(ValueError, match="attention"):
        init_lora(jax.random.key(0), without, rank=2)


def test_lora_of_a_convolutional_encoder():
    params = random_params(SamConfig.nano(32), scale=1.0)
    factors = flatten(init_lora(jax.random.key(0), params, rank=2))
    kernels = {name.removesuffix(".out.a") for name in factors if name.endswith(".out.a")}
    # 16 blocks that project, 15 that expand; two laterals, three blocks with 3 layers of attention
    # and 2 of an MLP.
    assert len(kernels) == 16 + 15 + 2 + 3 * (3 + 2)
    assert all(flatten(params)[name].ndim == 2 for name in kernels)
    merged = flatten(merge_lora(params, unflatten(jax.tree.map(jnp.ones_like, factors)), alpha=2.0))
    for name, before in flatten(params).items():
        expected = before + 2.0 if name in kernels else before
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_lora_merged_equals_lora_applied(params, lora):
    """x W + b + (alpha / r) x a b in the query and value channels, and nothing in the key's."""
    merged = merge_lora(params, lora, alpha=6.0)
    x = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    for block in (0, 1):
        path = ("image_encoder", "blocks", block, "attn")
        before, after, factors = (_at(tree, path) for tree in (params, merged, lora))
        applied = np.array(x @ before["qkv"]["kernel"] + before["qkv"]["bias"])
        q, v = factors["qkv"]["kernel"]["q"], factors["qkv"]["kernel"]["v"]
        applied[:, :32] += 2.0 * (x @ q["a"]) @ q["b"]
        applied[:, 64:] += 2.0 * (x @ v["a"]) @ v["b"]
        got = x @ after["qkv"]["kernel"] + after["qkv"]["bias"]
        np.testing.assert_allclose(got, applied, rtol=0, atol=1e-5 * np.abs(applied).max())
        keys = slice(32, 64)
        np.testing.assert_array_equal(
            after["qkv"]["kernel"][:, keys], before["qkv"]["kernel"][:, keys]
        )
        out = factors["proj"]["kernel"]["out"]
        applied = x @ before["proj"]["kernel"] + 2.0 * (x @ out["a"]) @ out["b"]
        got = x @ after["proj"]["kernel"]
        np.testing.assert_allclose(got, applied, rtol=0, atol=1e-5 * np.abs(applied).max())


def test_merging_changes_the_targets_alone(params, lora):
    before, after = flatten(params), flatten(merge_lora(params, lora, alpha=6.0))
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {
        f"image_encoder.blocks.{block}.attn.{name}.kernel"
        for block in (0, 1) for name in ("qkv", "proj")
    }  # fmt: skip
    assert list(before) == list(after)


def test_new_lora_changes_nothing_and_is_small(params):
    factors = init_lora(jax.random.key(0), params, rank=3)
    jax.tree.map(np.testing.assert_array_equal, merge_lora(params, factors, alpha=6.0), params)
    sizes = {name: leaf.shape for name, leaf in flatten(factors).items()}
    assert sizes["image_encoder.blocks.0.attn.qkv.kernel.q.a"] == (32, 3)
    assert sizes["image_encoder.blocks.0.attn.qkv.kernel.q.b"] == (3, 32)
    assert sum(np.prod(s) for s in sizes.values()) == 2 * 3 * (2 * 32 * 3)


def test_lora_factors_differ(params):
    factors = flatten(init_lora(jax.random.key(0), params, rank=3))
    drawn = [np.asarray(x) for n, x in factors.items() if n.endswith(".a")]
    assert len({x.tobytes() for x in drawn}) == len(drawn) == 6
    np.testing.assert_allclose(np.std(drawn), 32**-0.5, rtol=0.15)


def _at(tree, path):
    for part in path:
        tree = tree[part]
    return tree


def test_warm_up_and_steps_of_the_paper():
    rate = learning_rate_schedule(TrainConfig())
    np.testing.assert_allclose(rate(np.arange(250)), 8e-4 * np.arange(1, 251) / 250, rtol=1e-5)
    steps = np.array([250, 59_999, 60_000, 86_665, 86_666, 90_000])
    expected = 8e-4 * np.array([1, 1, 0.1, 0.1, 0.01, 0.01])
    np.testing.assert_allclose([rate(s) for s in steps], expected, rtol=1e-5)


def test_cosine_and_constant_decay():
    train = TrainConfig(total_steps=1000, warmup_steps=100, decay="cosine")
    rate = learning_rate_schedule(train)
    expected = 8e-4 * np.array([1, 0.5, 0])
    np.testing.assert_allclose([rate(s) for s in (100, 550, 1000)], expected, atol=1e-9)
    rate = learning_rate_schedule(train.replace(decay="constant", warmup_steps=0))
    assert rate(0) == rate(999) == np.float32(8e-4)


def test_layers_learn_slower_the_deeper_they_lie(params):
    train = TrainConfig(
        layer_decay=0.5,
        learning_rate_multipliers=(("mask_decoder", 0.25), ("mask_decoder.iou_token", 3.0)),
    )
    factors = learning_rate_factors(train, flatten(params))
    expected = {
        "image_encoder.pos_embed": 1 / 8,
        "image_encoder.patch_embed.kernel": 1 / 8,
        "image_encoder.blocks.0.attn.qkv.bias": 1 / 4,
        "image_encoder.blocks.1.mlp.lin1.kernel": 1 / 2,
        "image_encoder.neck.conv1.kernel": 1,
        "prompt_encoder.no_mask_embed": 1,
        "mask_decoder.mask_tokens": 0.25,
        "mask_decoder.iou_token": 3,
    }
    assert {name: factors[name] for name in expected} == expected


def test_lora_learns_at_the_full_rate(params):
    train = TrainConfig(trained="lora")
    trained = split_params(params, CONFIG, train, jax.random.key(0)).trained
    assert set(learning_rate_factors(train, trained).values()) == {1.0}


def test_what_decays():
    """Without a gradient an update is the decay alone: lr * factor * 0.1 * value."""
    train = TrainConfig(warmup_steps=0, layer_decay=0.5)
    expected = {
        "image_encoder.pos_embed": 0,
        "image_encoder.patch_embed.kernel": 1 / 8,
        "image_encoder.blocks.0.attn.rel_pos_h": 0,
        "image_encoder.blocks.0.attn.qkv.kernel": 1 / 4,
        "image_encoder.blocks.1.norm1.scale": 0,
        "mask_decoder.output_upscaling.upscale1.kernel": 1,
        "mask_decoder.output_upscaling.upscale1.bias": 0,
        "mask_decoder.mask_tokens": 0,
        "prompt_encoder.point_embeddings.0": 0,
        "lora.image_encoder.blocks.0.attn.proj.kernel.out.a": 0,
    }
    leaves = {name: jnp.arange(3.0) for name in expected}
    optimizer = make_optimizer(train, leaves)
    zeros = {name: jnp.zeros(3) for name in leaves}
    updates, _ = optimizer.update(zeros, optimizer.init(leaves), leaves)
    for name, factor in expected.items():
        np.testing.assert_allclose(updates[name], -8e-5 * factor * leaves[name], rtol=1e-5)


def test_optimizer_is_adamw(params):
    """Optax's own, in the third step, where every rate is the same and every array decays."""
    leaves = {n: x for n, x in flatten(params).items() if n.endswith("neck.conv2.kernel")}
    (name,) = leaves
    train = TrainConfig(warmup_steps=0, clip_norm=0.0, learning_rate=1e-2)
    ours, theirs = make_optimizer(train, leaves), optax.adamw(1e-2, weight_decay=0.1)
    states, values = [ours.init(leaves), theirs.init(leaves)], [dict(leaves), dict(leaves)]
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradient = {name: jnp.asarray(rng.normal(size=leaves[name].shape), jnp.float32)}
        for i, optimizer in enumerate((ours, theirs)):
            with jax.numpy_dtype_promotion("standard"):
                updates, states[i] = optimizer.update(gradient, states[i], values[i])
            values[i] = optax.apply_updates(values[i], updates)
    np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-6)


@pytest.mark.parametrize("norm, expected", [(2.0, 2.0), (40.0, 13.0), (0.0, 13.0)])
def test_large_gradients_are_clipped(norm, expected):
    """Adam's first moment after one update is a tenth of the clipped gradient."""
    leaves = {"mask_decoder.iou_token": jnp.ones(2), "mask_decoder.mask_tokens": jnp.ones(2)}
    optimizer = make_optimizer(TrainConfig(clip_norm=norm), leaves)
    gradient = dict(zip(leaves, (jnp.array([3.0, 4.0]), jnp.array([12.0, 0.0])), strict=True))
    _, state = optimizer.update(gradient, optimizer.init(leaves), leaves)
    moments = next(s.mu for s in state if hasattr(s, "mu"))
    norm = sum(float(jnp.sum(x * x)) for x in moments.values()) ** 0.5
    np.testing.assert_allclose(norm, 0.1 * expected, rtol=1e-5)
