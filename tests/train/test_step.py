"""The compiled step: gradients against torch on Meta's modules, and what a state must keep."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference import random_reference
from samjax import SamConfig, inference
from samjax.convert import from_state_dict
from samjax.models.architecture import buffer_names
from samjax.models.params import flatten
from samjax.train import gradients as gradients_module
from samjax.train.config import TrainConfig
from samjax.train.gradients import Batch, batch_gradients, check_batch, part_gradients
from samjax.train.losses import object_loss
from samjax.train.parameters import join_params, split_params
from samjax.train.sampling import FirstPrompt
from samjax.train.step import TrainState, init_state, train_step, trained_params
from samjax.types import PointLabel, Prompts

CONFIG = SamConfig.tiny(128)
SINGLE = TrainConfig(
    num_points=0, refine_within=0, refine_at_end=0, warmup_steps=0, decay="constant",
    learning_rate=1e-3, layer_decay=1.0,
)  # fmt: skip
DECODER = SINGLE.replace(trained="decoder", ema_decay=0.75)


@pytest.fixture(scope="module")
def reference():
    return random_reference(CONFIG, seed=0)


@pytest.fixture(scope="module")
def params(reference):
    return from_state_dict(reference.state_dict()).params


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


def gradients_of(params, train, batch, seed=3):
    split = split_params(params, CONFIG, train, jax.random.key(9))
    function = jax.jit(
        lambda trained, batch: batch_gradients(
            CONFIG, train, trained, split.frozen, batch, jax.random.key(seed)
        )
    )
    return function(split.trained, batch)


def close(a, b, relative=1e-5):
    """Each array within `relative` of its largest value; those that are rounding alone (see
    `test_gradients_agree_with_torch`) of the largest of all."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    paths = jax.tree.leaves_with_path(b)
    for x, (path, y) in zip(jax.tree.leaves(a), paths, strict=True):
        name = jax.tree_util.keystr(path)
        scale = largest if "k_proj.bias" in name else float(np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=relative * scale, err_msg=name)


def torch_loss(sam, image, masks, inside, click, box):
    """The mean loss of an object that is clicked and one that is boxed, by the paper's words."""
    embeddings = sam.image_encoder(image)
    image_pe = sam.prompt_encoder.get_dense_pe()
    point = (torch.tensor(click)[None, None], torch.ones(1, 1))
    total = 0.0
    for index, (points, boxes) in enumerate([(point, None), (None, torch.tensor(box)[None])]):
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        logits, ious = sam.mask_decoder(
            image_embeddings=embeddings, image_pe=image_pe, sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, multimask_output=points is not None,
        )  # fmt: skip
        truth = torch.tensor(masks[index])[inside]
        losses, errors = [], []
        for logit, iou in zip(logits[0], ious[0], strict=True):
            logit = logit[inside]
            entropy = F.binary_cross_entropy_with_logits(logit, truth.float(), reduction="none")
            weight = torch.where(truth, 0.25, 0.75)
            focal = (weight * (1 - torch.exp(-entropy)) ** 2 * entropy).mean()
            p = logit.sigmoid()
            dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
            losses.append(20 * focal + dice)
            actual = ((logit > 0) & truth).sum() / ((logit > 0) | truth).sum()
            errors.append((iou - actual) ** 2)
        total = total + torch.stack(losses).min() + torch.stack(errors).mean()
    return total / 2


def test_gradients_agree_with_torch(reference, params, measured):
    """Every parameter, within 1e-4 of its largest gradient, for a click and a box at once.

    A key's bias shifts all logits of a query alike, which softmax does not see: there both have
    rounding alone, which is compared with the largest gradient of all.
    """
    batch = jax.tree.map(lambda x: x[-1:], some_batch())
    click, box = np.array([40.0, 30.0], np.float32), np.array([20, 50, 70, 110], np.float32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[:, :25] = True
    reference.zero_grad()
    reference.requires_grad_(True)
    image = torch.tensor(batch.images).permute(0, 3, 1, 2)
    loss = torch_loss(reference, image, batch.masks[0], inside, click, box)
    loss.backward()
    theirs = {
        name: torch.zeros_like(x) if x.grad is None else x.grad
        for name, x in reference.state_dict(keep_vars=True).items()
    }
    reference.requires_grad_(False)
    expected = flatten(from_state_dict(theirs).params)

    coords = jnp.array([[[click, [0.0, 0.0]], box.reshape(2, 2)]], jnp.float32)
    labels = jnp.array([[[1, PointLabel.NOT_A_POINT], [2, 3]]])
    prompts = Prompts(coords, labels, jnp.zeros((1, 2, 32, 32)), jnp.zeros((1, 2), bool))
    first = FirstPrompt(prompts, jnp.array([[True, False]]))
    split = split_params(params, CONFIG, SINGLE)
    gradients, means = jax.jit(
        lambda trained: part_gradients(
            CONFIG, SINGLE, trained, split.frozen, batch, first,
            jax.random.split(jax.random.key(0), (1, 2)), jnp.array(2.0),
        )
    )(split.trained)  # fmt: skip

    np.testing.assert_allclose(means.losses.total, loss.detach(), rtol=1e-5)
    assert set(gradients) == set(expected) - buffer_names(CONFIG)
    largest = max(float(x.abs().max()) for x in theirs.values())
    worst = 0.0
    for name, gradient in gradients.items():
        invisible = name.endswith("k_proj.bias")
        scale = largest if invisible else float(np.abs(expected[name]).max())
        error = float(np.abs(gradient - expected[name]).max())
        worst = max(worst, error / scale if scale else error)
        assert error <= 1e-4 * scale, (name, error, scale)
    measured(f"gradients of a training step: {worst:.1e} of the largest of each parameter")


def test_a_window_is_trained_at_its_place(params):
    """The decoder's gradients are those of prompts and positions moved to where the window is."""
    config, train = CONFIG.replace(frame_size=256), DECODER
    batch = with_embeddings(some_batch())
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(jax.random.split(jax.random.key(4), 2))
    origins = gradients_module._origins(config, keys)
    assert origins.shape == (2, 2) and gradients_module._origins(CONFIG, keys) is None
    assert (origins >= 0).all() and (origins <= 128).all() and (origins != 0).any()
    np.testing.assert_array_equal(origins, np.round(origins))

    split = split_params(params, config, train)
    coords = np.array([[[[20.0, 30.0], [0, 0]], [[9.0, 8.0], [60, 70]]]] * 2, np.float32)
    labels = np.array([[[1, -1], [2, 3]]] * 2)
    prompts = Prompts(
        jnp.asarray(coords), jnp.asarray(labels), jnp.zeros((2, 2, 32, 32)), jnp.zeros((2, 2), bool)
    )
    first = FirstPrompt(prompts, jnp.asarray([[True, False]] * 2))
    found, _ = part_gradients(
        config, train, split.trained, split.frozen, batch, first, keys, jnp.float32(4)
    )

    def loss(trained):
        sam = inference.bind(config, join_params(trained, split.frozen, config, train))
        total = 0.0
        for picture in range(2):
            image_pe = sam.prompt_encoder.get_dense_pe(origins[picture])
            for index in range(2):
                moved = coords[picture, index] + np.asarray(origins[picture])
                prompt = Prompts(jnp.asarray(moved), jnp.asarray(labels[picture, index]))
                predictions = sam.mask_decoder(
                    jnp.asarray(batch.image_embeddings[picture]),
                    image_pe,
                    sam.prompt_encoder(prompt),
                )
                inside = np.arange(32)[None] * 4 + 2 < batch.input_sizes[picture][1]
                total += object_loss(
                    predictions, jnp.asarray(batch.masks[picture, index]),
                    first.ambiguous[picture, index], jnp.asarray(np.broadcast_to(inside, (32, 32))),
                    train=train, mask_threshold=0.0,
                ).total  # fmt: skip
        return total / 4

    close(found, jax.grad(loss)(split.trained), 1e-4)


def test_padding_objects_contribute_nothing(params):
    """Whatever stands in them, and whatever their number; an empty mask is padding too."""
    train = DECODER
    batch = with_embeddings(some_batch())
    masks = np.concatenate([batch.masks, np.ones((2, 2, 32, 32), bool)], axis=1)
    masks[:, 3] = False
    valid = np.concatenate([batch.valid, [[False, True]] * 2], axis=1)
    padded = batch._replace(masks=masks, valid=valid)
    keys = jax.random.split(jax.random.key(0), (2, 4))
    coords = jnp.full((2, 4, 2, 2), 50.0).at[:, :, 1].set(90.0)
    labels = jnp.broadcast_to(jnp.array([2, 3]), (2, 4, 2))
    prompts = Prompts(coords, labels, jnp.zeros((2, 4, 32, 32)), jnp.zeros((2, 4), bool))
    first = FirstPrompt(prompts, jnp.zeros((2, 4), bool))
    split = split_params(params, CONFIG, train)

    @jax.jit
    def run(batch, first, keys):
        batch = batch._replace(valid=batch.valid & batch.masks.any(axis=(-2, -1)))
        return part_gradients(
            CONFIG, train, split.trained, split.frozen, batch, first, keys, jnp.array(4.0)
        )

    whole = run(padded, first, keys)
    close(run(batch, *jax.tree.map(lambda x: x[:, :2], (first, keys))), whole)
    other = np.array(masks)
    other[:, 2] = batch.masks[:, 0]
    same = run(padded._replace(masks=other), first, keys)
    jax.tree.map(np.testing.assert_array_equal, same, whole)


def test_parts_of_a_batch_add_up_to_the_whole(params):
    """Also where one half has fewer objects than the other, and over several iterations."""
    train = DECODER.replace(num_points=2, refine_at_end=1)
    batch = with_embeddings(some_batch(4))
    batch.valid[0, 1] = batch.valid[2, 0] = False
    whole = gradients_of(params, train, batch)
    halves = gradients_of(params, train.replace(accumulate=2), batch)
    assert halves[2] == whole[2] == 6
    close(halves, whole)


def test_all_padding_changes_nothing_but_decay(params):
    batch = with_embeddings(some_batch())
    gradients, means, objects = gradients_of(
        params, DECODER, batch._replace(valid=np.zeros((2, 2), bool))
    )
    assert objects == 0
    assert not any(np.any(x) for x in jax.tree.leaves((gradients, means)))


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
from test_step import CONFIG, SINGLE, close, some_batch

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
    environment = {
        "PATH": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=environment, cwd=Path(__file__).parent,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.endswith("the same\n"), done.stderr


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
