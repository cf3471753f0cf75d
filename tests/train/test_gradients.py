"""Gradients against torch on Meta's modules, and of what a batch is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quick import jit
from reference import random_reference
from samjax import inference
from samjax.convert import from_state_dict
from samjax.models.architecture import buffer_names
from samjax.models.params import flatten
from samjax.train import gradients as gradients_module
from samjax.train.gradients import part_gradients
from samjax.train.losses import object_loss
from samjax.train.parameters import join_params, split_params
from samjax.train.sampling import FirstPrompt
from samjax.types import PointLabel, Prompts
from small_steps import CONFIG, DECODER, SINGLE, close, gradients_of, some_batch, with_embeddings


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


@pytest.mark.optimized
def test_gradients_agree_with_torch(measured):
    """Every parameter, within 1e-4 of its largest gradient, for a click and a box at once.

    A key's bias shifts all logits of a query alike, which softmax does not see: there both have
    rounding alone, which is compared with the largest gradient of all.
    """
    config = CONFIG.replace(decoder_depth=2)
    reference = random_reference(config, seed=0)
    params = from_state_dict(reference.state_dict()).params
    batch = jax.tree.map(lambda x: x[-1:], some_batch())
    click, box = np.array([40.0, 30.0], np.float32), np.array([20, 50, 70, 110], np.float32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[:, :25] = True
    reference.requires_grad_(True)
    image = torch.tensor(batch.images).permute(0, 3, 1, 2)
    loss = torch_loss(reference, image, batch.masks[0], inside, click, box)
    loss.backward()
    theirs = {
        name: torch.zeros_like(x) if x.grad is None else x.grad
        for name, x in reference.state_dict(keep_vars=True).items()
    }
    expected = flatten(from_state_dict(theirs).params)

    coords = jnp.array([[[click, [0.0, 0.0]], box.reshape(2, 2)]], jnp.float32)
    labels = jnp.array([[[1, PointLabel.NOT_A_POINT], [2, 3]]])
    prompts = Prompts(coords, labels, jnp.zeros((1, 2, 32, 32)), jnp.zeros((1, 2), bool))
    first = FirstPrompt(prompts, jnp.array([[True, False]]))
    split = split_params(params, config, SINGLE)
    gradients, means = jax.jit(
        lambda trained: part_gradients(
            config, SINGLE, trained, split.frozen, batch, first,
            jax.random.split(jax.random.key(0), (1, 2)), jnp.array(2.0),
        )
    )(split.trained)  # fmt: skip

    np.testing.assert_allclose(means.losses.total, loss.detach(), rtol=1e-5)
    assert set(gradients) == set(expected) - buffer_names(config)
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
    origins = np.asarray(origins)
    np.testing.assert_array_equal(origins, np.round(origins))

    split = split_params(params, config, train)
    coords = np.array([[[[20.0, 30.0], [0, 0]], [[9.0, 8.0], [60, 70]]]] * 2, np.float32)
    labels = np.array([[[1, -1], [2, 3]]] * 2)
    prompts = Prompts(
        jnp.asarray(coords), jnp.asarray(labels), jnp.zeros((2, 2, 32, 32)), jnp.zeros((2, 2), bool)
    )
    first = FirstPrompt(prompts, jnp.asarray([[True, False]] * 2))
    found, _ = jit(
        lambda trained: part_gradients(
            config, train, trained, split.frozen, batch, first, keys, jnp.float32(4)
        )
    )(split.trained)

    def loss(trained):
        sam = inference.bind(config, join_params(trained, split.frozen, config, train))
        total = 0.0
        for picture in range(2):
            image_pe = sam.prompt_encoder.get_dense_pe(jnp.asarray(origins[picture]))
            for index in range(2):
                moved = coords[picture, index] + origins[picture]
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

    close(found, jit(jax.grad(loss))(split.trained), 1e-4)


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

    @jit
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


@pytest.mark.slow
def test_all_padding_changes_nothing_but_decay(params):
    batch = with_embeddings(some_batch())
    gradients, means, objects = gradients_of(
        params, DECODER, batch._replace(valid=np.zeros((2, 2), bool))
    )
    assert objects == 0
    assert not any(np.any(x) for x in jax.tree.leaves((gradients, means)))
