"""HQ-SAM's decoder and predictions against `segment_anything_hq`, with random weights, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import hq_reference
from hq_reference import channels_last, close
from reference import random_reference
from samjax import inference
from samjax.convert import from_state_dict
from samjax.models import EfficientNetLiteConfig, ImageEncoderViTConfig, SamConfig
from samjax.models.architecture import abstract_params, config_from_params
from samjax.models.hq import MaskFeatures
from samjax.models.params import flatten
from samjax.types import HqEmbeddings, PointLabel, Prompts

pytestmark = pytest.mark.optimized

CONFIG = SamConfig(
    image_encoder=ImageEncoderViTConfig(
        image_size=192, width=48, depth=4, num_heads=3, mlp_width=64, out_channels=32,
        window_size=5, global_layers=(1, 3),
    ),
    decoder_mlp_width=64, iou_head_width=32, hq=True,
)  # fmt: skip
PICTURES, PROMPTS = 2, 8
PUBLISHED = [SamConfig.vit_b, SamConfig.vit_l, SamConfig.vit_h, SamConfig.vit_t]


@pytest.fixture(scope="module")
def reference():
    return random_reference(CONFIG, seed=1)


@pytest.fixture(scope="module")
def model(reference):
    return from_state_dict(reference.state_dict())


@pytest.fixture(scope="module")
def images():
    shape = (PICTURES, CONFIG.image_size, CONFIG.image_size, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def encoded(model, images):
    return inference.encode_images(model.params, images)


@pytest.fixture(scope="module")
def theirs(reference, images):
    """The reference's embedding and intermediate features."""
    return hq_reference.encode(reference, images)


@pytest.fixture(scope="module")
def clicks():
    coords = np.zeros((PICTURES, PROMPTS, 2, 2), np.float32)
    coords[:, :, 0] = np.random.default_rng(2).uniform(0, 192, (PICTURES, PROMPTS, 2))
    labels = np.int32([PointLabel.FOREGROUND, PointLabel.NOT_A_POINT])
    return Prompts(coords, np.broadcast_to(labels, (PICTURES, PROMPTS, 2)))


def decode(model, encoded, clicks, **options):
    return inference.decode_masks(model.params, encoded, clicks, config=CONFIG, **options)


def test_early_features_are_those_of_the_first_global_block(model, images, theirs):
    """And not of another one, which is far from it."""
    encoder = inference.bind(CONFIG, model.params).image_encoder
    embeddings, early = jax.jit(lambda x: encoder.with_early_features(x))(images)
    embedding, intermediate = theirs
    assert len(intermediate) == 2
    close(early, intermediate[0], 2e-6)
    assert np.abs(early - intermediate[1].numpy()).max() > 0.1
    close(embeddings, channels_last(embedding), 3e-6)


def test_hq_features(encoded, reference, theirs):
    of_embedding, of_early = hq_reference.fuse(reference, theirs)
    close(encoded.hq_features, channels_last(of_embedding + of_early), 3e-6)
    assert 0.5 < of_embedding.std() / of_early.std() < 2


@pytest.mark.parametrize("hq_token_only", [False, True])
@pytest.mark.parametrize("multimask_output", [False, True])
def test_masks(
    model, encoded, clicks, reference, theirs, measured, hq_token_only, multimask_output
):  # fmt: skip
    ours = decode(model, encoded, clicks, hq_token_only=hq_token_only)
    ours = ours.select(multimask_output=multimask_output)
    masks, ious = hq_reference.decode(
        reference, theirs, clicks.coords[:, :, 0], multimask_output, hq_token_only
    )
    assert ours.low_res_masks.shape == (PICTURES, PROMPTS, 1, 48, 48)
    close(ours.low_res_masks, masks, 3e-6)
    close(ours.iou_predictions, ious, 3e-6)
    difference = np.abs(ours.low_res_masks - masks).max()
    measured(
        f"HQ, random weights, multimask {multimask_output}, HQ token only {hq_token_only}: logits "
        f"differ by {difference:.1e} on a scale of {np.abs(masks).max():.1f}"
    )


def test_every_part_has_its_share(model, encoded, clicks):
    """So that the comparisons above would see what is wrong in it."""
    both = decode(model, encoded, clicks)
    alone = decode(model, encoded, clicks, hq_token_only=True)
    np.testing.assert_array_equal(alone.low_res_masks[:, :, 0], alone.low_res_masks[:, :, 1])
    np.testing.assert_array_equal(alone.iou_predictions, both.iou_predictions)
    hq, plain = alone.low_res_masks, both.low_res_masks - alone.low_res_masks
    assert 0.2 < float(jnp.std(hq) / jnp.std(plain)) < 5
    without = encoded._replace(hq_features=jnp.zeros_like(encoded.hq_features))
    less = decode(model, without, clicks, hq_token_only=True).low_res_masks
    assert 0.2 < float(jnp.std(less) / jnp.std(hq - less)) < 5
    chosen = inference.decode_masks(
        plain_params(model), encoded.image_embeddings, clicks, config=CONFIG.replace(hq=False)
    )
    best = np.asarray(chosen.iou_predictions)[..., 1:].argmax(-1)
    assert len(np.unique(best)) > 1


def plain_params(model):
    decoder = {name: x for name, x in model.params["mask_decoder"].items() if name != "hq"}
    return {**model.params, "mask_decoder": decoder}


def test_what_promises_little_is_left_out(model, encoded, clicks):
    """The very masks of the promising, zeros of the others, and everybody's IoUs."""
    whole = decode(model, encoded, clicks)
    best = np.asarray(whole.iou_predictions)[..., 1]
    least = float(np.median(best))
    found = decode(model, encoded, clicks, least_iou=least)
    close(found.iou_predictions, whole.iou_predictions, 1e-6)
    promising = best > least
    assert promising.any() and not promising.all()
    masks = np.asarray(found.low_res_masks)
    close(masks[promising], np.asarray(whole.low_res_masks)[promising], 1e-6)
    assert not masks[~promising].any()


def test_the_second_convolution_takes_the_token():
    rng = np.random.default_rng(0)
    layers = MaskFeatures(4, 8, dtype="float32", rngs=nnx.Rngs(0))
    layers.conv2.bias[...] = jnp.asarray(rng.normal(size=4), jnp.float32)
    x = jnp.asarray(rng.normal(size=(6, 9, 4)), jnp.float32)
    channels = jnp.asarray(rng.normal(size=4), jnp.float32)
    close(layers.weighed(x, channels), layers(x) @ channels, 1e-6)


def test_module_is_the_compiled_program(model, encoded, clicks):
    """The call of the decoder as it is, for one prompt."""
    sam = inference.bind(CONFIG, model.params)
    whole = decode(model, encoded, clicks)
    image_pe = sam.prompt_encoder.get_dense_pe()
    one = Prompts(jnp.asarray(clicks.coords[1, 3]), jnp.asarray(clicks.labels[1, 3]))
    found = jax.jit(lambda *x: sam.mask_decoder(*x))(
        encoded.image_embeddings[1], image_pe, sam.prompt_encoder(one), encoded.hq_features[1]
    )
    close(found.low_res_masks, whole.low_res_masks[1, 3], 3e-6)


def test_half_precision_is_close(model, images, encoded, clicks):
    config = CONFIG.replace(dtype="bfloat16")
    features = inference.encode_images(model.params, images, config=config)
    assert jax.tree.map(lambda x: x.dtype, features) == jax.tree.map(lambda x: x.dtype, encoded)
    close(features.hq_features, encoded.hq_features, 3e-2)
    full = decode(model, encoded, clicks, hq_token_only=True)
    half = inference.decode_masks(
        model.params, features, clicks, config=config, hq_token_only=True
    )  # fmt: skip
    close(half.low_res_masks, full.low_res_masks, 6e-2)


@pytest.mark.parametrize("make", PUBLISHED)
def test_config_comes_back_from_shapes(make):
    config = make(hq=True)
    assert config_from_params(abstract_params(config)) == config
    assert SamConfig.from_dict(config.to_dict()) == config
    added = set(flatten(abstract_params(config))) - set(flatten(abstract_params(make())))
    assert all(name.startswith("mask_decoder.hq.") for name in added) and len(added) == 25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_programs_lower_everywhere(dtype):
    """What is encoded is what decoding takes, on every platform."""
    config = CONFIG.replace(dtype=dtype)
    params = abstract_params(config)
    low = config.low_res_size

    def lower(function, *arguments):
        platforms = ("cpu", "cuda", "tpu")
        exported = export.export(jax.jit(function), platforms=platforms)(*arguments)
        assert exported.platforms == platforms

    def encode(params, images):
        return inference.encode_images(params, images, config=config)

    pictures = jax.ShapeDtypeStruct((2, config.image_size, config.image_size, 3), np.float32)
    lower(encode, params, pictures)
    encoded = jax.eval_shape(encode, params, pictures)
    some = Prompts(
        jax.ShapeDtypeStruct((2, 8, 2, 2), np.float32),
        jax.ShapeDtypeStruct((2, 8, 2), np.int32),
        jax.ShapeDtypeStruct((2, 8, low, low), np.float32),
        jax.ShapeDtypeStruct((2, 8), bool),
    )
    for least_iou, only in ((None, True), (0.88, False)):
        lower(
            lambda p, e, s, t=least_iou, o=only: inference.decode_masks(
                p, e, s, config=config, least_iou=t, hq_token_only=o
            ),
            params,
            encoded,
            some,
        )


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(image_encoder=EfficientNetLiteConfig()), ["EfficientNetLiteConfig", "early"]),
        (dict(image_encoder=ImageEncoderViTConfig(global_layers=())), ["global_layers"]),
        (dict(num_multimask_outputs=0), ["num_multimask_outputs is 0"]),
    ],
)
def test_configs_without_what_it_needs(changes, words):
    with pytest.raises(ValueError) as error:
        SamConfig(hq=True, **changes)
    for word in words:
        assert word in str(error.value)


def test_embeddings_of_the_other_kind_of_model(model, encoded, clicks):
    with pytest.raises(ValueError, match="expected HqEmbeddings.*this is an HQ model"):
        decode(model, encoded.image_embeddings, clicks)
    plain = CONFIG.replace(hq=False)
    with pytest.raises(ValueError, match="HqEmbeddings; expected an array.*this is no HQ model"):
        inference.decode_masks(plain_params(model), encoded, clicks, config=plain)
    short = HqEmbeddings(encoded.image_embeddings, encoded.hq_features[:, :12])
    with pytest.raises(ValueError, match=r"hq_features has shape \(2, 12.*\(2, 48, 48, 4\)"):
        decode(model, short, clicks)


def test_the_hq_token_of_a_model_without_one(model, encoded, clicks):
    with pytest.raises(ValueError, match="hq_token_only is for HQ models"):
        inference.decode_masks(
            plain_params(model), encoded.image_embeddings, clicks,
            config=CONFIG.replace(hq=False), hq_token_only=True,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", PUBLISHED)
def test_at_full_size(make, measured):
    config = make(hq=True)
    reference = random_reference(config, seed=0)
    model = from_state_dict(reference.state_dict())
    assert model.config == config
    images = np.random.default_rng(0).normal(size=(1, 1024, 1024, 3)).astype(np.float32)
    theirs = hq_reference.encode(reference, images)
    fused = sum(hq_reference.fuse(reference, theirs))
    encoded = inference.encode_images(model.params, images)
    pairs = {
        "embedding": (encoded.image_embeddings, channels_last(theirs[0])),
        "fused features": (encoded.hq_features, channels_last(fused)),
    }
    for name, (ours, expected) in pairs.items():
        close(ours, expected, 1e-5)
        difference = np.abs(ours - expected).max() / np.abs(expected).max()
        measured(f"HQ {make.__name__}, {name}: differ by {difference:.1e} of the largest")

    coords = np.array([[[[500.0, 375.0], [0, 0]]]], np.float32)
    prompts = Prompts(coords, np.int32([[[PointLabel.FOREGROUND, PointLabel.NOT_A_POINT]]]))
    for multimask, only in ((False, False), (True, False), (True, True)):
        ours = inference.decode_masks(model.params, encoded, prompts, hq_token_only=only)
        ours = ours.select(multimask_output=multimask)
        masks, ious = hq_reference.decode(reference, theirs, coords[:, :, 0], multimask, only)
        close(ours.low_res_masks, masks, 1e-4)
        close(ours.iou_predictions, ious, 1e-4)
        difference = np.abs(ours.low_res_masks - masks).max()
        measured(
            f"HQ {make.__name__}, random weights, multimask {multimask}, HQ token only {only}: "
            f"logits differ by {difference / np.abs(masks).max():.1e} of the largest"
        )
