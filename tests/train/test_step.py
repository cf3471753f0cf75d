"""The compiled step, and what a state must keep."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devices import run_on_devices
from samjax import inference
from samjax.models.params import flatten
from samjax.train.config import TrainConfig
from samjax.train.gradients import check_batch
from samjax.train.parameters import split_params
from samjax.train.step import TrainState, init_state, train_step, trained_params
from small_steps import CONFIG, DECODER, SINGLE, close, gradients_of, some_batch, with_embeddings


@pytest.fixture(scope="module")
def decoder_run(params):
    """The states of three steps on the decoder, as NumPy, with metrics."""
    state = init_state(CONFIG, DECODER, params, seed=0)
    step, batch = train_step(CONFIG, DECODER), with_embeddings(some_batch())
    states, metrics = [_copy(state)], []
    for _ in range(3):
        state, more = step(state, batch)
        states.append(_copy(state))
        metrics.append(more)
    return states, metrics


def _copy(tree):
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def test_frozen_parameters_keep_their_bits_and_cost_nothing(params, decoder_run):
    states, _ = decoder_run
    before = flatten(params)
    assert {n for n in before if not n.startswith("mask_decoder.")} == set(states[-1].frozen)
    for name, leaf in states[-1].frozen.items():
        assert leaf.tobytes() == np.asarray(before[name]).tobytes()
    size = sum(x.size for x in states[-1].trained.values())
    in_optimizer = sum(x.size for x in jax.tree.leaves(states[-1].opt_state) if x.ndim)
    assert in_optimizer == 2 * size
    exported = trained_params(CONFIG, DECODER, TrainState(*states[-1]), ema=False)
    assert jax.tree.structure(exported) == jax.tree.structure(params)
    changed = {n for n, x in flatten(exported).items() if not np.array_equal(x, before[n])}
    kernels = {n for n in states[-1].trained if n.endswith("kernel")}
    assert kernels <= changed <= set(states[-1].trained)


def test_average_of_parameters(params, decoder_run):
    states, _ = decoder_run
    expected = {n: np.asarray(x) for n, x in states[0].trained.items()}
    for state in states[1:]:
        expected = {n: 0.75 * x + 0.25 * state.trained[n] for n, x in expected.items()}
    close(states[-1].ema, expected, 1e-6)
    exported = flatten(trained_params(CONFIG, DECODER, TrainState(*states[-1])))
    close({n: exported[n] for n in expected}, expected, 1e-6)


def test_metrics_and_counters(decoder_run):
    states, metrics = decoder_run
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    for one in metrics:
        parts = 20 * one.focal_loss + one.dice_loss + one.iou_loss
        np.testing.assert_allclose(one.loss, parts, rtol=1e-5)
        assert one.first_iou == one.last_iou
        assert 0 <= one.first_iou <= 1
        assert one.objects == 4
        np.testing.assert_allclose(one.learning_rate, 1e-3, rtol=1e-6)
        assert one.grad_norm > 0
    assert len({float(one.loss) for one in metrics}) == 3


def test_a_saved_state_continues_to_the_same_bits(decoder_run, tmp_path):
    import orbax.checkpoint as ocp

    states, _ = decoder_run
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", states[2])
        checkpointer.wait_until_finished()
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states[2])
        restored = checkpointer.restore(tmp_path / "state", target)
    batch = with_embeddings(some_batch())
    after, _ = train_step(CONFIG, DECODER)(jax.tree.map(jnp.asarray, restored), batch)
    jax.tree.map(np.testing.assert_array_equal, _copy(after), states[3])


def test_overfitting_one_batch(params):
    """A click or a box on one of two objects, with corrections: nearly all of both masks."""
    train = SINGLE.replace(
        num_points=1, learning_rate=2e-3, weight_decay=0.0, decay="cosine", total_steps=200
    )
    batch = jax.tree.map(lambda x: x[:1], some_batch())
    state = init_state(CONFIG, train, inference.init_params(CONFIG, seed=0), seed=0)
    step = train_step(CONFIG, train)
    losses, ious = [], []
    for _ in range(200):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
        ious.append(float(metrics.last_iou))
    assert np.mean(losses[-20:]) < 0.05 * losses[0]
    assert np.mean(ious[-20:]) > 0.95


def test_lora_trains_through_the_images(params):
    """Its gradient is that of the merged arrays, by the chain rule."""
    train = SINGLE.replace(trained="lora", lora_rank=2, lora_alpha=4.0)
    batch = jax.tree.map(lambda x: x[:1], some_batch())
    gradients, _, _ = gradients_of(params, train, batch)
    full, _, _ = gradients_of(params, SINGLE.replace(trained=("image_encoder.blocks",)), batch)
    factors = split_params(params, CONFIG, train, jax.random.key(9)).trained
    for block in (0, 1):
        kernel = f"image_encoder.blocks.{block}.attn.qkv.kernel"
        for name, columns in (("q", slice(0, 32)), ("v", slice(64, 96))):
            a = factors[f"lora.{kernel}.{name}.a"]
            close(gradients[f"lora.{kernel}.{name}.b"], 2.0 * a.T @ full[kernel][:, columns], 1e-4)
            assert not gradients[f"lora.{kernel}.{name}.a"].any()  # b is still zero


DEVICES = """
import jax, numpy as np
from samjax import SamConfig, inference
from samjax.train import gradients as gradients_module
from samjax.train.config import TrainConfig
from samjax.train.step import init_state, shard, train_step
from small_steps import CONFIG, SINGLE, close, some_batch

assert jax.device_count() == 4
train = SINGLE.replace(num_points=1, trained="decoder+neck", accumulate=2)
params = inference.init_params(CONFIG, seed=0)
results = []
for devices in (1, 4):
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    state, batch = shard(mesh, init_state(CONFIG, train, params, seed=0), some_batch(8))
    assert len(batch.images.addressable_shards) == devices
    state, metrics = train_step(CONFIG, train)(state, batch)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
    moments = next(s for s in state.opt_state if hasattr(s, "mu"))
    results.append(jax.tree.map(np.asarray, (moments.mu, metrics)))
assert results[0][1].objects == 16
close(results[1], results[0], 1e-5)
print("the same")
"""


def test_four_devices_compute_what_one_does():
    said = run_on_devices(4, DEVICES, cwd=Path(__file__).parent)
    assert said.endswith("the same\n")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(images=None), ["image_embeddings"]),
        (
            dict(images=None, image_embeddings=np.zeros((2, 8, 8, 32), np.float32)),
            ["'all'", "images"],
        ),
        (dict(masks=np.zeros((2, 2, 64, 64), bool)), ["masks", "(2, 2, 64, 64)"]),
        (dict(images=np.zeros((2, 64, 64, 3), np.float32)), ["images", "(2, 128, 128, 3)"]),
        (dict(input_sizes=np.zeros((1, 2), np.int32)), ["input_sizes"]),
    ],
)
def test_batches_that_do_not_fit(change, words):
    with pytest.raises(ValueError) as error:
        check_batch(CONFIG, SINGLE, some_batch()._replace(**change))
    for word in words:
        assert word in str(error.value)


def test_batches_that_cannot_be_cut():
    with pytest.raises(ValueError, match="3 pictures cannot be cut into 2"):
        check_batch(CONFIG, SINGLE.replace(accumulate=2), some_batch(3))


@pytest.mark.parametrize(
    "change",
    [
        dict(num_points=-1), dict(first_point_probability=1.5), dict(ema_decay=1.0),
        dict(accumulate=0), dict(lora_rank=0), dict(total_steps=0), dict(layer_decay=0.0),
    ],
)  # fmt: skip
def test_choices_without_a_meaning(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainConfig(**change)
