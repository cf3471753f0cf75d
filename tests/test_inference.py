"""What has to hold of the compiled functions, whatever the weights: on small random models."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from devices import run_on_devices
from quick import jit
from samjax import Model, SamConfig, inference, prompts
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten
from samjax.types import PointLabel, Prompts
from samjax.upscaler import PROGRAMS, Upscaler

CONFIG = SamConfig.tiny(128)


@pytest.fixture(scope="module")
def params():
    """Random, with nothing left at its initial zero."""
    leaves, treedef = jax.tree.flatten(inference.init_params(CONFIG, seed=0))
    rng = np.random.default_rng(0)
    noisy = [np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(treedef, noisy)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 128, 128, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def embeddings(params, images):
    return inference.encode_images(params, images, config=CONFIG)


def some_prompts(batch=3, with_masks=False, seed=0):
    """A click, three points, a box, and a box with two points on each picture."""
    rng = np.random.default_rng(seed)

    def one_picture():
        box = np.array([10.0, 20.0, 90.0, 100.0])
        packed = prompts.pack(
            [
                prompts.tokens(rng.uniform(0, 128, (1, 2)), np.array([1])),
                prompts.tokens(rng.uniform(0, 128, (3, 2)), np.array([1, 0, 1])),
                prompts.tokens(box=box),
                prompts.tokens(rng.uniform(0, 128, (2, 2)), np.array([1, 0]), box),
            ],
            [rng.normal(size=(32, 32)) * 5, None, None, rng.normal(size=(32, 32)) * 5]
            if with_masks
            else None,
        )
        return packed

    return jax.tree.map(lambda *x: np.stack(x), *[one_picture() for _ in range(batch)])


def close(a, b, relative=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=relative * np.abs(np.asarray(y)).max())


@pytest.mark.slow
@pytest.mark.parametrize("with_masks", [False, True])
def test_jit_equals_eager(params, images, with_masks):
    some = some_prompts(1, with_masks)
    compiled = inference.predict_masks(params, images[:1], some, config=CONFIG)
    with jax.disable_jit():
        eager = inference.bind(CONFIG, params)(jnp.asarray(images[:1]), some)
    close(compiled, eager)


@pytest.mark.parametrize("with_masks", [False, True])
def test_batch_equals_loop(params, images, embeddings, with_masks):
    some = some_prompts(3, with_masks)
    batch = inference.decode_masks(params, embeddings, some, config=CONFIG)
    for b in range(3):
        embedding = inference.encode_images(params, images[b : b + 1], config=CONFIG)
        for p in range(4):
            one = jax.tree.map(lambda x, b=b, p=p: x[b : b + 1, p : p + 1], some)
            single = inference.decode_masks(params, embedding, one, config=CONFIG)
            close(jax.tree.map(lambda x, b=b, p=p: x[b : b + 1, p : p + 1], batch), single)


@pytest.mark.parametrize("prompts_each", [4, 7, 8])
def test_what_promises_little_is_left_out(params, embeddings, prompts_each):
    """Promising prompts get the very masks, the others zeros, and all get their IoUs."""
    rng = np.random.default_rng(5)
    coords = rng.uniform(0, 128, (3, prompts_each, 2, 2)).astype(np.float32)
    labels = np.tile(
        np.array([PointLabel.FOREGROUND, PointLabel.NOT_A_POINT]), (3, prompts_each, 1)
    )
    some = Prompts(coords, labels)
    whole = inference.decode_masks(params, embeddings, some, config=CONFIG)
    best = np.asarray(whole.iou_predictions)[..., 1:].max(-1)
    least = float(np.median(best)) + 1e-4
    found = inference.decode_masks(params, embeddings, some, config=CONFIG, least_iou=least)
    close(found.iou_predictions, whole.iou_predictions, 2e-6)
    promising = best > least
    assert promising.any() and not promising.all()
    masks = np.asarray(found.low_res_masks)
    close(masks[promising], np.asarray(whole.low_res_masks)[promising], 2e-6)
    assert not masks[~promising].any()
    everything = inference.decode_masks(params, embeddings, some, config=CONFIG, least_iou=-np.inf)
    close(everything, whole, 2e-6)


@pytest.mark.parametrize("tokens", [5, 8, 32])
def test_padding_tokens_change_nothing(params, embeddings, tokens):
    """Nor does what stands in them."""
    some = some_prompts()
    extra = tokens - some.labels.shape[-1]
    widths = ((0, 0), (0, 0), (0, extra))
    padded = Prompts(
        np.pad(some.coords, (*widths, (0, 0)), constant_values=1e4),
        np.pad(some.labels, widths, constant_values=PointLabel.PADDING),
    )
    close(
        inference.decode_masks(params, embeddings, padded, config=CONFIG),
        inference.decode_masks(params, embeddings, some, config=CONFIG),
        2e-6,
    )


def test_padding_takes_part_in_no_attention(params, embeddings):
    """The gradient to a padding token's position is exactly zero, to the others' it is not."""
    some = jax.tree.map(lambda x: x[:1], some_prompts())

    def total(coords):
        masks, ious = inference.decode_masks(
            params, embeddings[:1], some._replace(coords=coords), config=CONFIG
        )
        return masks.sum() + ious.sum()

    gradient = np.abs(jit(jax.grad(total))(jnp.asarray(some.coords))).sum(-1)
    no_position = (some.labels == PointLabel.PADDING) | (some.labels == PointLabel.NOT_A_POINT)
    assert (gradient[no_position] == 0).all()
    assert (gradient[~no_position] > 0).all()


def test_prompts_without_a_mask_ignore_what_stands_there(params, embeddings):
    some = some_prompts(with_masks=True)
    other = np.where(some.has_mask[..., None, None], some.mask_inputs, np.float32(77))
    close(
        inference.decode_masks(params, embeddings, some._replace(mask_inputs=other), config=CONFIG),
        inference.decode_masks(params, embeddings, some, config=CONFIG),
        1e-7,
    )
    plain = inference.decode_masks(
        params, embeddings, Prompts(some.coords, some.labels), config=CONFIG
    )
    masked = inference.decode_masks(params, embeddings, some, config=CONFIG)
    close(jax.tree.map(lambda x: x[:, 1:3], masked), jax.tree.map(lambda x: x[:, 1:3], plain))


@pytest.fixture(scope="module")
def wide(params, images):
    """Parameters in double precision, a loss of all kinds of prompts, its value and gradient."""
    with jax.enable_x64(True):
        some = some_prompts(1, with_masks=True)
        some = some._replace(coords=some.coords.astype(float))
        config = CONFIG.replace(dtype="float64")

        def loss(params):
            masks, ious = inference.bind(config, params)(jnp.asarray(images[:1]), some)
            return jnp.mean(jnp.tanh(masks / 10)) + jnp.mean(ious**2)

        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        value_and_gradient = jit(jax.value_and_grad(loss))
        return params, value_and_gradient, value_and_gradient(params)[1]


def test_gradients_reach_every_parameter(wide):
    """Every embedding, every head."""
    silent = [name for name, g in flatten(wide[2]).items() if not np.abs(g).max() > 1e-12]
    # A key's bias shifts all logits of a query alike, and softmax does not see it.
    assert [name for name in silent if not name.endswith("k_proj.bias")] == []


def test_gradients_agree_with_finite_differences(wide):
    """Along random directions, in each of the three parts, in double precision."""
    params, value_and_gradient, gradient = wide
    rng, step = np.random.default_rng(0), 1e-7

    def moved(direction, by):
        return jax.tree.map(lambda x, d: x + by * d, params, direction)

    for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
        direction = jax.tree.map(np.zeros_like, params)
        direction[part] = jax.tree.map(lambda x: rng.normal(size=x.shape), params[part])
        with jax.enable_x64(True):
            ahead = float(value_and_gradient(moved(direction, step))[0])
            behind = float(value_and_gradient(moved(direction, -step))[0])
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        slope = sum(np.vdot(g, d) for g, d in pairs)
        np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(params, images, dtype):
    some = some_prompts(1)
    full = inference.predict_masks(params, images[:1], some, config=CONFIG)
    half = inference.predict_masks(params, images[:1], some, config=CONFIG.replace(dtype=dtype))
    assert jax.tree.map(lambda x: x.dtype, half) == jax.tree.map(lambda x: x.dtype, full)
    close(half, full, {"bfloat16": 6e-2, "float16": 1e-2}[dtype])


def test_architecture_is_read_from_the_parameters(params, images, embeddings):
    close(inference.encode_images(params, images), embeddings, 1e-7)


def test_model_is_a_pytree(params, images):
    model = Model(params, CONFIG)
    encode = jax.jit(lambda m, x: inference.encode_images(m.params, x, config=m.config))
    close(encode(model, images), inference.encode_images(params, images, config=CONFIG), 1e-6)
    assert jax.tree.leaves(model) == jax.tree.leaves(params)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_programs_lower_for(platform, dtype):
    """ViT-B at full size: encoder, decoder with masks, and full-resolution measuring."""
    config = SamConfig.vit_b(dtype=dtype)
    params = abstract_params(config)
    f32, i32 = np.float32, np.int32

    def lower(function, *arguments):
        exported = export.export(jax.jit(function), platforms=[platform])(*arguments)
        assert exported.platforms == (platform,)
        assert len(exported.mlir_module_serialized) > 1000

    lower(
        lambda p, x: inference.encode_images(p, x, config=config),
        params,
        jax.ShapeDtypeStruct((2, 1024, 1024, 3), f32),
    )
    some = Prompts(
        jax.ShapeDtypeStruct((2, 64, 2, 2), f32),
        jax.ShapeDtypeStruct((2, 64, 2), i32),
        jax.ShapeDtypeStruct((2, 64, 256, 256), f32),
        jax.ShapeDtypeStruct((2, 64), bool),
    )
    for least_iou in (None, 0.88):
        lower(
            lambda p, e, s, t=least_iou: inference.decode_masks(
                p, e, s, config=config, least_iou=t
            ),
            params,
            jax.ShapeDtypeStruct((2, 64, 64, 256), f32),
            some,
        )
    scalar = jax.ShapeDtypeStruct((), f32)
    lower(
        PROGRAMS["measure"],
        jax.ShapeDtypeStruct((8, 256, 256), f32),
        jax.ShapeDtypeStruct((1280, 256), f32),
        jax.ShapeDtypeStruct((1920, 256), f32),
        jax.ShapeDtypeStruct((), i32),
        jax.ShapeDtypeStruct((), i32),
        scalar,
        scalar,
    )


@pytest.mark.parametrize(
    "shape, words",
    [
        ((128, 128, 3), ["(128, 128, 3)", "(B, 128, 128, 3)"]),
        ((1, 3, 128, 128), ["(1, 3, 128, 128)", "(B, 128, 128, 3)"]),
        ((1, 256, 256, 3), ["(1, 256, 256, 3)", "resize"]),
    ],
)
def test_pictures_of_the_wrong_shape(params, shape, words):
    with pytest.raises(ValueError) as error:
        unchecked(inference.encode_images)(params, np.zeros(shape, np.float32), config=CONFIG)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(labels=np.zeros((3, 4), np.int32)), ["prompts.labels", "(3, 4)"]),
        (dict(coords=np.zeros((3, 4, 3, 2), np.float32)), ["prompts.coords", "(3, 4, 3, 2)"]),
        (dict(labels=np.zeros((2, 4, 4), np.int32)), ["prompts.labels", "(3, P, T)"]),
        (dict(mask_inputs=np.zeros((3, 4, 256, 256), np.float32)), ["mask_inputs", "32, 32"]),
        (dict(has_mask=np.zeros((3, 1), bool)), ["has_mask", "(3, 1)"]),
    ],
)
def test_prompts_of_the_wrong_shape(params, embeddings, change, words):
    with pytest.raises(ValueError) as error:
        unchecked(inference.decode_masks)(
            params, embeddings, some_prompts()._replace(**change), config=CONFIG
        )
    for word in words:
        assert word in str(error.value)


def unchecked(function):
    """Without the type checker that tests put around it, which would speak first."""
    return getattr(function, "__wrapped__", function)


@pytest.mark.parametrize("size", [(300, 450), (450, 300), (40, 1000)])
def test_masks_without_logits(size):
    """What the logits say, but where rounding decides."""
    config = SamConfig.tiny()
    input_size = tuple(max(1, round(config.image_size * side / max(size))) for side in size)
    upscaler = Upscaler(config, input_size, size)
    rng = np.random.default_rng(0)
    low_res = rng.standard_normal((3, config.low_res_size, config.low_res_size), dtype=np.float32)
    logits = upscaler.logits(low_res)
    masks = upscaler.masks(low_res, mask_threshold=0.2)
    assert masks.shape == logits.shape and masks.dtype == bool
    decided = np.abs(logits - 0.2) > 1e-5
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(masks[decided], (logits > 0.2)[decided])


DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from samjax import SamConfig, inference
from samjax.types import Prompts

config = SamConfig.tiny(64)
params = inference.init_params(config)
rng = np.random.default_rng(0)
side = config.grid_size
embeddings = rng.standard_normal((4, side, side, config.embed_dim), dtype=np.float32)
some = Prompts(rng.uniform(0, 64, (4, 2, 2, 2)).astype(np.float32), np.ones((4, 2, 2), np.int32))
alone = inference.decode_masks(params, embeddings, some, config=config)
mesh = jax.sharding.Mesh(jax.devices(), ("data",))
everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
spread = jax.device_put(embeddings, NamedSharding(mesh, PartitionSpec("data")))
found = inference.decode_masks(everywhere, spread, some, config=config)
for ours, theirs in zip(found, alone):
    assert len(ours.addressable_shards) == 2 and ours.addressable_shards[0].data.shape[0] == 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
program = inference._decode.lower(
    config, False, "cpu", everywhere, spread, some, None, spread=inference._spread(spread)
).compile()
assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
print("each its own")
"""


def test_each_device_decodes_its_own_pictures():
    said = run_on_devices(2, DEVICES, cwd=Path(__file__).parent)
    assert said.endswith("each its own\n")
