"""Every module against Meta's `segment_anything`, with random weights, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from reference import random_reference
from samjax import inference
from samjax.convert import from_state_dict
from samjax.models import ImageEncoderViTConfig, SamConfig
from samjax.types import PointLabel, Prompts

pytestmark = pytest.mark.optimized

SMALL = {
    "256": SamConfig.tiny(256),
    "512, patch 32, one head": SamConfig(
        image_encoder=ImageEncoderViTConfig(
            image_size=512, patch_size=32, width=48, depth=3, num_heads=1, mlp_width=100,
            out_channels=64, window_size=7, global_layers=(0, 2),
        ),
        mask_channels=24, decoder_depth=3, decoder_heads=4, decoder_mlp_width=96,
        num_multimask_outputs=5, iou_head_depth=2, iou_head_width=24,
    ),
    "512, patch 16, windows only": SamConfig(
        image_encoder=ImageEncoderViTConfig(
            image_size=512, patch_size=16, width=64, depth=2, num_heads=4, mlp_width=128,
            out_channels=32, window_size=14, global_layers=(),
        ),
    ),
    "192, global only, window as large as the grid": SamConfig(
        image_encoder=ImageEncoderViTConfig(
            image_size=192, patch_size=16, width=32, depth=2, num_heads=2, mlp_width=64,
            out_channels=16, window_size=12, global_layers=(0, 1),
        ),
    ),
}  # fmt: skip

CLICK, BACKGROUND, NOTHING = PointLabel.FOREGROUND, PointLabel.BACKGROUND, PointLabel.NOT_A_POINT
CORNERS = (PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT)


@pytest.fixture(scope="module", params=SMALL, ids=lambda name: name.replace(", ", "-"))
def pair(request):
    """Meta's model and the module with the same weights."""
    reference = random_reference(SMALL[request.param], seed=1)
    model = from_state_dict(reference.state_dict())
    config = model.config.replace(decoder_heads=SMALL[request.param].decoder_heads)
    return reference, inference.bind(config, model.params), config


def close(ours, theirs, relative):
    """Within `relative` of the largest value there is."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(np.asarray(x))


def channels_first(x):
    return to_torch(np.moveaxis(np.asarray(x), -1, -3).copy())


def test_image_encoder(pair):
    reference, sam, config = pair
    images = normal(2, config.image_size, config.image_size, 3)
    ours = jax.jit(sam.image_encoder)(images)
    theirs = reference.image_encoder(channels_first(images))
    close(np.moveaxis(ours, -1, 1), theirs, 2e-6)


def test_dense_positional_encoding(pair):
    reference, sam, _ = pair
    ours = np.moveaxis(sam.prompt_encoder.get_dense_pe(), -1, 0)[None]
    close(ours, reference.prompt_encoder.get_dense_pe(), 1e-5)


@pytest.mark.parametrize("points, box", [(1, False), (3, False), (0, True), (2, True)])
def test_points_and_boxes(pair, points, box):
    reference, sam, config = pair
    rng = np.random.default_rng(points)
    coords = rng.uniform(0, config.image_size, (points + 2 * box, 2)).astype(np.float32)
    labels = rng.integers(0, 2, points).astype(np.int32)
    theirs, _ = reference.prompt_encoder(
        points=(to_torch(coords[None, :points]), to_torch(labels[None])) if points else None,
        boxes=to_torch(coords[None, points:].reshape(1, 4)) if box else None,
        masks=None,
    )
    all_labels = np.append(labels, CORNERS if box else [NOTHING]).astype(np.int32)
    all_coords = coords if box else np.append(coords, [[0, 0]], axis=0).astype(np.float32)
    ours = jax.jit(sam.prompt_encoder)(Prompts(jnp.asarray(all_coords), jnp.asarray(all_labels)))
    close(ours.sparse, theirs[0], 2e-5)
    assert ours.valid.all()


def test_mask_prompt(pair):
    reference, sam, config = pair
    mask = 10 * normal(config.low_res_size, config.low_res_size)
    _, theirs = reference.prompt_encoder(None, None, masks=to_torch(mask[None, None]))
    labels = jnp.full(2, PointLabel.PADDING, jnp.int32)
    ours = jax.jit(sam.prompt_encoder)(Prompts(jnp.zeros((2, 2)), labels, jnp.asarray(mask)))
    close(np.moveaxis(ours.dense, -1, 0), theirs[0], 2e-6)
    assert not ours.valid.any()


def test_no_mask_prompt(pair):
    reference, sam, _ = pair
    _, theirs = reference.prompt_encoder(None, torch.zeros(1, 4), None)
    ours = jax.jit(sam.prompt_encoder)(Prompts(jnp.zeros((2, 2)), jnp.asarray(CORNERS, jnp.int32)))
    np.testing.assert_array_equal(np.moveaxis(ours.dense, -1, 0), theirs[0])


def test_two_way_transformer(pair):
    reference, sam, config = pair
    grid, width = config.grid_size, config.embed_dim
    image, image_pe, tokens = normal(grid, grid, width), normal(grid, grid, width), normal(7, width)
    ours = jax.jit(sam.mask_decoder.transformer)(
        jnp.asarray(image.reshape(-1, width)),
        jnp.asarray(image_pe.reshape(-1, width)),
        jnp.asarray(tokens),
        jnp.ones(7, bool),
    )
    theirs = reference.mask_decoder.transformer(
        channels_first(image)[None], channels_first(image_pe)[None], to_torch(tokens[None])
    )
    for a, b in zip(ours, theirs, strict=True):
        close(a, b[0], 3e-6)


def test_mask_decoder(pair):
    reference, sam, config = pair
    grid, width = config.grid_size, config.embed_dim
    image = normal(grid, grid, width)
    coords = np.random.default_rng(2).uniform(0, config.image_size, (2, 2)).astype(np.float32)
    prompt = jax.jit(sam.prompt_encoder)(
        Prompts(jnp.asarray(coords), jnp.asarray(CORNERS, jnp.int32))
    )
    ours = jax.jit(sam.mask_decoder)(jnp.asarray(image), sam.prompt_encoder.get_dense_pe(), prompt)
    sparse, dense = reference.prompt_encoder(None, to_torch(coords.reshape(1, 4)), None)
    for multimask in (False, True):
        masks, ious = reference.mask_decoder(
            image_embeddings=channels_first(image)[None],
            image_pe=reference.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        chosen = ours.select(multimask_output=multimask)
        close(chosen.low_res_masks, masks[0], 1e-5)
        close(chosen.iou_predictions, ious[0], 1e-5)


def test_whole_model(pair):
    """Two pictures, three prompts on each, jitted, against Meta's modules one prompt at a time."""
    reference, sam, config = pair
    images = normal(2, config.image_size, config.image_size, 3)
    coords = np.random.default_rng(3).uniform(0, config.image_size, (2, 3, 2, 2))
    coords = coords.astype(np.float32)
    labels = np.broadcast_to(np.int32([CLICK, NOTHING]), (2, 3, 2))
    ours = jax.jit(sam)(images, Prompts(coords, labels))
    embeddings = reference.image_encoder(channels_first(images))
    for b in range(2):
        sparse, dense = reference.prompt_encoder(
            (to_torch(coords[b, :, :1]), to_torch(labels[b, :, :1].copy())), None, None
        )
        masks, ious = reference.mask_decoder(
            embeddings[b : b + 1], reference.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
        chosen = ours.select(multimask_output=True)
        close(chosen.low_res_masks[b], masks, 2e-5)
        close(chosen.iou_predictions[b], ious, 2e-5)


def check_full_size(config, measured, name):
    reference = random_reference(config, seed=0)
    model = from_state_dict(reference.state_dict())
    assert model.config == config
    images = normal(1, 1024, 1024, 3)
    with torch.no_grad():
        theirs = reference.image_encoder(channels_first(images))
    ours = inference.encode_images(model.params, images)
    difference = np.abs(np.moveaxis(np.asarray(ours), -1, 1) - theirs.numpy()).max()
    largest = theirs.abs().max().item()
    measured(
        f"{name}, random weights: image embedding differs by {difference:.1e} at most, "
        f"{difference / largest:.1e} of its largest value"
    )
    assert difference <= 1e-4 * largest

    coords = np.array([[[[500.0, 375.0], [0, 0]]]], np.float32)
    prompts = Prompts(coords, np.int32([[[CLICK, NOTHING]]]))
    result = inference.decode_masks(model.params, ours, prompts).select(multimask_output=True)
    with torch.no_grad():
        sparse, dense = reference.prompt_encoder(
            (to_torch(coords[0, :, :1]), torch.ones(1, 1)), None, None
        )
        masks, ious = reference.mask_decoder(
            theirs, reference.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
    close(result.low_res_masks[0], masks, 1e-4)
    close(result.iou_predictions[0], ious, 1e-4)


def test_vit_b(measured):
    check_full_size(SamConfig.vit_b(), measured, "ViT-B")


@pytest.mark.slow
def test_vit_l(measured):
    check_full_size(SamConfig.vit_l(), measured, "ViT-L")


@pytest.mark.slow
def test_vit_h(measured):
    check_full_size(SamConfig.vit_h(), measured, "ViT-H")
