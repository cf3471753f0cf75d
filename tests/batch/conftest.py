"""A model of random numbers that finds something, and small pictures."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from samjax import SamPredictor
from samjax.checkpoint import Model, save_checkpoint
from samjax.models import SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten
from small_batch import make_pictures


@pytest.fixture(scope="session")
def small_model():
    config = SamConfig.tiny(64)
    rng = np.random.default_rng(0)
    leaves = flatten(abstract_params(config))
    arrays = {n: 0.2 * rng.standard_normal(x.shape, np.float32) for n, x in leaves.items()}
    model = Model(unflatten({n: jnp.asarray(x) for n, x in arrays.items()}), config)
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    _, _, logits = predictor.predict(box=[1, 2, 30, 20], multimask_output=False)
    threshold = float(np.median(logits))
    return dataclasses.replace(model, config=config.replace(mask_threshold=threshold))


@pytest.fixture(scope="session")
def model_folder(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(folder, small_model)
    return folder


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "in", 10)
