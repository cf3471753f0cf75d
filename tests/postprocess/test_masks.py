import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from segment_anything.utils import amg
from torch.nn import functional

from samjax.postprocess.masks import axis_weights, masks_to_boxes, stability_score, upscale_masks

LOW_RES, IMAGE_SIZE = 64, 256

# (height, width) of the picture, and of the same picture in the model's frame.
SIZES = [
    ((256, 256), (256, 256)),
    ((300, 450), (171, 256)),
    ((1200, 1800), (171, 256)),
    ((97, 131), (189, 256)),
    ((40, 23), (256, 147)),
    ((511, 257), (256, 129)),
    ((64, 64), (256, 256)),
    ((1, 1), (256, 256)),
    ((1, 700), (1, 256)),
    ((999, 1), (256, 1)),
    ((2, 3000), (1, 256)),
    ((7, 5), (256, 183)),
]


def smooth_logits(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Logits of a decoder's kind: blobs on a scale of about 30, with edges that cross zero."""
    coarse = np.random.default_rng(seed).normal(size=(count, 1, 12, 12)).astype(np.float32)
    resized = functional.interpolate(torch.from_numpy(coarse), (side, side), mode="bicubic")
    return 20 * resized[:, 0].numpy()


def two_step(logits: np.ndarray, image_size: int, input_size, original_size) -> np.ndarray:
    """What `Sam.postprocess_masks` does, which needs a whole model to be called."""
    masks = torch.from_numpy(logits)[None]
    masks = functional.interpolate(masks, (image_size, image_size), mode="bilinear")
    masks = masks[..., : input_size[0], : input_size[1]]
    return functional.interpolate(masks, original_size, mode="bilinear")[0].numpy()


def weights_for(input_size, original_size, low_res=LOW_RES, image_size=IMAGE_SIZE):
    return [
        axis_weights(low_res, image_size, inside, outside)
        for inside, outside in zip(input_size, original_size, strict=True)
    ]


@pytest.mark.parametrize("original_size, input_size", SIZES)
def test_upscaling_equals_the_two_resizes_of_the_reference(original_size, input_size):
    logits = smooth_logits(3, LOW_RES)
    ours = np.asarray(upscale_masks(logits, *weights_for(input_size, original_size)))
    theirs = two_step(logits, IMAGE_SIZE, input_size, original_size)
    assert ours.shape == theirs.shape == (3, *original_size)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
    assert np.count_nonzero((ours > 0) != (theirs > 0)) <= 1e-6 * ours.size


def test_upscaling_at_full_size_flips_at_most_two_pixels():
    logits = smooth_logits(1, 256, seed=5)
    weights = weights_for((683, 1024), (1365, 2048), 256, 1024)
    ours = np.asarray(upscale_masks(logits, *weights))
    theirs = two_step(logits, 1024, (683, 1024), (1365, 2048))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
    assert np.count_nonzero((ours > 0) != (theirs > 0)) <= 2


@pytest.mark.parametrize("low_res, image_size, inside, outside", [(64, 256, 171, 1200),
    (64, 256, 256, 97), (256, 1024, 1024, 20000), (64, 256, 1, 1), (20, 33, 29, 31)])  # fmt: skip
def test_weights_have_at_most_four_taps_that_sum_to_one(low_res, image_size, inside, outside):
    weights = axis_weights(low_res, image_size, inside, outside)
    assert weights.shape == (outside, low_res) and weights.dtype == np.float32
    assert (weights >= 0).all()
    assert np.count_nonzero(weights, axis=1).max() <= 4
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=3e-7)


def test_weights_are_shared_and_read_only():
    weights = axis_weights(64, 256, 100, 300)
    assert axis_weights(64, 256, 100, 300) is weights
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1


def test_padded_weights_give_the_same_pixels_and_zeros_after_them():
    logits = smooth_logits(2, LOW_RES)
    rows, columns = weights_for((171, 256), (300, 450))
    padded_rows = axis_weights(LOW_RES, IMAGE_SIZE, 171, 300, 512)
    padded_columns = axis_weights(LOW_RES, IMAGE_SIZE, 256, 450, 512)
    np.testing.assert_array_equal(padded_rows[:300], rows)
    plain = np.asarray(upscale_masks(logits, rows, columns))
    padded = np.asarray(upscale_masks(logits, padded_rows, padded_columns))
    tolerance = 1e-6 * np.abs(plain).max()
    np.testing.assert_allclose(padded[:, :300, :450], plain, rtol=0, atol=tolerance)
    assert not padded[:, 300:].any() and not padded[:, :, 450:].any()


def test_upscaling_takes_any_leading_axes_and_bfloat16_under_jit():
    logits = smooth_logits(6, LOW_RES)
    weights = weights_for((171, 256), (90, 131))
    flat = upscale_masks(logits, *weights)
    nested = jax.jit(upscale_masks)(logits.reshape(2, 3, LOW_RES, LOW_RES), *weights)
    single = upscale_masks(logits[4], *weights)
    tolerance = 1e-6 * np.abs(flat).max()
    np.testing.assert_allclose(nested.reshape(flat.shape), flat, rtol=0, atol=tolerance)
    np.testing.assert_allclose(single, flat[4], rtol=0, atol=tolerance)
    half = jnp.asarray(logits, jnp.bfloat16)
    from_half = upscale_masks(half, *weights)
    assert from_half.dtype == jnp.float32
    np.testing.assert_allclose(from_half, upscale_masks(half.astype(jnp.float32), *weights))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((64, 256, 0, 300), "at least 1"),
        ((64, 256, 257, 300), "input_length at most image_size"),
        ((64, 256, 100, 300, 299), "padded_length=299 is below output_length=300"),
    ],
)
def test_impossible_lengths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        axis_weights(*arguments)


def rough_logits(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=2, size=(count, height, width)).astype("f4")


@pytest.mark.parametrize("threshold, offset", [(0.0, 1.0), (0.0, 0.0), (-0.7, 0.3), (0.1, 0.95)])
def test_stability_equals_the_reference(threshold, offset):
    logits = rough_logits(5, 37, 53)
    logits[2] = -9
    logits[3] = 9
    theirs = amg.calculate_stability_score(torch.from_numpy(logits), threshold, offset).numpy()
    ours = np.asarray(stability_score(logits, threshold, offset))
    assert ours.dtype == theirs.dtype and np.isnan(theirs[2]) and theirs[3] == 1
    np.testing.assert_array_equal(ours, theirs)


def test_stability_counts_large_masks_exactly():
    """131072 rows of 16: past where float32 sums or a miscompiled reduction would lose pixels."""
    logits = rough_logits(1, 131072, 16)
    logits[0, 40000:90000] = 5
    theirs = amg.calculate_stability_score(torch.from_numpy(logits), 0.0, 1.0).numpy()
    np.testing.assert_array_equal(jax.jit(stability_score)(logits, 0.0, 1.0), theirs)


def test_stability_of_a_row_wider_than_int16():
    logits = np.full((1, 2, 40000), 0.5, np.float32)
    logits[0, 0, :10000] = 3
    np.testing.assert_array_equal(stability_score(logits, 0.0, 1.0), np.float32(10000 / 80000))


def test_padding_does_not_count_towards_stability():
    logits = rough_logits(4, 30, 40)
    score = jax.jit(stability_score)
    plain = score(logits, 0.0, 1.0)
    for fill in (-7.0, 0.0, 7.0):
        padded = np.full((4, 48, 64), fill, np.float32)
        padded[:, :30, :40] = logits
        ours = score(padded, 0.0, 1.0, height=np.int32(30), width=np.int32(40))
        np.testing.assert_array_equal(ours, plain)
    assert score(padded, 0.0, 1.0)[0] != plain[0]


def test_pictures_of_one_padded_shape_share_a_compilation():
    score = jax.jit(lambda *args, **sizes: stability_score(*args, **sizes))
    logits = rough_logits(2, 24, 32)
    for height, width in [(24, 32), (20, 30), (1, 1)]:
        score(logits, 0.0, 1.0, height=np.int32(height), width=np.int32(width))
    assert score._cache_size() == 1


@pytest.mark.parametrize("shape", [(6, 31, 17), (2, 3, 20, 40), (9, 1, 1), (25, 12), (4, 1, 30)])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.05, 1.0])
def test_boxes_equal_the_reference(shape, density):
    masks = np.random.default_rng(1).random(shape) < density
    theirs = amg.batched_mask_to_box(torch.from_numpy(masks)).numpy()
    ours = np.asarray(jax.jit(masks_to_boxes)(masks))
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 8, 8), (2, 0, 8), (2, 8, 0)])
def test_boxes_of_nothing_are_zeros(shape):
    boxes = np.asarray(masks_to_boxes(np.zeros(shape, bool)))
    assert boxes.shape == (shape[0], 4) and not boxes.any()


def test_boxes_include_both_ends():
    mask = np.zeros((10, 12), bool)
    mask[3:6, 2] = True
    mask[4, 2:9] = True
    np.testing.assert_array_equal(masks_to_boxes(mask), [2, 3, 8, 5])
