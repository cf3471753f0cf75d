"""Windows of run lengths, against slices of the mask itself."""

import numpy as np
import pytest

from samjax.postprocess import compress_mask, mask_to_rle, reframe_rle, rle_to_mask


def window(mask, box):
    x0, y0, x1, y1 = box
    height, width = mask.shape
    seen = np.zeros((y1 - y0, x1 - x0), bool)
    for y in range(max(0, y0), min(height, y1)):
        for x in range(max(0, x0), min(width, x1)):
            seen[y - y0, x - x0] = mask[y, x]
    return seen


def masks():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.05, 0.5, 0.95, 1.0):
        yield rng.random((7, 9)) < density
    yield np.eye(9, dtype=bool)[:7]
    yield np.array([[True]])


@pytest.mark.parametrize("compress", [compress_mask, mask_to_rle], ids=["string", "list"])
def test_a_window_is_what_it_shows(compress):
    rng = np.random.default_rng(1)
    for mask in masks():
        for _ in range(40):
            (x0, y0), (width, height) = rng.integers(-4, 9, 2), rng.integers(1, 15, 2)
            box = tuple(int(v) for v in (x0, y0, x0 + width, y0 + height))
            assert reframe_rle(compress(mask), box) == compress_mask(window(mask, box)), box


def test_the_frame_itself_and_back_again():
    for mask in masks():
        rle = compress_mask(mask)
        height, width = mask.shape
        assert reframe_rle(rle, (0, 0, width, height)) == rle
        placed = reframe_rle(rle, (-3, -5, width + 2, height + 1))
        assert reframe_rle(placed, (3, 5, 3 + width, 5 + height)) == rle


def test_a_frame_that_no_bitmap_could_have():
    side = 60_000
    placed = reframe_rle(compress_mask(np.ones((2, 3), bool)), (-side + 3, 0, 3, side))
    assert placed["size"] == [side, side]
    corner = reframe_rle(placed, (side - 4, 0, side, 3))
    expected = [[False, True, True, True]] * 2 + [[False] * 4]
    assert rle_to_mask(corner).tolist() == expected


@pytest.mark.parametrize("box", [(0, 0, 0, 4), (0, 4, 3, 4), (0, 0, 70_000, 70_000)])
def test_a_window_without_pixels_or_with_too_many(box):
    with pytest.raises(ValueError, match="the window"):
        reframe_rle(compress_mask(np.ones((2, 2), bool)), box)


def test_a_damaged_mask():
    with pytest.raises(ValueError, match="do not fill a mask of 2 x 2"):
        reframe_rle({"size": [2, 2], "counts": [1, 2]}, (0, 0, 1, 1))
