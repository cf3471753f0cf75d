"""HQ-SAM on TinyViT against `segment_anything_hq`'s, with random weights, float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hq_reference
from hq_reference import channels_last, close
from reference import random_reference
from samjax import inference
from samjax.checkpoint import Model
from samjax.convert import from_state_dict
from samjax.models import SamConfig, TinyViTConfig
from samjax.types import PointLabel, Prompts

pytestmark = pytest.mark.optimized

CONFIG = SamConfig.vit_t(
    image_encoder=TinyViTConfig(
        image_size=160, widths=(16, 24, 32, 320), depths=(1, 1, 1, 1), num_heads=(2, 1, 5)
    ),
    decoder_depth=1, decoder_mlp_width=64, hq=True,
)  # fmt: skip
PICTURES, PROMPTS = 2, 4


@pytest.fixture(scope="module")
def pair():
    reference = random_reference(CONFIG, seed=1)
    assert type(reference.image_encoder).__mro__[1].__module__.startswith("segment_anything_hq.")
    return reference, Model(from_state_dict(reference.state_dict()).params, CONFIG)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(PICTURES, 160, 160, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def ours(pair, images):
    """Early features, and what decoding takes, in one program."""

    @jax.jit
    def encode(params, images):
        sam = inference.bind(CONFIG, params)
        return sam.image_encoder.with_early_features(images)[1], sam.encode(images)

    return encode(pair[1].params, images)


@pytest.fixture(scope="module")
def decode(pair, clicks):
    """Predictions with the HQ token added to the chosen mask, and with it alone."""

    @jax.jit
    def both(params, encoded):
        return [
            inference.decode_masks(params, encoded, clicks, config=CONFIG, hq_token_only=only)
            for only in (False, True)
        ]

    return functools.partial(both, pair[1].params)


@pytest.fixture(scope="module")
def theirs(pair, images):
    return hq_reference.encode(pair[0], images)


@pytest.fixture(scope="module")
def clicks():
    coords = np.zeros((PICTURES, PROMPTS, 2, 2), np.float32)
    coords[:, :, 0] = np.random.default_rng(2).uniform(0, 160, (PICTURES, PROMPTS, 2))
    labels = np.int32([PointLabel.FOREGROUND, PointLabel.NOT_A_POINT])
    return Prompts(coords, np.broadcast_to(labels, (PICTURES, PROMPTS, 2)))


def test_early_features_are_the_second_stages(ours, theirs):
    early, encoded = ours
    embedding, intermediate = theirs
    assert len(intermediate) == 1 and early.shape == (PICTURES, 10, 10, 32)
    close(early, intermediate[0], 5e-6)
    close(encoded.image_embeddings, channels_last(embedding), 5e-6)


def test_fused_features(pair, ours, theirs):
    found = ours[1].hq_features
    of_embedding, of_early = hq_reference.fuse(pair[0], theirs)
    assert found.shape == (PICTURES, 40, 40, 32)
    close(found, channels_last(of_embedding + of_early), 5e-6)
    assert 0.5 < of_embedding.std() / of_early.std() < 2


@pytest.mark.parametrize("hq_token_only", [False, True])
@pytest.mark.parametrize("multimask_output", [False, True])
def test_masks(pair, ours, decode, clicks, theirs, measured, hq_token_only, multimask_output):
    found = decode(ours[1])[hq_token_only].select(multimask_output=multimask_output)
    masks, ious = hq_reference.decode(
        pair[0], theirs, clicks.coords[:, :, 0], multimask_output, hq_token_only
    )
    assert found.low_res_masks.shape == (PICTURES, PROMPTS, 1, 40, 40)
    close(found.low_res_masks, masks, 5e-6)
    close(found.iou_predictions, ious, 5e-6)
    difference = np.abs(found.low_res_masks - masks).max()
    measured(
        f"HQ TinyViT, 160 pixels, multimask {multimask_output}, HQ token only {hq_token_only}: "
        f"logits differ by {difference:.1e} on a scale of {np.abs(masks).max():.1f}"
    )


def test_the_fused_features_have_their_share(ours, decode):
    """So that the comparisons above would see what is wrong in them."""
    encoded = ours[1]
    without = encoded._replace(hq_features=jnp.zeros_like(encoded.hq_features))
    for whole, less in zip(decode(encoded), decode(without), strict=True):
        share = whole.low_res_masks - less.low_res_masks
        assert float(jnp.std(share)) > 0.1 * float(jnp.std(whole.low_res_masks))
