"""A model that lies on several devices, in a process that has four."""

from pathlib import Path

from devices import run_on_devices

FOUR = """
import dataclasses
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from random_model import random_model
from samjax import SamAutomaticMaskGenerator
from samjax.models.params import flatten, unflatten
from samjax.upscaler import Upscaler

assert jax.device_count() == 4
mesh = jax.sharding.Mesh(jax.devices(), ("model",))
model = random_model()
image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
devices, measure = [], Upscaler.measure

def seen(self, low_res_masks, *arguments, **options):
    devices.append(len(low_res_masks.sharding.device_set))
    return measure(self, low_res_masks, *arguments, **options)

Upscaler.measure = seen

def everything(sharding):
    leaves = flatten(model.params)
    params = unflatten({n: jax.device_put(x, sharding(n, x)) for n, x in leaves.items()})
    generator = SamAutomaticMaskGenerator(
        dataclasses.replace(model, params=params), points_per_side=3, points_per_batch=4,
        pred_iou_thresh=0.0, stability_score_thresh=0.0, output_mode="coco_rle",
    )
    return generator.generate(image)

def cut(name, x):
    kernel = name.endswith("kernel") and x.shape[-1] % 4 == 0
    return NamedSharding(mesh, P(*[None] * (x.ndim - 1), "model") if kernel else P())

alone = everything(lambda name, x: jax.devices()[0])
assert alone
for sharding in (lambda name, x: NamedSharding(mesh, P()), cut):
    spread = everything(sharding)
    assert len(spread) == len(alone)
    for one, other in zip(spread, alone):
        assert one["bbox"] == other["bbox"]
        np.testing.assert_allclose(one["predicted_iou"], other["predicted_iou"], atol=1e-5)
assert len(devices) > 6 and set(devices) == {1}
print("the same")
"""


def test_everything_on_a_mesh():
    """The same masks, each measured on one device: threads must not begin programs of several."""
    said = run_on_devices(4, FOUR, cwd=Path(__file__).parents[1])
    assert said.endswith("the same\n")
