"""A small model of random numbers that finds something."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from samjax import SamPredictor
from samjax.checkpoint import Model
from samjax.models import SamConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten


def random_model():
    """Its threshold is the median of a mask's logits."""
    config = SamConfig.tiny(64)
    rng = np.random.default_rng(0)
    leaves = flatten(abstract_params(config))
    arrays = {n: 0.2 * rng.standard_normal(x.shape, np.float32) for n, x in leaves.items()}
    model = Model(unflatten({n: jnp.asarray(x) for n, x in arrays.items()}), config)
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    _, _, logits = predictor.predict(box=[1, 2, 30, 20], multimask_output=False)
    config = config.replace(mask_threshold=float(np.median(logits)))
    return dataclasses.replace(model, config=config)
