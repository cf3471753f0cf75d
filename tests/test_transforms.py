import types

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils import transforms as reference

from samjax.transforms import PIXEL_MEAN, PIXEL_STD, ResizeLongestSide, normalize_and_pad

SIZES = [
    (1200, 1800),
    (97, 131),
    (131, 97),
    (64, 64),
    (1, 1),
    (3, 5),
    (1, 40),
    (4, 300),
    (801, 533),
]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def their_preprocess(image: np.ndarray, image_size: int) -> np.ndarray:
    """Meta's own `Sam.preprocess`, run on what it reads of the model."""
    model = types.SimpleNamespace(
        pixel_mean=torch.tensor(PIXEL_MEAN).view(-1, 1, 1),
        pixel_std=torch.tensor(PIXEL_STD).view(-1, 1, 1),
        image_encoder=types.SimpleNamespace(img_size=image_size),
    )
    return Sam.preprocess(model, torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [64, 256, 1024])
def test_resized_pixels_equal_the_reference_bit_by_bit(size, target):
    image = picture(*size)
    theirs = reference.ResizeLongestSide(target).apply_image(image)
    ours = ResizeLongestSide(target).apply_image(image)
    np.testing.assert_array_equal(ours, theirs, strict=True)


def test_a_photo_equals_the_reference_bit_by_bit(shared_dir):
    image = np.array(Image.open(shared_dir / "data/images/groceries.jpg").convert("RGB"))
    theirs = reference.ResizeLongestSide(1024).apply_image(image)
    np.testing.assert_array_equal(ResizeLongestSide(1024).apply_image(image), theirs, strict=True)


def test_sizes_round_as_in_the_reference():
    for height, width in np.random.default_rng(0).integers(1, 5000, (3000, 2)).tolist():
        for target in (256, 1000, 1024):
            theirs = reference.ResizeLongestSide.get_preprocess_shape(height, width, target)
            ours = ResizeLongestSide.get_preprocess_shape(height, width, target)
            assert ours == tuple(max(1, side) for side in theirs)


@pytest.mark.parametrize("size", [(1, 2049), (2049, 1), (1, 20000)])
def test_a_side_never_vanishes(size):
    """The reference rounds to no pixels here, and Pillow then refuses."""
    transform = ResizeLongestSide(1024)
    assert min(reference.ResizeLongestSide.get_preprocess_shape(*size, 1024)) == 0
    resized = transform.apply_image(picture(*size))
    assert sorted(resized.shape) == [1, 3, 1024]
    np.testing.assert_allclose(
        transform.apply_coords(np.array([[size[1], size[0]]]), size), [resized.shape[1::-1]]
    )


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 4, 2), (0, 2)])
def test_coordinates_equal_the_reference_in_float64(dtype, shape):
    coords = (np.random.default_rng(0).random(shape) * 900).astype(dtype)
    before = coords.copy()
    for size in [(533, 801), (1200, 1800), (30, 11)]:
        theirs = reference.ResizeLongestSide(1024).apply_coords(coords, size)
        ours = ResizeLongestSide(1024).apply_coords(coords, size)
        np.testing.assert_array_equal(ours, theirs, strict=True)
    np.testing.assert_array_equal(coords, before)


@pytest.mark.parametrize("shape", [(4,), (6, 4), (0, 4)])
def test_boxes_equal_the_reference(shape):
    boxes = np.random.default_rng(0).integers(0, 800, shape)
    theirs = reference.ResizeLongestSide(1024).apply_boxes(boxes, (533, 801))
    ours = ResizeLongestSide(1024).apply_boxes(boxes, (533, 801))
    np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("height, width", [(256, 256), (171, 256), (256, 1), (1, 1)])
def test_normalized_pixels_equal_the_reference_bit_by_bit(height, width):
    image = picture(height, width)
    ours = normalize_and_pad(image, 256)
    np.testing.assert_array_equal(ours, their_preprocess(image, 256), strict=True)


def test_padding_is_zero_after_normalization():
    padded = normalize_and_pad(picture(30, 40), 64)
    assert padded[:30, :40].all()
    assert not padded[30:].any() and not padded[:, 40:].any()


def test_other_means_and_deviations():
    image = picture(8, 8)
    ours = normalize_and_pad(image, 8, pixel_mean=(0, 0, 0), pixel_std=(255, 255, 255))
    np.testing.assert_array_equal(ours, image.astype(np.float32) / np.float32(255))


def test_a_picture_larger_than_the_model_input_is_refused():
    with pytest.raises(ValueError, match=r"300 x 200 pixels does not fit.*ResizeLongestSide\(256"):
        normalize_and_pad(picture(300, 200), 256)


@pytest.mark.parametrize("height, width", [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_is_refused(height, width):
    with pytest.raises(ValueError, match="must be at least 1 pixel"):
        ResizeLongestSide.get_preprocess_shape(height, width, 1024)


def test_a_target_without_pixels_is_refused():
    with pytest.raises(ValueError, match="target_length must be at least 1 pixel, not 0"):
        ResizeLongestSide(0)
