"""A tiny model, batches for it, and a measure of how two trees of arrays agree."""

import jax
import numpy as np

from quick import jit
from samjax import SamConfig
from samjax.train.config import TrainConfig
from samjax.train.gradients import Batch, batch_gradients
from samjax.train.parameters import split_params

CONFIG = SamConfig.tiny(128, decoder_depth=1)
"""A block less than published: a fifth of a step's compiling. The gradients' test has both."""
SINGLE = TrainConfig(
    num_points=0, refine_within=0, refine_at_end=0, warmup_steps=0, decay="constant",
    learning_rate=1e-3, layer_decay=1.0,
)  # fmt: skip
DECODER = SINGLE.replace(trained="decoder", ema_decay=0.75)


def some_batch(pictures=2, padding=0, seed=0):
    """Two objects on each picture, the last picture narrower than the input, and padding."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((pictures, 2 + padding, 32, 32), bool)
    valid = np.zeros((pictures, 2 + padding), bool)
    for picture in range(pictures):
        top, left = rng.integers(0, 8, 2)
        masks[picture, 0, top : top + 10, left : left + 14] = True
        masks[picture, 1, top + 12 : top + 22, left + 3 : left + 15] = True
        valid[picture, :2] = True
    sizes = np.full((pictures, 2), 128, np.int32)
    sizes[-1] = 128, 100
    images = rng.normal(size=(pictures, 128, 128, 3)).astype(np.float32)
    return Batch(masks, valid, sizes, images=images)


def with_embeddings(batch, seed=1):
    shape = (len(batch.valid), 8, 8, 32)
    embeddings = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return batch._replace(images=None, image_embeddings=embeddings)


def close(a, b, relative=1e-5):
    """Each array within `relative` of its largest value; those that are rounding alone (see
    `test_gradients_agree_with_torch`) of the largest of all."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    paths = jax.tree.leaves_with_path(b)
    for x, (path, y) in zip(jax.tree.leaves(a), paths, strict=True):
        name = jax.tree_util.keystr(path)
        scale = largest if "k_proj.bias" in name else float(np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=relative * scale, err_msg=name)


def gradients_of(params, train, batch, seed=3):
    split = split_params(params, CONFIG, train, jax.random.key(9))
    function = jit(
        lambda trained, batch: batch_gradients(
            CONFIG, train, trained, split.frozen, batch, jax.random.key(seed)
        )
    )
    return function(split.trained, batch)
