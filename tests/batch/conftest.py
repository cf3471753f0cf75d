"""A model that finds something, and small pictures."""

import pytest

from random_model import random_model
from samjax.checkpoint import save_checkpoint
from small_batch import make_pictures


@pytest.fixture(scope="session")
def small_model():
    return random_model()


@pytest.fixture(scope="session")
def model_folder(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(folder, small_model)
    return folder


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "in", 10)
