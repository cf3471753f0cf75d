"""Random numbers for models and modules, and a small model of them that finds something."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from samjax import SamPredictor
from samjax.checkpoint import Model
from samjax.models import SamConfig, initialization
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten


def random_params(config, scale=0.2):
    """Nothing is zero or one, as much is that was just initialized."""
    rng = np.random.default_rng(0)
    leaves = sorted(flatten(abstract_params(config)).items())
    arrays = {n: scale * rng.standard_normal(x.shape, np.float32) for n, x in leaves}
    return unflatten({n: jnp.asarray(x) for n, x in arrays.items()})


def abstract_module(module, config):
    """Without numbers: for its graph."""
    return nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0)))


def random_module(module, config, seed=0):
    """Its graph and its initial arrays, by one program where `module` itself has hundreds."""
    graphdef = nnx.split(abstract_module(module, config))[0]
    return graphdef, initialization.random_params(module, config, jax.random.key(seed))


def random_model():
    """Its threshold is the median of a mask's logits."""
    config = SamConfig.tiny(64)
    model = Model(random_params(config), config)
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    _, _, logits = predictor.predict(box=[1, 2, 30, 20], multimask_output=False)
    config = config.replace(mask_threshold=float(np.median(logits)))
    return dataclasses.replace(model, config=config)
