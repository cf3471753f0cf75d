from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samjax import inference
from samjax.checkpoint import Model, save_checkpoint
from samjax.models import SamConfig


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    return Model.from_params(inference.init_params(SamConfig.tiny(256), 0))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tiny_model) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(path, tiny_model)
    return path


@pytest.fixture
def draw(tmp_path):
    """Makes picture files below the test's folder; returns the first one's path."""

    def make(*names: str, size: tuple[int, int] = (60, 90)) -> Path:
        for seed, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / names[0]

    return make
