"""Many prompts of one picture, none of which has a picture of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quick import jit
from random_model import random_module, random_params
from samjax import inference
from samjax.models import SamConfig
from samjax.models import sam as sam_module
from samjax.models.params import flatten, unflatten
from samjax.models.shared_picture import attend, product, share_picture
from samjax.models.transformer import TwoWayTransformer
from samjax.types import Prompts

VALID = jnp.array([True, True, False, True, True, False, True])
SIDE, WIDTH, OUT = 8, 256, 40


def random_numbers(shape, seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module", params=[1, 2, pytest.param(3, marks=pytest.mark.slow)])
def transformer(request):
    """With biases and norms that are no zeros and ones."""
    config = SamConfig.vit_b().replace(decoder_depth=request.param)
    graphdef, params = random_module(TwoWayTransformer, config)
    leaves = flatten(params)
    for seed, (name, x) in enumerate(sorted(leaves.items())):
        if x.ndim == 1:
            leaves[name] = x + random_numbers(x.shape, seed, 0.3)
    return nnx.merge(graphdef, unflatten(leaves))


def shared_and_plain(transformer):
    """Both as functions of picture, positions and tokens: tokens, and the picture in a product."""
    kernel = random_numbers((WIDTH, OUT), 5)

    def shared(image, image_pe, tokens):
        of_all = share_picture(transformer, image, image_pe, kernel)
        queries, picture = attend(transformer, of_all, tokens, VALID, 5)
        return queries, product(of_all, picture, kernel)

    def plain(image, image_pe, tokens):
        flat = (SIDE * SIDE, WIDTH)
        queries, keys = transformer(image.reshape(flat), image_pe.reshape(flat), tokens, VALID, 5)
        return queries, (keys @ kernel).reshape(SIDE, SIDE, OUT)

    return shared, plain


@pytest.fixture(scope="module")
def sides():
    shapes = (SIDE, SIDE, WIDTH), (SIDE, SIDE, WIDTH), (7, WIDTH)
    return [random_numbers(shape, seed) for seed, shape in enumerate(shapes)]


def test_it_is_the_transformer(transformer, sides):
    with jax.default_matmul_precision("highest"):
        found, expected = (jit(f)(*sides) for f in shared_and_plain(transformer))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * np.abs(other).max())


def test_it_has_the_same_gradients(transformer, sides):
    def gradients(function):
        def loss(*sides):
            return sum(jnp.sum(jnp.sin(x)) for x in function(*sides))

        return jit(jax.grad(loss, argnums=(0, 1, 2)))

    with jax.default_matmul_precision("highest"):
        found, expected = (gradients(f)(*sides) for f in shared_and_plain(transformer))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


def test_large_activations_keep_their_digits(transformer, sides):
    """Variances are sums of large terms: here the picture's is 10,000 times as large, and an
    attention's part of it small."""
    image, image_pe, tokens = sides
    with jax.default_matmul_precision("highest"):
        found, expected = (
            jit(f)(100.0 * image + 50.0, image_pe, tokens) for f in shared_and_plain(transformer)
        )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


def clicks(number):
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, 64, (1, number, 2, 2)).astype(np.float32)
    labels = np.tile(np.array([1, -1], np.int32), (1, number, 1))
    labels[0, ::3, 1] = -2
    return Prompts(coords, labels)


def decode_both(config, number, **how):
    """What `decode_masks` gives of many prompts, and of the same a few at a time."""
    params = random_params(config)
    images = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype(np.float32)
    embeddings = inference.encode_images(params, images, config=config)
    prompts = clicks(number)
    few = sam_module.FEWEST_SHARED // 2
    parts = [
        inference.decode_masks(
            params, embeddings, jax.tree.map(lambda x, i=i: x[:, i : i + few], prompts),
            config=config, **how,
        )
        for i in range(0, number, few)
    ]  # fmt: skip
    whole = inference.decode_masks(params, embeddings, prompts, config=config, **how)
    return whole, jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)


@pytest.mark.parametrize("hq", [False, True])
def test_many_prompts_give_what_few_give(hq):
    config = SamConfig.tiny(64).replace(hq=hq)
    found, expected = decode_both(config, 2 * sam_module.FEWEST_SHARED)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_a_caller_may_keep_what_is_shared():
    """For one prompt too; prompts with masks, whose pictures differ, do without."""
    config = SamConfig.tiny(64)
    params = random_params(config)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    embeddings = inference.encode_images(params, images, config=config)
    shared = inference.share_pictures(params, embeddings, config=config)
    prompts = jax.tree.map(lambda x: np.concatenate([x, x[:, ::-1]]), clicks(3))
    decode = functools.partial(inference.decode_masks, params, embeddings, config=config)
    for one, other in zip(decode(prompts, shared=shared), decode(prompts), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    low = config.low_res_size
    masks = np.random.default_rng(2).normal(size=(2, 3, low, low)).astype(np.float32)
    prompts = prompts._replace(mask_inputs=masks)
    for one, other in zip(decode(prompts, shared=shared), decode(prompts), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="shared is of pictures .* = .2, 4, 4.*1, 4, 4"):
        inference.decode_masks(params, embeddings[:1], clicks(3), config=config, shared=shared)
    assert (
        inference.share_pictures(params, embeddings, config=config.replace(dtype="bfloat16"))
        is None
    )


def test_embeddings_of_another_shape_cannot_be_shared():
    config = SamConfig.tiny(64)
    embeddings = np.zeros((1, 5, 4, config.embed_dim), np.float32)
    with pytest.raises(
        ValueError, match=r"image_embeddings has shape \(1, 5, 4, .*expected \(B, 4"
    ):
        inference.share_pictures(random_params(config), embeddings, config=config)


def test_masks_that_are_not_wanted_are_zeros():
    config = SamConfig.tiny(64)
    all_masks, _ = decode_both(config, sam_module.FEWEST_SHARED)
    best = all_masks.iou_predictions[0, :, 1:].max(axis=-1)
    least = float(np.sort(best)[len(best) // 2 - 1 : len(best) // 2 + 1].mean())
    found, expected = decode_both(config, sam_module.FEWEST_SHARED, least_iou=least)
    wanted = np.asarray(best > least)
    assert 0 < wanted.sum() < len(wanted)
    assert not np.asarray(found.low_res_masks)[0, ~wanted].any()
    np.testing.assert_allclose(
        found.low_res_masks, expected.low_res_masks, rtol=0,
        atol=1e-5 * np.abs(expected.low_res_masks).max(),
    )  # fmt: skip


def test_no_prompt_has_a_picture_of_its_own():
    """No array of the program has as many numbers as pixels, channels and prompts."""
    config = SamConfig.vit_b()
    graphdef, state = random_module(TwoWayTransformer, config)
    prompts, side = 16, 64

    def look(state, image, image_pe, tokens, valid):
        transformer = nnx.merge(graphdef, state)
        shared = share_picture(transformer, image, image_pe, jnp.zeros((WIDTH, WIDTH)))
        return jax.vmap(lambda t, v: attend(transformer, shared, t, v, 5))(tokens, valid)

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    picture = of(side, side, WIDTH)
    tokens, valid = of(prompts, 7, WIDTH), of(prompts, 7, dtype=bool)
    jaxpr = jax.make_jaxpr(look)(state, picture, picture, tokens, valid).jaxpr
    largest = max(v.aval.size for e in jaxpr.eqns for v in e.outvars)
    assert prompts * 112 * side**2 <= largest < prompts * WIDTH * side**2
