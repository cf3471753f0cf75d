"""Masks across tiles, of tiles whose own masks are exact: the picture's have to be exact too."""

import cv2
import numpy as np
import pytest
from label_pictures import ReadsLabels, picture_of, record_of

from samjax.everything.joining import Joining
from samjax.postprocess import compress_mask, rle_to_mask
from samjax.tiled_mask_generator import TiledMaskGenerator

TILE = dict(tile=40, overlap=0.25)


def found_in(labels, *, parts=(), **options):
    generator = TiledMaskGenerator(ReadsLabels(parts), **TILE | options)
    return generator.generate(picture_of(labels.astype(np.uint8)))


def masks_of(records):
    return sorted(record["segmentation"]["counts"] for record in records)


def truth_of(labels):
    things = [labels == label for label in np.unique(labels) if label]
    return sorted(compress_mask(mask)["counts"] for mask in things)


def scattered(seed, size):
    """Discs and boxes of all sizes, later ones over earlier ones; each label is one region."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(60):
        cy, cx, r = *rng.uniform(0, size), 2 + 45 * rng.random() ** 2
        disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
        box = (abs(y - cy) < r / 4) & (abs(x - cx) < r)
        labels[disc if rng.random() < 0.5 else box] = labels.max() + 1
    regions = np.zeros_like(labels)
    for label in np.unique(labels)[1:]:
        number, pieces = cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=4)
        for piece in range(1, number):
            regions[pieces == piece] = regions.max() + 1
    return regions


@pytest.mark.parametrize("seed, size", [*enumerate([(150, 170), (100, 41), (39, 200), (137, 93)])])
def test_things_of_all_sizes_come_out_whole(seed, size):
    labels = scattered(seed, size)
    assert labels.max() >= 10
    assert masks_of(found_in(labels)) == truth_of(labels)


def test_across_three_tiles_around_a_corner():
    labels = np.zeros((100, 100), int)
    labels[5:10, 3:97] = labels[5:97, 92:97] = 1
    (record,) = found_in(labels)
    np.testing.assert_array_equal(rle_to_mask(record["segmentation"]), labels == 1)
    assert record["area"] == (labels == 1).sum()
    assert record["bbox"] == [3, 5, 93, 91]
    assert record["crop_box"] == [0, 0, 100, 100]
    assert record["predicted_iou"] == pytest.approx(0.9)
    assert record["stability_score"] == pytest.approx(0.95)
    assert len(record["point_coords"]) == 5
    assert all(labels[int(y), int(x)] == 1 for x, y in record["point_coords"])


def test_two_that_touch_stay_two():
    labels = np.zeros((60, 100), int)
    labels[10:50, 2:37], labels[10:50, 37:98] = 1, 2
    assert masks_of(found_in(labels)) == truth_of(labels)
    labels[10:30, 2:98], labels[30:50, 2:98] = 1, 2
    assert masks_of(found_in(labels)) == truth_of(labels)


def test_a_picture_of_one_thing_and_one_of_none():
    (record,) = found_in(np.ones((95, 130)))
    assert record["segmentation"] == compress_mask(np.ones((95, 130), bool))
    assert found_in(np.zeros((95, 130))) == []


def test_what_an_overlap_shows_twice_is_there_once_with_its_own_record():
    labels = np.zeros((40, 70), int)
    labels[10:15, 32:37] = 1
    (record,) = found_in(labels)
    assert record["bbox"] == [32, 10, 4, 4]
    assert record["area"] == 25
    assert record["point_coords"] == [[32.0, 10.0]]
    assert record["crop_box"] in ([0, 0, 40, 40], [30, 0, 40, 40])


def test_a_part_is_not_joined_to_its_whole():
    """The second tile sees the wheel alone; the first has the truck and the wheel, which agree
    with it equally in what the two share."""
    labels = np.zeros((40, 70), int)
    labels[5:30, 2:30], labels[20:35, 30:60] = 1, 2
    found = found_in(labels, parts=[[1, 2]])
    truck = (labels > 0) & (np.arange(70) < 40)
    assert masks_of(found) == sorted([*truth_of(labels), compress_mask(truck)["counts"]])


def test_part_and_whole_that_both_cross():
    labels = np.zeros((60, 100), int)
    labels[5:55, 2:98], labels[20:30, 10:90] = 1, 2
    found = masks_of(found_in(labels, parts=[[1, 2]]))
    assert found == sorted([*truth_of(labels), compress_mask(labels > 0)["counts"]])


TILES = [(0, 0, 10, 8), (6, 0, 16, 8)]


def halves(*, agreeing_rows):
    """A bar over both tiles, of which the second sees the lower rows only."""
    first, second = np.zeros((8, 10), bool), np.zeros((8, 10), bool)
    first[0:8, 2:10] = True
    second[8 - agreeing_rows : 8, 0:7] = True
    return first, second


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("rows, joined", [(4, False), (5, False), (6, True), (8, True)])
def test_only_what_agrees_is_joined(rows, joined, order):
    joining = Joining(TILES, 0.7)
    masks = halves(agreeing_rows=rows)
    for tile in order:
        joining.add(tile, [record_of(masks[tile])])
    records = joining.records((8, 16), "binary_mask")
    assert len(records) == 2 - joined
    whole = np.zeros((8, 16), bool)
    whole[:, :10] |= masks[0]
    whole[:, 6:] |= masks[1]
    np.testing.assert_array_equal(np.any([r["segmentation"] for r in records], axis=0), whole)


def test_a_tiles_own_masks_are_never_joined_by_anothers():
    joining = Joining(TILES, 0.4)
    upper, lower, both = np.zeros((3, 8, 10), bool)
    upper[0:4, 2:10] = lower[4:8, 2:10] = both[:, 0:7] = True
    joining.add(0, [record_of(upper), record_of(lower)])
    joining.add(1, [record_of(both)])
    assert len(joining.records((8, 16), "coco_rle")) == 2


def test_scores_are_averaged_by_area():
    first, second = halves(agreeing_rows=8)
    joining = Joining(TILES, 0.7)
    joining.add(0, [record_of(first, predicted_iou=0.5)])
    joining.add(1, [record_of(second, predicted_iou=1.0)])
    (record,) = joining.records((8, 16), "coco_rle")
    assert record["predicted_iou"] == pytest.approx((64 * 0.5 + 56 * 1.0) / 120)


def test_the_mask_that_a_tile_has_whole_is_kept():
    """The other's is cut off, and is a little larger where both see it."""
    whole, cut = np.zeros((2, 8, 10), bool)
    whole[2:6, 3:9] = cut[1:6, 0:3] = True
    cut[1, 0:2] = False
    joining = Joining(TILES, 0.7)
    joining.add(0, [record_of(whole, predicted_iou=0.6)])
    joining.add(1, [record_of(cut, predicted_iou=0.99)])
    (record,) = joining.records((8, 16), "coco_rle")
    assert record["predicted_iou"] == 0.6
    assert record["segmentation"] == compress_mask(np.pad(whole, ((0, 0), (0, 6))))
