"""A tiny model in place of the downloads, whose masks are confident enough to be kept."""

import jax
import numpy as np
import pytest
from PIL import Image

import samjax
from samjax import Model, SamConfig, inference
from samjax.models.params import flatten, unflatten

DOWNLOADS = ("sam_b.pt", "sam_l.pt", "mobile_sam.pt")


@pytest.fixture(scope="session")
def tiny() -> Model:
    """Random, with predicted IoUs near 0.5: enough for prompts, too little for everything."""
    config = SamConfig.tiny(64)
    leaves = flatten(jax.tree.map(np.asarray, inference.init_params(config, 0)))
    last = "mask_decoder.iou_prediction_head.layers.2."
    leaves[last + "kernel"] = leaves[last + "kernel"] * np.float32(0.01)
    leaves[last + "bias"] = np.full_like(leaves[last + "bias"], 0.5)
    return Model(unflatten(leaves), config)


@pytest.fixture
def downloads(monkeypatch):
    """Call with a model: it is what the names of downloads stand for."""

    def stand_in(model: Model) -> None:
        def load(source):
            assert source in DOWNLOADS, source
            return model

        monkeypatch.setattr(samjax, "load", load)

    return stand_in


@pytest.fixture
def write():
    """Writes a picture of noise, and returns it as RGB."""

    def picture(path, size=(60, 90), seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
        return pixels

    return picture
