"""`SamPredictor` and everything of HQ models against `segment_anything_hq`'s, on a real picture.

The prompt encoder and what HQ-SAM's decoder has of Meta's are trained, the rest is random.
"""

import numpy as np
import pytest

from compare import check_same
from reference import SIZE_OF_TRAINED, random_reference, trained_config, trained_reference
from samjax import SamAutomaticMaskGenerator, SamPredictor
from samjax.convert import from_state_dict
from samjax.images import read_image
from samjax.models import SamConfig

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.optimized]

HQ_SHARE = 0.3
"""Of the random HQ logits, which without it would be noise over the trained decoder's masks."""

POINT = dict(point_coords=[[300.0, 200.0]], point_labels=[1])
POINTS = dict(point_coords=[[300.0, 200.0], [400.5, 213.25], [100.0, 33.0]], point_labels=[1, 1, 0])
BOX = dict(box=[142.0, 200.0, 567.0, 292.0])
PROMPTS = {"point": POINT, "points": POINTS, "box": BOX, "box and points": BOX | POINTS}


@pytest.fixture(scope="module")
def picture(shared_dir):
    return read_image(shared_dir / "data/images/truck.jpg")[::3, ::3].copy()


@pytest.fixture(scope="module")
def models(shared_dir):
    config = trained_config(256, hq=True)
    reference = trained_reference(config, seed=0, embedding_scale=SIZE_OF_TRAINED)
    for parameter in reference.mask_decoder.hf_mlp.layers[-1].parameters():
        parameter.mul_(HQ_SHARE)
    return reference, from_state_dict(reference.state_dict())


@pytest.fixture(scope="module")
def pair(models, picture):
    import segment_anything_hq

    reference, model = models
    theirs, ours = segment_anything_hq.SamPredictor(reference), SamPredictor(model)
    theirs.set_image(picture)
    ours.set_image(picture)
    return theirs, ours


def as_arrays(prompt):
    return {name: np.array(value) for name, value in prompt.items()}


def check(pair, prompt, **options):
    """Masks agree but for pixels whose logit is as near to zero as the logits agree."""
    theirs, ours = pair
    prompt = as_arrays(prompt)
    masks, ious, low_res = ours.predict(**prompt, **options)
    expected, expected_ious, expected_low_res = theirs.predict(**prompt, **options)
    assert low_res.shape == expected_low_res.shape == (1, 64, 64)
    error = 3e-5 * np.abs(expected_low_res).max()
    np.testing.assert_allclose(low_res, expected_low_res, rtol=0, atol=error)
    np.testing.assert_allclose(ious, expected_ious, rtol=0, atol=1e-5)
    assert masks.shape == expected.shape and masks.dtype == expected.dtype
    logits, *_ = theirs.predict(**prompt, **(options | {"return_logits": True}))
    clear = np.abs(logits) > error
    np.testing.assert_array_equal(masks[clear], expected[clear])
    assert (masks != expected).mean() < 1e-4
    return expected_low_res


@pytest.mark.parametrize("hq_token_only", [False, True])
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_same_as_reference(pair, prompt, multimask_output, hq_token_only):
    check(pair, PROMPTS[prompt], multimask_output=multimask_output, hq_token_only=hq_token_only)


@pytest.mark.parametrize("prompt", ["nothing", "points", "box"])
def test_mask_prompt(pair, prompt):
    _, _, low_res = pair[0].predict(**as_arrays(POINT))
    whole = PROMPTS.get(prompt, {}) | {"mask_input": low_res}
    check(pair, whole, multimask_output=False)


def test_the_hq_token_has_its_share(pair):
    _, _, both = pair[1].predict(**POINT)
    _, _, alone = pair[1].predict(**POINT, hq_token_only=True)
    assert 0.02 < np.std(alone) / np.std(both - alone) < 2


def test_embedding(pair):
    theirs, ours = pair
    embedding, expected = ours.get_image_embedding(), theirs.get_image_embedding().numpy()
    assert embedding.shape == expected.shape
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_several_objects(pair):
    _, ours = pair
    masks, ious, low_res = ours.predict_batch(
        boxes=[None, BOX["box"]],
        point_coords=[POINT["point_coords"], None],
        point_labels=[POINT["point_labels"], None],
        hq_token_only=True,
    )
    assert masks.shape[:2] == ious.shape == (2, 1)
    for i, prompt in enumerate((POINT, BOX)):
        _, _, one = ours.predict(**prompt, hq_token_only=True)
        np.testing.assert_allclose(low_res[i], one, rtol=0, atol=1e-4 * np.abs(one).max())


def test_the_hq_token_of_a_model_without_one(pair, picture):
    plain = SamPredictor(from_state_dict(random_reference(SamConfig.tiny(64), seed=0).state_dict()))
    plain.set_image(picture[:64, :64])
    with pytest.raises(ValueError, match="hq_token_only is for HQ models"):
        plain.predict(point_coords=[[5, 5]], point_labels=[1], hq_token_only=True)


def test_everything(models, picture, measured):
    import segment_anything_hq

    reference, model = models
    options = dict(
        points_per_side=8, pred_iou_thresh=0.4, stability_score_thresh=0.1, box_nms_thresh=0.9,
        crop_n_layers=1, crop_n_points_downscale_factor=2,
    )  # fmt: skip
    theirs = segment_anything_hq.SamAutomaticMaskGenerator(reference, **options).generate(picture)
    ours = SamAutomaticMaskGenerator(model, **options).generate(picture)
    assert len(theirs) >= 20
    flipped, scores = check_same(ours, theirs)
    area = sum(record["area"] for record in theirs)
    measured(
        f"HQ everything on truck.jpg with crops: {len(ours)} of {len(theirs)} records; {flipped} "
        f"of {area} mask pixels differ, {scores} stability scores by a pixel or two"
    )
    assert flipped <= 1e-4 * area
