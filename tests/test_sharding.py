"""Checkpoints that are read onto several devices: in a process that has eight."""

from pathlib import Path

import pytest

from devices import run_on_devices
from samjax.model import placement

EIGHT = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from samjax.checkpoint import load, save_checkpoint
from samjax.convert import convert, save_huggingface
from samjax.models import SamConfig
from samjax.models.params import flatten
from samjax.model import Model
from samjax.models.architecture import abstract_params
from samjax.models.params import unflatten

assert jax.device_count() == 8
rng = np.random.default_rng(0)
leaves = flatten(abstract_params(SamConfig.tiny(64)))
arrays = {n: rng.standard_normal(x.shape, np.float32) for n, x in leaves.items()}
model = Model(unflatten(arrays), SamConfig.tiny(64))
orbax, folder = sys.argv[1] + "/orbax", sys.argv[1] + "/huggingface"
save_checkpoint(orbax, model)
save_huggingface(folder, model)

mesh = jax.make_mesh((2, 4), ("data", "model"))
replicated = NamedSharding(mesh, P())

def by_size(name, shape):
    kernel = name.endswith("kernel") and shape[-1] % 4 == 0
    return NamedSharding(mesh, P(*[None] * (len(shape) - 1), "model")) if kernel else replicated

cut = 0
for path, dtype, sharding in (
    (orbax, None, replicated),
    (orbax, "bfloat16", by_size),
    (folder, None, by_size),
):
    found = load(path, dtype=dtype, sharding=sharding)
    for name, x in flatten(found.params).items():
        wanted = sharding if sharding is replicated else by_size(name, x.shape)
        assert x.sharding.is_equivalent_to(wanted, x.ndim), name
        cut += x.addressable_shards[0].data.size < x.size
        expected = arrays[name].astype(x.dtype)
        assert dtype is None or "gaussian" in name or x.dtype == dtype
        np.testing.assert_array_equal(np.asarray(x), expected, err_msg=name)
assert cut > 50
save_checkpoint(sys.argv[1] + "/again", load(orbax, sharding=by_size))
for name, x in flatten(load(sys.argv[1] + "/again").params).items():
    np.testing.assert_array_equal(np.asarray(x), arrays[name])
try:
    load(orbax, sharding=NamedSharding(mesh, P("model")))
except ValueError as error:
    print(error)
"""


def test_arrays_are_read_to_where_they_belong_and_cast_on_the_way(tmp_path):
    said = run_on_devices(8, EIGHT, str(tmp_path), cwd=Path(__file__).parent)
    assert "cannot be laid out as NamedSharding" in said
    assert "Give a function of name and shape" in said


def test_a_function_that_gives_no_sharding():
    with pytest.raises(ValueError, match="sharding gives a NoneType for a.b"):
        placement(lambda name, shape: None, "a.b", (3,))
