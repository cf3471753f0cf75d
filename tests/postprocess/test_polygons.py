"""One polygon for a mask of any shape: filled, it is the mask again."""

import cv2
import numpy as np
import pytest

from samjax.postprocess import mask_to_polygon


def filled(polygon, size):
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [np.rint(polygon).astype(np.int32)], 1)
    return canvas.astype(bool)


def disc(canvas, x, y, radius, value=1):
    cv2.circle(canvas, (x, y), radius, value, -1)


def signed_area(polygon):
    x, y = polygon.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def test_one_part_comes_back_exactly():
    canvas = np.zeros((90, 120), np.uint8)
    disc(canvas, 60, 40, 30)
    mask = canvas.astype(bool)
    polygon = mask_to_polygon(mask)
    assert polygon.dtype == np.float32
    np.testing.assert_array_equal(filled(polygon, mask.shape), mask)


@pytest.mark.parametrize("order", ["C", "F"])
def test_parts_and_holes_are_bridged(order):
    canvas = np.zeros((200, 300), np.uint8)
    disc(canvas, 80, 90, 60)
    disc(canvas, 80, 90, 30, 0)
    disc(canvas, 80, 90, 10)
    disc(canvas, 230, 60, 40)
    disc(canvas, 230, 170, 20)
    mask = np.asarray(canvas.astype(bool), order=order)
    polygon = mask_to_polygon(mask)
    again = filled(polygon, mask.shape)
    assert again[mask].all()
    # Bridges are lines of a pixel: from ring to island, to the second disc, and to the third.
    assert 0 < (again & ~mask).sum() <= 20 + 50 + 60
    # Rings of holes run the other way round, so that areas are subtracted.
    expected = np.pi * (60**2 - 30**2 + 10**2 + 40**2 + 20**2)
    assert abs(abs(signed_area(polygon)) / expected - 1) < 0.05


def test_ragged_masks_lose_nothing():
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(size=(120, 160)), (0, 0), 3)
    mask = noise > 0.03
    again = filled(mask_to_polygon(mask), mask.shape)
    assert again[mask].all()
    assert (again & mask).sum() / (again | mask).sum() > 0.97


@pytest.mark.parametrize("pixels", [[(3, 4)], [(3, 4), (3, 5)], [(0, 0), (9, 9)]])
def test_masks_of_few_pixels(pixels):
    mask = np.zeros((10, 10), bool)
    for y, x in pixels:
        mask[y, x] = True
    polygon = mask_to_polygon(mask)
    assert {tuple(point[::-1]) for point in polygon.astype(int).tolist()} >= set(pixels)


def test_an_empty_mask_has_no_points():
    assert mask_to_polygon(np.zeros((5, 6), bool)).shape == (0, 2)
