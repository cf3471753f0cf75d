"""HQ models in training: the token and its features learn, and what cannot work is refused."""

import numpy as np
import pytest

from reference import random_reference
from samjax import Model, SamConfig
from samjax.convert import from_state_dict
from samjax.models.params import flatten
from samjax.train.config import TrainConfig
from samjax.train.embeddings import EmbeddingCache
from samjax.train.gradients import Batch, check_batch
from samjax.train.parameters import split_params
from samjax.train.step import init_state, train_step, trained_params

CONFIG = SamConfig.tiny(128, hq=True, decoder_depth=1)
TRAIN = TrainConfig(
    trained="hq", num_points=0, refine_within=0, refine_at_end=0, warmup_steps=0,
    decay="constant", learning_rate=3e-3, layer_decay=1.0, weight_decay=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return from_state_dict(random_reference(CONFIG, seed=0).state_dict()).params


@pytest.fixture(scope="module")
def batch():
    """An object on each picture; the second picture is narrower than the input."""
    masks = np.zeros((2, 1, 32, 32), bool)
    masks[0, 0, 4:20, 6:22] = True
    masks[1, 0, 10:30, 3:15] = True
    images = np.random.default_rng(0).normal(size=(2, 128, 128, 3)).astype(np.float32)
    sizes = np.array([[128, 128], [128, 100]], np.int32)
    return Batch(masks, np.ones((2, 1), bool), sizes, images=images)


def test_only_what_is_hq_learns(params, batch):
    state = init_state(CONFIG, TRAIN, params, seed=0)
    step = train_step(CONFIG, TRAIN)
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 0.02
    before, after = flatten(params), flatten(trained_params(CONFIG, TRAIN, state))
    changed = {name for name, x in after.items() if not np.array_equal(x, before[name])}
    assert changed == {name for name in before if name.startswith("mask_decoder.hq.")}


def test_kept_embeddings_are_refused(params, batch, tmp_path):
    with pytest.raises(ValueError, match="of an HQ model cannot be kept.*embedding_cache"):
        EmbeddingCache(tmp_path, Model(params, CONFIG))
    embeddings = np.zeros((2, 8, 8, 32), np.float32)
    wrong = batch._replace(images=None, image_embeddings=embeddings)
    with pytest.raises(ValueError, match="HQ model.*has to hold images"):
        check_batch(CONFIG, TRAIN, wrong)


def test_the_part_of_a_model_without_it():
    plain = SamConfig.tiny(128)
    params = from_state_dict(random_reference(plain, seed=0).state_dict()).params
    with pytest.raises(ValueError, match="mask_decoder.hq"):
        split_params(params, plain, TRAIN)
