"""Everything in tiles: whole pictures through a stand-in, tiny pictures through real models."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from label_pictures import ReadsLabels, picture_of

import samjax
from samjax import Model, SamAutomaticMaskGenerator, SamConfig, TiledMaskGenerator, inference
from samjax.images import write_png
from samjax.postprocess import rle_to_mask, uncompress_rle

OPTIONS = dict(
    points_per_side=3, points_per_batch=9, pred_iou_thresh=-10.0, stability_score_thresh=0.0,
    box_nms_thresh=0.9,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    config = SamConfig.tiny(64)
    return Model(inference.init_params(config), config)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["coco_rle", "binary_mask", "uncompressed_rle"])
def test_a_picture_no_larger_than_a_tile_has_the_generators_own_masks(model, image, mode):
    plain = SamAutomaticMaskGenerator(model, **OPTIONS, output_mode=mode, crop_n_layers=1)
    for tile in (100, 1024):
        tiled = TiledMaskGenerator(plain, tile=tile, output_mode=mode).generate(image)
        expected = plain.generate(image)
        assert expected
        assert len(tiled) == len(expected)
        for ours, theirs in zip(tiled, expected, strict=True):
            ours, theirs = dict(ours), dict(theirs)
            np.testing.assert_equal(ours.pop("segmentation"), theirs.pop("segmentation"))
            assert ours == theirs


def test_tiles_of_a_real_model_in_every_output_mode(model, image):
    plain = SamAutomaticMaskGenerator(model, **OPTIONS)
    by_mode = {
        mode: TiledMaskGenerator(plain, tile=64, output_mode=mode).generate(image)
        for mode in ("coco_rle", "binary_mask", "uncompressed_rle")
    }
    assert by_mode["coco_rle"]
    keys = set(plain.generate(image)[0])
    for packed, mask, runs in zip(*by_mode.values(), strict=True):
        assert set(packed) == keys
        np.testing.assert_array_equal(rle_to_mask(packed["segmentation"]), mask["segmentation"])
        assert mask["segmentation"].shape == image.shape[:2]
        assert mask["segmentation"].sum() == mask["area"] == packed["area"]
        assert runs["segmentation"] == uncompress_rle(packed["segmentation"])
        rows, columns = np.nonzero(mask["segmentation"])
        x, y, width, height = packed["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max(), rows.max())


def test_many_pictures_and_a_broken_one(tmp_path):
    labels = np.zeros((50, 90), np.uint8)
    labels[10:20, 10:80] = 1
    write_png(tmp_path / "good.png", picture_of(labels))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    stand_in = ReadsLabels()
    tiled = TiledMaskGenerator(stand_in, tile=40)
    paths = [tmp_path / "good.png", tmp_path / "bad.png", picture_of(labels)]
    first, second, third = tiled.generate_many(paths, yield_errors=True)
    assert isinstance(second, ValueError) and "bad.png" in str(second)
    np.testing.assert_array_equal(first.image, picture_of(labels))
    assert len(first.records) == 1
    assert first.records == third.records
    assert set(stand_in.sizes) == {(40, 40)}
    with pytest.raises(ValueError, match="bad.png"):
        list(tiled.generate_many(paths))


def test_what_goes_wrong_in_a_tile_is_raised():
    class Fails:
        def generate_many(self, images, *, yield_errors=False):
            yield MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        TiledMaskGenerator(Fails()).generate(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tile=1), "a tile has 1 pixels"),
        (dict(overlap=0.7), "overlap is 0.7"),
        (dict(merge_iou=1.5), "merge_iou is 1.5"),
        (dict(output_mode="png"), "output_mode is 'png'"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TiledMaskGenerator(ReadsLabels(), **options)


def test_bitmaps_are_refused_where_they_are_too_many_bytes():
    huge = np.broadcast_to(np.zeros(3, np.uint8), (4097, 4097, 3))
    tiled = TiledMaskGenerator(ReadsLabels(), output_mode="binary_mask")
    with pytest.raises(ValueError, match="binary_mask.*4097 x 4097.*'coco_rle'"):
        tiled._segmented(huge)


def test_a_picture_that_run_lengths_cannot_count():
    huge = np.broadcast_to(np.zeros(3, np.uint8), (2**16, 2**16, 3))
    with pytest.raises(ValueError, match="65536 x 65536.*count up to"):
        TiledMaskGenerator(ReadsLabels())._segmented(huge)


HUGE = """
import sys
from pathlib import Path
import cv2
import numpy as np
sys.path.insert(0, sys.argv[1])
from label_pictures import ReadsLabels
from samjax import TiledMaskGenerator
from samjax.postprocess import compress_mask

def peak():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) / 1000

rng = np.random.default_rng(0)
picture = np.zeros((10_000, 10_000, 3), np.uint8)
picture.fill(0)
for row in range(6):
    for column in range(6):
        center = (800 + 1600 * column, 800 + 1600 * row)
        cv2.circle(picture, center, int(rng.integers(20, 800)), (1 + row * 6 + column, 0, 0), -1)
tiled = TiledMaskGenerator(ReadsLabels())
before = peak()
records = tiled.generate(picture)
more = peak() - before
areas = np.bincount(picture[..., 0].ravel(), minlength=37)[1:]
assert sorted(r["area"] for r in records) == sorted(areas), (len(records), areas)
for label in (1, 15, 36):
    expected = compress_mask(picture[..., 0] == label)
    assert expected in [r["segmentation"] for r in records]
print(more)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak of memory")
def test_a_picture_of_a_hundred_million_pixels_takes_little_beside_itself(measured):
    """One of its masks as a bitmap would be 100 MB."""
    ran = subprocess.run(
        [sys.executable, "-c", HUGE, str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    more = float(ran.stdout)
    measured(f"36 things of 10,000 x 10,000 pixels in tiles: {more:.0f} MB beside the picture")
    assert more < 60


@pytest.mark.slow
def test_nano_joins_a_thing_that_tiles_cut():
    """A bright disc on dark ground, which is wider than a tile."""
    y, x = np.mgrid[:160, :280]
    disc = (y - 80) ** 2 + (x - 140) ** 2 < 60**2
    image = np.where(disc[..., None], [230, 190, 40], [30, 50, 70]).astype(np.uint8)
    generator = SamAutomaticMaskGenerator(samjax.load(), points_per_side=4, points_per_batch=16)
    records = TiledMaskGenerator(generator, tile=160).generate(image)
    masks = [rle_to_mask(record["segmentation"]) for record in records]
    ious = [(mask & disc).sum() / (mask | disc).sum() for mask in masks]
    assert max(ious) > 0.95
    best = records[int(np.argmax(ious))]
    assert best["crop_box"] == [0, 0, 280, 160]
