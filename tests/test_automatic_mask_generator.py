"""Everything, against Meta's generator: the trained decoder behind a seeded ViT, real pictures."""

import dataclasses
import functools
import inspect

import numpy as np
import pytest
import segment_anything
from pycocotools import mask as coco

import samjax
from compare import KEYS, check_same
from reference import SIZE_OF_TRAINED, trained_config, trained_reference
from samjax import SamAutomaticMaskGenerator, inference
from samjax.convert import from_state_dict
from samjax.images import read_image
from samjax.models import EverythingThresholds
from samjax.postprocess import rle_to_mask

pytestmark = pytest.mark.optimized

LOW = dict(pred_iou_thresh=0.4, stability_score_thresh=0.1)


@functools.lru_cache
def models(image_size):
    reference = trained_reference(
        trained_config(image_size), seed=0, embedding_scale=SIZE_OF_TRAINED
    )
    return reference, from_state_dict(reference.state_dict())


def generate_both(image, image_size=512, **options):
    reference, model = models(image_size)
    theirs = segment_anything.SamAutomaticMaskGenerator(reference, **options).generate(image)
    ours = SamAutomaticMaskGenerator(model, **options).generate(image)
    return ours, theirs


@pytest.mark.parametrize("layers", [0, 1], ids=["whole", "crops"])
@pytest.mark.parametrize("picture", ["truck.jpg", "groceries.jpg"])
def test_same_records_as_reference(shared_dir, picture, layers, measured):
    image = read_image(shared_dir / "data/images" / picture)
    ours, theirs = generate_both(
        image, points_per_side=12, crop_n_layers=layers, crop_n_points_downscale_factor=2,
        box_nms_thresh=0.9, **LOW,
    )  # fmt: skip
    assert len(theirs) >= 50
    flipped, scores = check_same(ours, theirs)
    area = sum(record["area"] for record in theirs)
    measured(
        f"everything on {picture}, {layers} crop layers: {len(ours)} of {len(theirs)} records; "
        f"{flipped} of {area} mask pixels differ, {scores} stability scores by a pixel or two"
    )
    # Logits agree to 1e-3 on a scale of 100; only a pixel that close to the threshold can flip.
    assert flipped <= 1e-4 * area


@pytest.mark.slow
@pytest.mark.parametrize("layers, side", [(0, 32), (1, 16)], ids=["whole", "crops"])
@pytest.mark.parametrize("picture", ["truck.jpg", "groceries.jpg"])
def test_same_records_at_full_size(shared_dir, picture, layers, side, measured):
    """Input of 1024 pixels; Meta's grid of 32 points a side, or crops with a smaller one."""
    image = read_image(shared_dir / "data/images" / picture)
    ours, theirs = generate_both(
        image, 1024, points_per_side=side, crop_n_layers=layers,
        crop_n_points_downscale_factor=2, **LOW,
    )  # fmt: skip
    assert len(theirs) >= 50
    flipped, scores = check_same(ours, theirs)
    measured(
        f"everything on {picture}, 1024 pixels, {side}x{side} points, {layers} crop layers: "
        f"{len(ours)} of {len(theirs)} records; {flipped} mask pixels and {scores} stability "
        "scores differ"
    )


@pytest.fixture(scope="module")
def small_picture(shared_dir):
    return read_image(shared_dir / "data/images/dog.jpg")[::4, ::4].copy()


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_output_modes(shared_dir, mode):
    picture = read_image(shared_dir / "data/images/groceries.jpg")
    options = dict(points_per_side=8, output_mode=mode, **LOW)
    ours, theirs = generate_both(picture, 256, **options)
    assert len(ours) == len(theirs) >= 50
    size = list(picture.shape[:2])
    for record, other in zip(ours, theirs, strict=True):
        mask = record["segmentation"]
        if mode != "binary_mask":
            assert mask["size"] == other["segmentation"]["size"] == size
            assert type(mask["counts"]) is type(other["segmentation"]["counts"])
            decode = coco.decode if mode == "coco_rle" else rle_to_mask
            record["segmentation"] = decode(mask).astype(bool)
            other["segmentation"] = decode(other["segmentation"]).astype(bool)
        for key in KEYS - {"segmentation"}:
            assert type(record[key]) is type(other[key]), key
    check_same(ours, theirs)


@pytest.mark.parametrize("layers", [0, 1])
def test_small_regions(small_picture, layers):
    ours, theirs = generate_both(
        small_picture, 256, points_per_side=4, min_mask_region_area=60, crop_n_layers=layers, **LOW
    )
    assert len(ours) > 3
    check_same(ours, theirs)


def test_own_point_grids(small_picture):
    grids = [np.array([[0.5, 0.5], [0.2, 0.7], [0.9, 0.4]])]
    ours, theirs = generate_both(small_picture, 256, points_per_side=None, point_grids=grids, **LOW)
    assert ours
    check_same(ours, theirs)


def test_no_filters_keep_everything(small_picture):
    """Thresholds of zero switch a filter off, and an empty mask's 0/0 stability is kept."""
    options = dict(
        points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0
    )
    _, model = models(256)
    ours = SamAutomaticMaskGenerator(model, **options).generate(small_picture)
    assert len(ours) == 2 * 2 * 3


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("area", [0, 100])
def test_nothing_found_is_an_empty_list(small_picture, layers, area):
    _, model = models(256)
    generator = SamAutomaticMaskGenerator(
        model, points_per_side=2, pred_iou_thresh=2.0, crop_n_layers=layers,
        min_mask_region_area=area,
    )  # fmt: skip
    assert generator.generate(small_picture) == []


def test_batch_size_changes_nothing(small_picture):
    _, model = models(256)
    results = [
        SamAutomaticMaskGenerator(
            model, points_per_side=4, points_per_batch=batch, **LOW
        ).generate(small_picture)
        for batch in (1, 7, 64)
    ]  # fmt: skip
    assert results[0]
    for other in results[1:]:
        check_same(results[0], other)


def test_pictures_of_many_sizes_share_programs():
    _, model = models(256)
    generator = SamAutomaticMaskGenerator(model, points_per_side=2, pred_iou_thresh=0.0)
    rng = np.random.default_rng(0)
    before = inference.compiled_programs()
    for _ in range(12):
        height, width = rng.integers(65, 128, 2)
        generator.generate(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    after = inference.compiled_programs()
    assert after["decode_masks"] - before["decode_masks"] <= 1
    assert after["measure"] - before["measure"] <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 2000)])
def test_odd_pictures(shape):
    _, model = models(256)
    generator = SamAutomaticMaskGenerator(
        model, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, crop_n_layers=1
    )
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for record in generator.generate(image):
        assert record["segmentation"].shape == shape


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(output_mode="png"), ["output_mode", "'png'", "coco_rle"]),
        (dict(points_per_side=None), ["points_per_side", "exactly one"]),
        (dict(point_grids=[np.zeros((1, 2))]), ["points_per_side", "exactly one"]),
        (dict(points_per_side=0), ["0 points per side"]),
        (dict(points_per_batch=0), ["points_per_batch", "0"]),
        (dict(crop_n_layers=-1), ["crop_n_layers", "-1"]),
        (dict(crop_overlap_ratio=1.5), ["crop_overlap_ratio", "1.5", "[0, 1]"]),
        (dict(min_mask_region_area=-5), ["min_mask_region_area", "-5"]),
        (
            dict(points_per_side=None, point_grids=[np.zeros((2, 2))], crop_n_layers=1),
            ["1 grids", "needs 2"],
        ),
        (dict(points_per_side=None, point_grids=[np.zeros((2, 3))]), ["(2, 3)", "(N, 2)"]),
        (dict(points_per_side=None, point_grids=[np.full((1, 2), 700)]), ["[0, 1]"]),
        (dict(points_per_side=None, point_grids=[np.full((1, 2), np.nan)]), ["[0, 1]"]),
    ],
)  # fmt: skip
def test_bad_arguments(options, words):
    config = samjax.SamConfig.tiny()
    model = samjax.Model(inference.init_params(config), config)
    with pytest.raises(ValueError) as error:
        SamAutomaticMaskGenerator(model, **options)
    for word in words:
        assert word in str(error.value)


def test_the_signature_shows_metas_defaults():
    ours = inspect.signature(SamAutomaticMaskGenerator).parameters
    theirs = inspect.signature(segment_anything.SamAutomaticMaskGenerator).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {n: ours[n].default for n in theirs if n != "model"} == {
        n: p.default for n, p in theirs.items() if n != "model"
    }
    shown = str(inspect.signature(SamAutomaticMaskGenerator))
    assert (
        "pred_iou_thresh: float = 0.88" in shown
        and "min_mask_region_area: int | float = 0" in shown
    )


def test_thresholds_of_the_model_where_the_caller_names_none():
    _, model = models(512)
    names = [field.name for field in dataclasses.fields(EverythingThresholds)]
    carried = {name: 0.125 * (i + 1) for i, name in enumerate(names)}
    own = dataclasses.replace(model, everything=EverythingThresholds(**carried))

    def thresholds(*args, **options):
        generator = SamAutomaticMaskGenerator(*args, **options)
        return {name: getattr(generator, name) for name in names}

    metas = thresholds(model)
    assert metas == dict(zip(names, (0.88, 0.95, 1.0, 0.7, 0.7, 0.0), strict=True))
    assert all(type(value) is float for value in metas.values())
    assert thresholds(own) == carried
    assert thresholds(own, 32, 64, 0.88) == carried | {"pred_iou_thresh": 0.88}
    given = metas | {"min_mask_region_area": 0}
    assert thresholds(own, **given) == metas
