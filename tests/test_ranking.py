"""Records in the order of a score of the caller's."""

import numpy as np
import pytest
from label_pictures import record_of

from samjax import rank_by
from samjax.postprocess import mask_to_rle

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 210)}


@pytest.fixture(scope="module")
def picture():
    """Three discs on grey, which their boxes show too, and the records of them."""
    image = np.full((60, 150, 3), 128, np.uint8)
    y, x = np.mgrid[:60, :150]
    records = []
    for i, colour in enumerate(COLOURS.values()):
        disc = (y - 30) ** 2 + (x - 25 - 50 * i) ** 2 < 15**2
        image[disc] = colour
        records.append(record_of(disc))
    return image, records


def likeness_to(colour):
    def score(crops):
        return np.array([-np.abs(crop.mean((0, 1)) - COLOURS[colour]).sum() for crop in crops])

    return score


@pytest.mark.parametrize("crop", ["box", "masked"])
@pytest.mark.parametrize("index, colour", [*enumerate(COLOURS)])
def test_the_thing_of_that_colour_comes_first(picture, index, colour, crop):
    image, records = picture
    before = [dict(record) for record in records]
    ranked = rank_by(records, image, likeness_to(colour), crop=crop, batch_size=2)
    assert records == before
    assert {**records[index], "score": ranked[0]["score"]} == ranked[0]
    scores = [record["score"] for record in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(ranked) == 3


def crops_of(records, image, **options):
    seen, sizes = [], []

    def score(crops):
        seen.extend(crops)
        sizes.append(len(crops))
        return np.zeros(len(crops))

    ranked = rank_by(records, image, score, **options)
    assert [r["bbox"] for r in ranked] == [r["bbox"] for r in records]
    return seen, sizes


def test_crops_are_the_box_or_the_mask_alone(picture):
    image, records = picture
    (first, second, _), sizes = crops_of(records, image, batch_size=2)
    assert sizes == [2, 1]
    np.testing.assert_array_equal(first, image[16:45, 11:40])
    np.testing.assert_array_equal(second, image[16:45, 61:90])
    (masked, *_), _ = crops_of(records, image, crop="masked", fill=7)
    disc = (image[16:45, 11:40] != 128).any(-1)
    np.testing.assert_array_equal(masked, np.where(disc[..., None], image[16:45, 11:40], 7))


def test_padding_goes_as_far_as_the_picture(picture):
    image, records = picture
    (first, second, _), _ = crops_of(records, image, padding=0.5)
    np.testing.assert_array_equal(first, image[2:59, 0:54])
    np.testing.assert_array_equal(second, image[2:59, 47:104])
    (masked, *_), _ = crops_of(records, image, padding=0.5, crop="masked")
    assert not masked[0].any() and masked.shape == first.shape


def test_square_crops_keep_the_middle():
    image = np.full((20, 30, 3), 9, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[4:8, 2:12] = True
    (crop,), _ = crops_of([record_of(mask)], image, square=True, fill=1)
    expected = np.full((10, 10, 3), 1)
    expected[3:7] = 9
    np.testing.assert_array_equal(crop, expected)


def test_every_output_mode_gives_the_same_crops(picture):
    image, records = picture
    expected, _ = crops_of(records, image, crop="masked")
    for convert in (lambda m: m, mask_to_rle):
        masks = [(image == colour).all(-1) for colour in COLOURS.values()]
        other = [{**r, "segmentation": convert(m)} for r, m in zip(records, masks, strict=True)]
        for ours, theirs in zip(crops_of(other, image, crop="masked")[0], expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_records(picture):
    assert rank_by([], picture[0], likeness_to("red")) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(padding=-0.1), "padding is -0.1"),
        (dict(padding=float("nan")), "padding is nan"),
        (dict(fill=256), "fill is 256"),
        (dict(batch_size=0), "batch_size is 0"),
    ],
)
def test_arguments_out_of_range(picture, options, message):
    image, records = picture
    with pytest.raises(ValueError, match=message):
        rank_by(records, image, likeness_to("red"), **options)


@pytest.mark.parametrize(
    "returned, message",
    [
        (np.zeros(2), r"shape \(2,\).* for 3 crops"),
        (np.zeros((3, 1)), r"shape \(3, 1\)"),
        (["a", "b", "c"], "expected numbers"),
        ([0.0, np.nan, 1.0], "NaN or infinity"),
    ],
)
def test_a_score_that_is_none(picture, returned, message):
    image, records = picture
    with pytest.raises(ValueError, match=message):
        rank_by(records, image, lambda crops: returned)


def test_records_of_another_picture_and_an_empty_mask(picture):
    image, records = picture
    with pytest.raises(ValueError, match=r"record 0 has .*\(60, 150\).*\(60, 149\)"):
        rank_by(records, image[:, :-1], likeness_to("red"))
    empty = {**records[0], "segmentation": np.zeros((60, 150), bool)}
    with pytest.raises(ValueError, match="record 1 has no pixels"):
        rank_by([records[0], empty], image, likeness_to("red"))
