"""Simulated prompts: where points fall, how boxes are noised, and what an iteration adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.train import sampling
from samjax.train.config import TrainConfig
from samjax.types import PointLabel, Predictions

SIDE, SCALE = 32, 4.0
WHOLE = jnp.array([128, 128])
MANY = jax.random.split(jax.random.key(7), 4000)


def blob(rows, columns):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[rows, columns] = True
    return jnp.asarray(mask)


RING = blob(slice(5, 25), slice(8, 20)) & ~blob(slice(8, 22), slice(10, 18))


def pixels(points):
    """Row and column of the low-resolution pixels that points lie in."""
    x, y = np.floor((np.asarray(points, np.float64) + 0.5) / SCALE).astype(int).T
    return y, x


def test_points_are_uniform_over_the_region_and_inside_its_pixels():
    points, found = jax.vmap(lambda k: sampling.sample_point(k, RING, scale=SCALE))(MANY)
    assert found.all()
    rows, columns = pixels(points)
    assert RING[rows, columns].all()
    counts = np.zeros((SIDE, SIDE))
    np.add.at(counts, (rows, columns), 1)
    size = int(RING.sum())
    expected = len(MANY) / size
    chi_squared = ((counts[np.asarray(RING)] - expected) ** 2 / expected).sum()
    freedom = size - 1
    assert abs(chi_squared - freedom) < 4 * np.sqrt(2 * freedom)
    offsets = (np.asarray(points) + 0.5) / SCALE % 1
    np.testing.assert_allclose(offsets.mean(axis=0), 0.5, atol=4 / np.sqrt(12 * len(MANY)))
    np.testing.assert_allclose(offsets.std(axis=0), 1 / np.sqrt(12), atol=0.01)


def test_no_point_in_an_empty_region():
    _, found = sampling.sample_point(MANY[0], jnp.zeros((SIDE, SIDE), bool), scale=SCALE)
    assert not found


def test_bounding_box_in_input_pixels():
    """As `masks_to_boxes` would have it of the mask at the input's size: inclusive."""
    box = sampling.bounding_box(blob(slice(5, 25), slice(8, 20)), scale=SCALE)
    np.testing.assert_array_equal(box, [32, 20, 79, 99])


@pytest.mark.parametrize("box, deviations", [
    ([400, 300, 459, 449], [6, 15, 6, 15]),
    ([400, 300, 549, 349], [15, 5, 15, 5]),
])  # fmt: skip
def test_boxes_have_the_stated_noise(box, deviations):
    box, size = jnp.array(box, jnp.float32), jnp.array([1024, 1024])
    noise = np.asarray(jax.vmap(lambda k: sampling.noised_box(k, box, size))(MANY)) - box
    assert np.abs(noise).max() <= 20
    rng = np.random.default_rng(0)
    clipped = np.clip(rng.normal(size=(10**6, 4)) * deviations, -20, 20)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=4 * max(deviations) / len(MANY) ** 0.5)
    np.testing.assert_allclose(noise.std(axis=0), clipped.std(axis=0), rtol=0.05)
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 4 / len(MANY) ** 0.5


def test_large_boxes_move_by_twenty_pixels_at_most():
    box, size = jnp.array([200.0, 200, 799, 799]), jnp.array([1024, 1024])
    noise = np.asarray(jax.vmap(lambda k: sampling.noised_box(k, box, size))(MANY)) - box
    assert np.abs(noise).max() == 20
    assert (np.abs(noise) == 20).mean() == pytest.approx(0.739, abs=0.02)


def test_noised_boxes_stay_in_the_picture_and_in_order():
    box, size = jnp.array([0.0, 60, 79, 99]), jnp.array([100, 80])
    boxes = np.asarray(jax.vmap(lambda k: sampling.noised_box(k, box, size, noise=0.9))(MANY))
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= 79).all() and (boxes[:, [1, 3]] <= 99).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_first_prompt_is_a_point_or_a_box(probability):
    train = TrainConfig(first_point_probability=probability, num_points=3)
    prompts, ambiguous = jax.vmap(
        lambda k: sampling.first_prompt(k, RING, WHOLE, train=train, scale=SCALE)
    )(MANY)
    deviation = (probability * (1 - probability) / len(MANY)) ** 0.5
    assert abs(float(ambiguous.mean()) - probability) <= 4 * deviation
    assert prompts.labels.shape == (len(MANY), 5)
    assert (prompts.labels[:, 2:] == PointLabel.PADDING).all()
    assert not prompts.has_mask.any()
    assert (prompts.labels[ambiguous][:, :2] == np.array([1, -1])).all()
    assert (prompts.labels[~ambiguous][:, :2] == np.array([2, 3])).all()
    assert RING[pixels(prompts.coords[ambiguous][:, 0])].all()
    if probability < 1:
        centre = np.asarray(prompts.coords[~ambiguous][:, :2]).mean(axis=(0, 1))
        np.testing.assert_allclose(centre, [55.5, 59.5], atol=0.5)


def test_a_box_that_is_known_better_than_the_coarse_mask():
    train = TrainConfig(first_point_probability=0.0, box_noise=0.0)
    box = jnp.array([33.0, 21.0, 78.0, 98.0])
    key = jax.random.key(0)
    prompt = sampling.first_prompt(key, RING, WHOLE, train=train, scale=SCALE, box=box).prompts
    np.testing.assert_array_equal(prompt.coords[:2].reshape(4), box)


def first(train, key=0, probability=1.0):
    train = train.replace(first_point_probability=probability)
    return sampling.first_prompt(jax.random.key(key), RING, WHOLE, train=train, scale=SCALE)


def after(prompts, predicted, *, key=1, add=True, inside=None, target=RING):
    inside = jnp.ones((SIDE, SIDE), bool) if inside is None else inside
    return sampling.next_prompt(
        jax.random.key(key), prompts, jnp.where(predicted, 2.0, -3.0), target, inside,
        jnp.array(add), scale=SCALE, mask_threshold=0.0,
    )  # fmt: skip


MISSED = RING & ~blob(slice(20, 25), slice(8, 20))
OVER = RING | blob(slice(0, 3), slice(0, 32))


@pytest.mark.parametrize("predicted, label", [(MISSED, 1), (OVER, 0)])
def test_new_points_lie_in_the_error(predicted, label):
    prompts = first(TrainConfig(num_points=2)).prompts
    for key in range(20):
        more = after(prompts, predicted, key=key)
        row, column = pixels(more.coords[2:3])
        assert (predicted != RING)[row, column].all()
        assert more.labels.tolist() == [1, -1, label, -2]
        np.testing.assert_array_equal(more.coords[:2], prompts.coords[:2])
        np.testing.assert_array_equal(more.mask_inputs, np.where(predicted, 2.0, -3.0))
        assert more.has_mask


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_points_add_up_until_there_is_no_room(probability):
    prompts = first(TrainConfig(num_points=2), probability=probability).prompts
    start = prompts.labels.tolist()[:2]
    one = after(prompts, MISSED, key=1)
    two = after(one, OVER, key=2)
    assert two.labels.tolist() == [*start, 1, 0]
    np.testing.assert_array_equal(two.coords[:3], one.coords[:3])
    three = after(two, MISSED, key=3)
    np.testing.assert_array_equal(three.coords, two.coords)
    np.testing.assert_array_equal(three.labels, two.labels)


@pytest.mark.parametrize("predicted, add", [(RING, True), (MISSED, False)])
def test_no_point_without_an_error_or_when_none_is_due(predicted, add):
    prompts = first(TrainConfig(num_points=2)).prompts
    more = after(prompts, predicted, add=add)
    np.testing.assert_array_equal(more.labels, prompts.labels)
    np.testing.assert_array_equal(more.mask_inputs, np.where(predicted, 2.0, -3.0))
    assert more.has_mask


def test_what_is_predicted_beside_the_picture_is_no_error():
    inside = sampling.pixels_inside(jnp.array([128, 86]), SIDE, SCALE)
    assert inside.sum(axis=1).tolist() == [21] * 32  # the 22nd has its centre at 86
    outside = RING | ~inside
    prompts = first(TrainConfig(num_points=2)).prompts
    assert after(prompts, outside, inside=inside).labels.tolist() == [1, -1, -2, -2]
    assert after(prompts, outside).labels.tolist() == [1, -1, 0, -2]


def test_schedule_has_the_papers_iterations():
    """11: the first, 8 with a point, one without at a random place, one without at the end."""
    schedules = np.asarray(
        jax.vmap(lambda k: sampling.point_schedule(k, train=TrainConfig()))(MANY)
    )
    assert schedules.shape == (len(MANY), 11)
    assert (schedules.sum(axis=1) == 8).all()
    assert not schedules[:, 0].any() and not schedules[:, -1].any()
    places = np.bincount(np.argmin(schedules[:, 1:], axis=1), minlength=10)
    assert places[9] == 0
    np.testing.assert_allclose(places[:9] / len(MANY), 1 / 9, atol=0.02)


@pytest.mark.parametrize("points, within, at_end", [(0, 0, 0), (1, 0, 0), (0, 0, 1), (2, 1, 0)])
def test_smaller_schedules(points, within, at_end):
    train = TrainConfig(num_points=points, refine_within=within, refine_at_end=at_end)
    schedule = sampling.point_schedule(jax.random.key(0), train=train)
    assert len(schedule) == train.iterations == 1 + points + within + at_end
    assert schedule.sum() == points


def test_chosen_mask_is_the_one_with_the_highest_predicted_iou():
    masks = jnp.arange(4.0)[:, None, None] * jnp.ones((4, 2, 2))
    ious = jnp.array([0.9, 0.1, 0.8, 0.3])
    for ambiguous, index in [(True, 2), (False, 0)]:
        logits, iou = sampling.choose(Predictions(masks, ious), jnp.array(ambiguous))
        assert (logits == index).all()
        assert iou == ious[index]
