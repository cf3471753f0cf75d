"""What the tests of labelling share: a small model and three pictures."""

import numpy as np
import pytest

from random_model import random_model
from samjax.images import write_image


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 60)), ("b.png", (50, 30)), ("c.png", (40, 60))):
        write_image(tmp_path / "in" / name, rng.integers(0, 255, (*size, 3), np.uint8))
    return tmp_path / "in"
