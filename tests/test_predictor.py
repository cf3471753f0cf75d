"""`SamPredictor` against Meta's: the trained decoder behind a seeded ViT, a real picture."""

import cv2
import numpy as np
import pytest
import segment_anything

from reference import trained_config, trained_reference
from samjax import SamPredictor, inference
from samjax.convert import from_state_dict

pytestmark = pytest.mark.optimized

POINT = dict(point_coords=[[900.0, 600.0]], point_labels=[1])
POINTS = dict(
    point_coords=[[900.0, 600.0], [1200.5, 640.25], [300.0, 100.0]], point_labels=[1, 1, 0]
)
BOX = dict(box=[425.0, 600.0, 1700.0, 875.0])
PROMPTS = {
    "point": POINT,
    "several points": POINTS,
    "box": BOX,
    "box and points": BOX | POINTS,
}


@pytest.fixture(scope="module")
def pair(shared_dir):
    """Meta's predictor and ours, the same weights and the same picture."""
    reference = trained_reference(trained_config(1024), seed=0)
    theirs = segment_anything.SamPredictor(reference)
    ours = SamPredictor(from_state_dict(reference.state_dict()))
    image = cv2.imread(str(shared_dir / "data/images/truck.jpg"))
    theirs.set_image(image, image_format="BGR")
    ours.set_image(image, image_format="BGR")
    return theirs, ours


def as_arrays(prompt):
    return {name: np.array(value) for name, value in prompt.items()}


def check(measured, name, ours, theirs, prompt, **options):
    """Masks agree but for pixels whose logit is as near to zero as the logits agree."""
    prompt = as_arrays(prompt)
    masks, ious, low_res = ours.predict(**prompt, **options)
    expected, expected_ious, expected_low_res = theirs.predict(**prompt, **options)
    assert 50 < np.abs(expected_low_res).max() < 500
    np.testing.assert_allclose(low_res, expected_low_res, rtol=0, atol=2e-3)
    np.testing.assert_allclose(ious, expected_ious, rtol=0, atol=1e-5)
    measured(
        f"trained decoder, {name}: logits differ by {np.abs(low_res - expected_low_res).max():.1e} "
        f"on a scale of {np.abs(expected_low_res).max():.0f}, IoU predictions by "
        f"{np.abs(ious - expected_ious).max():.1e}"
    )
    assert masks.shape == expected.shape and masks.dtype == expected.dtype
    if options.get("return_logits"):
        np.testing.assert_allclose(masks, expected, rtol=0, atol=2e-3)
    else:
        logits, *_ = theirs.predict(**prompt, **(options | {"return_logits": True}))
        np.testing.assert_array_equal(masks[np.abs(logits) > 2e-3], expected[np.abs(logits) > 2e-3])
        assert (masks != expected).mean() < 1e-5
    return low_res


@pytest.mark.parametrize("multimask_output", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_same_as_reference(pair, measured, prompt, multimask_output):
    theirs, ours = pair
    name = f"{prompt}, {'multi' if multimask_output else 'single'} mask"
    check(measured, name, ours, theirs, PROMPTS[prompt], multimask_output=multimask_output)


@pytest.mark.parametrize("prompt", ["nothing", *PROMPTS])
def test_mask_prompt(pair, measured, prompt):
    theirs, ours = pair
    _, ious, low_res = theirs.predict(**as_arrays(POINT))
    mask = low_res[ious.argmax()][None]
    whole = PROMPTS.get(prompt, {}) | {"mask_input": mask}
    check(measured, f"mask and {prompt}", ours, theirs, whole, multimask_output=False)


def test_logits(pair, measured):
    theirs, ours = pair
    check(measured, "full-resolution logits", ours, theirs, POINT, return_logits=True)


def test_embedding_and_sizes(pair):
    theirs, ours = pair
    embedding, expected = ours.get_image_embedding(), theirs.get_image_embedding().numpy()
    assert embedding.shape == expected.shape == (1, 256, 64, 64)
    # 2.0e-6 with AVX-512, 2.5e-6 with AVX2.
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    assert ours.original_size == theirs.original_size == (1200, 1800)
    assert ours.input_size == theirs.input_size


def test_file_is_the_same_as_its_pixels(pair, shared_dir):
    _, ours = pair
    before = ours.get_image_embedding()
    ours.set_image(shared_dir / "data/images/truck.jpg")
    # libjpeg is the same in OpenCV and Pillow, or rounds a few pixels by one.
    np.testing.assert_allclose(ours.get_image_embedding(), before, rtol=0, atol=0.05)


def test_batch_equals_loop(pair):
    """Objects of different kinds in one call, against one call for each."""
    _, ours = pair
    objects = [POINT, POINTS, BOX, BOX | POINTS]
    batch = ours.predict_batch(
        point_coords=[o.get("point_coords") for o in objects],
        point_labels=[o.get("point_labels") for o in objects],
        boxes=[o.get("box") for o in objects],
    )
    for i, prompt in enumerate(objects):
        masks, ious, low_res = ours.predict(**prompt)
        np.testing.assert_allclose(batch[2][i], low_res, rtol=0, atol=1e-3)
        np.testing.assert_allclose(batch[1][i], ious, rtol=0, atol=1e-5)
        assert (batch[0][i] != masks).mean() < 1e-5


def test_more_prompts_than_one_call_takes(pair, monkeypatch):
    _, ours = pair
    boxes = np.array([[100.0 * i, 50, 100 * i + 300, 800] for i in range(5)])
    whole = ours.predict_batch(boxes=boxes, multimask_output=False)
    monkeypatch.setattr("samjax.predictor.MAX_PROMPTS", 2)
    parts = ours.predict_batch(boxes=boxes, multimask_output=False)
    assert whole[0].shape == (5, 1, 1200, 1800)
    np.testing.assert_allclose(parts[2], whole[2], rtol=0, atol=1e-3)


def test_a_hundred_clicks_compile_a_handful(pair):
    """Up to eight points, with and without a box or a mask, on pictures of four sizes."""
    _, ours = pair
    rng = np.random.default_rng(0)
    small = SamPredictor(ours.model)
    mask = np.zeros((1, 256, 256), np.float32)
    before = inference.compiled_programs()
    for i in range(100):
        if i % 25 == 0:
            height, width = rng.integers(20, 120, 2)
            small.set_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        points = rng.uniform(0, (width, height), (1 + i % 8, 2))
        small.predict(
            point_coords=points,
            point_labels=rng.integers(0, 2, len(points)),
            box=[0, 0, width, height] if i % 3 else None,
            mask_input=mask if i % 5 == 0 else None,
            multimask_output=bool(i % 2),
        )
    after = inference.compiled_programs()
    # Tokens: 2, 4, 8, 16, each with and without a mask. Upscaling: three masks or one.
    assert after["decode_masks"] - before["decode_masks"] <= 8
    assert after["upscale"] - before["upscale"] <= 2
    assert after["encode_images"] == before["encode_images"]
