"""MobileSAM from end to end against its own package: a seeded TinyViT, the trained decoder."""

import mobile_sam
import numpy as np
import pytest

from compare import check_same
from reference import SIZE_OF_TRAINED, random_reference, trained_reference
from samjax import SamAutomaticMaskGenerator, SamPredictor, inference
from samjax.convert import from_state_dict
from samjax.images import read_image
from samjax.models import SamConfig

pytestmark = pytest.mark.optimized

POINT = dict(point_coords=np.array([[900.0, 600.0], [300.0, 100.0]]), point_labels=np.array([1, 0]))
BOX = dict(box=np.array([425.0, 600.0, 1700.0, 875.0]))
LOW = dict(pred_iou_thresh=0.4, stability_score_thresh=0.1)


def pair(image_size):
    config = SamConfig.vit_t(image_size)
    reference = trained_reference(config, seed=0, embedding_scale=SIZE_OF_TRAINED)
    model = from_state_dict(reference.eval().state_dict())
    return reference, type(model)(model.params, config)


@pytest.fixture(scope="module")
def small():
    return pair(256)


@pytest.fixture(scope="module")
def full():
    return pair(1024)


@pytest.fixture(scope="module")
def truck(shared_dir):
    return read_image(shared_dir / "data/images/truck.jpg")


def check_prompts(models, image, measured, name):
    reference, model = models
    theirs, ours = mobile_sam.SamPredictor(reference), SamPredictor(model)
    theirs.set_image(image)
    ours.set_image(image)
    expected = theirs.get_image_embedding().numpy()
    difference = np.abs(ours.get_image_embedding() - expected).max() / np.abs(expected).max()
    assert difference < 5e-6
    text = f"{name}, truck.jpg: embedding differs by {difference:.1e} of its largest value"
    low_res = None
    for prompt in (POINT, BOX, POINT | BOX, POINT):
        options = prompt if low_res is None else prompt | {"mask_input": low_res[:1]}
        for multimask_output in (True, False):
            masks, ious, low_res = ours.predict(**options, multimask_output=multimask_output)
            expected, expected_ious, logits = theirs.predict(
                **options, multimask_output=multimask_output
            )
            np.testing.assert_allclose(low_res, logits, rtol=0, atol=2e-3)
            np.testing.assert_allclose(ious, expected_ious, rtol=0, atol=1e-5)
            assert (masks != expected).mean() < 1e-5
            assert 0 < expected.mean() < 1
            text += (
                f"\n  {'+'.join(options)}: logits differ by {np.abs(low_res - logits).max():.1e} "
                f"on a scale of {np.abs(logits).max():.0f}, IoU predictions by "
                f"{np.abs(ious - expected_ious).max():.1e}, {(masks != expected).sum()} of "
                f"{masks.size} mask pixels"
            )
    measured(text)


def check_everything(models, image, measured, name, **options):
    reference, model = models
    theirs = mobile_sam.SamAutomaticMaskGenerator(reference, **options).generate(image)
    ours = SamAutomaticMaskGenerator(model, **options).generate(image)
    flipped, scores = check_same(ours, theirs)
    area = sum(record["area"] for record in theirs)
    measured(
        f"{name}, everything on truck.jpg: {len(ours)} of {len(theirs)} records; {flipped} of "
        f"{area} mask pixels differ, {scores} stability scores by a pixel or two"
    )
    assert len(theirs) >= 10
    assert flipped <= 1e-4 * area


def test_prompts(small, truck, measured):
    check_prompts(small, truck, measured, "MobileSAM, 256 pixels")


def test_everything(small, truck, measured):
    check_everything(
        small, truck, measured, "MobileSAM, 256 pixels", points_per_side=6, box_nms_thresh=0.9,
        **LOW,
    )  # fmt: skip


def test_embedding_at_full_size(measured):
    """The package's own encoder, unchanged, with all of it random."""
    import torch

    reference = random_reference(SamConfig.vit_t(), seed=5)
    assert type(reference.image_encoder) is mobile_sam.modeling.TinyViT
    model = from_state_dict(reference.state_dict())
    images = np.random.default_rng(0).normal(size=(1, 1024, 1024, 3)).astype(np.float32)
    ours = inference.encode_images(model.params, images, config=model.config)
    with torch.no_grad():
        theirs = reference.image_encoder(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    difference = np.abs(ours - expected).max() / np.abs(expected).max()
    measured(f"MobileSAM: embedding differs by {difference:.1e} of its largest value")
    assert difference < 5e-6


@pytest.mark.slow
def test_prompts_at_full_size(full, truck, measured):
    check_prompts(full, truck, measured, "MobileSAM, 1024 pixels")


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 1], ids=["whole", "crops"])
def test_everything_at_full_size(full, truck, measured, layers):
    check_everything(
        full, truck, measured, f"MobileSAM, 1024 pixels, 16x16 points, {layers} layers of crops",
        points_per_side=16, crop_n_layers=layers, crop_n_points_downscale_factor=2,
        box_nms_thresh=0.9, crop_nms_thresh=0.9, **LOW,
    )  # fmt: skip
