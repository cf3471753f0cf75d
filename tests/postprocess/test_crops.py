import numpy as np
import pytest
import torch
from segment_anything.utils import amg

from samjax.postprocess import crops


@pytest.mark.parametrize("n_per_side", [1, 2, 3, 16, 32, 33, 64, 100])
def test_grid_equals_the_reference_bit_by_bit(n_per_side):
    grid = crops.build_point_grid(n_per_side)
    np.testing.assert_array_equal(grid, amg.build_point_grid(n_per_side), strict=True)


@pytest.mark.parametrize("arguments", [(32, 0, 1), (32, 2, 1), (32, 3, 2), (10, 2, 3), (7, 1, 7)])
def test_grids_of_all_layers_equal_the_reference(arguments):
    grids = crops.build_all_layer_point_grids(*arguments)
    theirs = amg.build_all_layer_point_grids(*arguments)
    for grid, expected in zip(grids, theirs, strict=True):
        np.testing.assert_array_equal(grid, expected, strict=True)


@pytest.mark.parametrize("n_per_side", [0, -3])
def test_a_grid_without_points_is_refused(n_per_side):
    with pytest.raises(ValueError, match="at least 1 point per side"):
        crops.build_point_grid(n_per_side)


def test_a_crop_layer_without_points_is_refused():
    with pytest.raises(ValueError, match="crop layer 2 would be empty.*smaller downscale factor"):
        crops.build_all_layer_point_grids(3, 2, 2)


@pytest.mark.parametrize("size", [(1200, 1800), (533, 801), (64, 2000), (97, 97), (71, 45)])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("overlap_ratio", [0.0, 512 / 1500, 0.77, 1.0])
def test_crops_equal_the_reference_in_order(size, n_layers, overlap_ratio):
    boxes, layers = crops.generate_crop_boxes(size, n_layers, overlap_ratio)
    expected_boxes, expected_layers = amg.generate_crop_boxes(size, n_layers, overlap_ratio)
    assert boxes == expected_boxes
    assert layers == expected_layers


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (5, 7)])
def test_tiny_pictures_lose_only_the_crops_without_pixels(size):
    boxes, layers = crops.generate_crop_boxes(size, 3, 512 / 1500)
    theirs = zip(*amg.generate_crop_boxes(size, 3, 512 / 1500), strict=True)
    expected = [(b, layer) for b, layer in theirs if b[0] < b[2] and b[1] < b[3]]
    assert list(zip(boxes, layers, strict=True)) == expected
    assert boxes[0] == [0, 0, size[1], size[0]]


@pytest.mark.parametrize(
    "size, n_layers, overlap_ratio, message",
    [
        ((0, 10), 1, 0.3, "0 x 10 pixels"),
        ((10, 10), -1, 0.3, "must not be negative"),
        ((10, 10), 1, 1.5, r"overlap ratio must lie in \[0, 1\]"),
        ((10, 10), 1, -0.1, "overlap ratio"),
        ((10, 10), 1, float("nan"), "overlap ratio"),
    ],
)
def test_impossible_crops_are_refused(size, n_layers, overlap_ratio, message):
    with pytest.raises(ValueError, match=message):
        crops.generate_crop_boxes(size, n_layers, overlap_ratio)


@pytest.mark.parametrize("crop", [[0, 0, 30, 20], [3, 5, 12, 19], [20, 0, 30, 20]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_uncropped_mask_equals_the_reference_and_keeps_its_order(crop, order):
    x0, y0, x1, y1 = crop
    mask = np.random.default_rng(0).random((y1 - y0, x1 - x0)) < 0.5
    whole = crops.uncrop_mask(np.asarray(mask, order=order), crop, (20, 30))
    theirs = amg.uncrop_masks(torch.from_numpy(mask)[None], crop, 20, 30)[0].numpy()
    np.testing.assert_array_equal(whole, theirs)
    assert whole.flags.f_contiguous == (order == "F")
