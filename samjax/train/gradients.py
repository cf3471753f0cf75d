"""Gradients of a batch: encoder once, decoder for every iteration.

The mask that an iteration hands to the next is a constant to the gradient, as the point drawn from
it is. So every iteration's gradient is computed when the iteration is over and added up, and the
memory for the decoder's activations is that of one iteration, without computing anything twice;
`jax.checkpoint` is not used (the encoder's attention has one of its own on the CPU). What bounds
the encoder's memory is `TrainConfig.accumulate`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from samjax.inference import bind, for_each_picture
from samjax.models.config import SamConfig
from samjax.models.sam import PROMPTS_AT_ONCE
from samjax.platforms import platform_dependent
from samjax.train import sampling
from samjax.train.config import TrainConfig
from samjax.train.losses import ObjectLoss, mask_iou, object_loss
from samjax.train.parameters import LORA, Leaves, has_prefix, join_params, part
from samjax.train.sampling import FirstPrompt
from samjax.types import HqEmbeddings, Prompts

OF_PICTURES = ("image_encoder", f"{LORA}.image_encoder", "mask_decoder.hq.fusion")
"""Prefixes of the names whose gradients go through the image embeddings (of an HQ model, with its
HQ features) and nowhere else."""


class Batch(NamedTuple):
    """Pictures of one model's input size with P objects each, some of them padding.

    `images` are normalized and padded as `samjax.transforms` does it; `image_embeddings` take their
    place where the whole image encoder is frozen. `masks` are the ground truth at the low
    resolution, in the frame of the padded input, and `input_sizes` the (height, width) of the
    pictures in it. `boxes` are the objects' first and last input pixels, (x0, y0, x1, y1), all four
    inclusive; without them they are taken from `masks`, in steps of a low-resolution pixel. Objects
    that are not `valid`, or have no pixel, count nowhere.
    """

    masks: Bool[Array | np.ndarray, "B P h w"]
    valid: Bool[Array | np.ndarray, "B P"]
    input_sizes: Int[Array | np.ndarray, "B 2"]
    images: Float[Array | np.ndarray, "B S S 3"] | None = None
    image_embeddings: Float[Array | np.ndarray, "B H W D"] | None = None
    boxes: Float[Array | np.ndarray, "B P 4"] | None = None


class Means(NamedTuple):
    """What adds up over parts of a batch to the means in `Metrics`."""

    losses: ObjectLoss
    first_iou: Float[Array, ""]
    last_iou: Float[Array, ""]


class Objects(NamedTuple):
    """What the decoder is given in one iteration, and what its answer is measured by."""

    prompts: Prompts
    masks: Bool[Array | np.ndarray, "B P h w"]
    ambiguous: Bool[Array, "B P"]
    inside: Bool[Array, "B P h w"]
    valid: Bool[Array | np.ndarray, "B P"]


def batch_gradients(
    config: SamConfig,
    train: TrainConfig,
    trained: Leaves,
    frozen: Leaves,
    batch: Batch,
    key: Key[Array, ""],
) -> tuple[Leaves, Means, Float[Array, ""]]:
    """Gradients of the mean loss over a batch's objects, the means, and the number of objects.

    The batch goes through in `train.accumulate` parts. They are accumulated here and not by
    `optax.MultiSteps`: so an update is always a whole step, nothing half summed up has to be
    saved, and since the sums are divided by the whole batch's number of objects, the result is
    that of the batch in one piece.
    """
    valid = jnp.asarray(batch.valid) & jnp.any(jnp.asarray(batch.masks), axis=(-2, -1))
    batch = batch._replace(valid=valid)
    objects = jnp.sum(valid).astype(jnp.float32)
    pictures, per_picture = valid.shape
    keys = jax.vmap(lambda k: jax.random.split(k, per_picture))(jax.random.split(key, pictures))

    def parts(x: Array | np.ndarray) -> Array:
        """Every n-th picture in one part, so that a part is spread over all devices."""
        x = jnp.asarray(x)
        return jnp.swapaxes(x.reshape(-1, train.accumulate, *x.shape[1:]), 0, 1)

    def add(total, piece: tuple[Batch, Array]):
        some, some_keys = piece
        first = _first_prompts(config, train, some, some_keys)
        result = part_gradients(
            config, train, trained, frozen, some, first, some_keys, jnp.maximum(objects, 1.0)
        )
        return jax.tree.map(jnp.add, total, result), None

    means = Means(_no_loss(), jnp.zeros(()), jnp.zeros(()))
    zero = ({name: jnp.zeros_like(x) for name, x in trained.items()}, means)
    (gradients, means), _ = jax.lax.scan(add, zero, jax.tree.map(parts, (batch, keys)))
    return gradients, means, objects


def part_gradients(
    config: SamConfig,
    train: TrainConfig,
    trained: Leaves,
    frozen: Leaves,
    batch: Batch,
    first: FirstPrompt,
    keys: Key[Array, "B P"],
    count: Float[Array, ""],
) -> tuple[Leaves, Means]:
    """Gradients and means of a batch that starts with given prompts, divided by `count`."""
    inside = _inside(config, batch)
    origins = _origins(config, keys)
    next_prompt = functools.partial(
        sampling.next_prompt, scale=_scale(config), mask_threshold=config.mask_threshold
    )
    encoder = {n: x for n, x in trained.items() if any(has_prefix(n, p) for p in OF_PICTURES)}
    decoder = {n: x for n, x in trained.items() if n not in encoder}

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(batch.valid, x, 0.0)) / count

    def encode(encoder: Leaves) -> Array | HqEmbeddings:
        if batch.image_embeddings is not None:
            return jnp.asarray(batch.image_embeddings)
        params = join_params({**decoder, **encoder}, frozen, config, train)
        with _precision(config):
            return bind(config, params).encode(jnp.asarray(batch.images))

    def decode(
        decoder: Leaves, embeddings: Array | HqEmbeddings, objects: Objects
    ) -> tuple[Array, tuple[ObjectLoss, Array]]:
        params = join_params({**decoder, **encoder}, frozen, config, train)
        prompts = objects.prompts
        if origins is not None:
            coords = jnp.asarray(prompts.coords) + origins[:, None, None]
            prompts = prompts._replace(coords=coords)
        with _precision(config):
            decode = bind(config, params).decode
            predictions = for_each_picture(decode, embeddings, prompts, origins)
        loss = functools.partial(object_loss, train=train, mask_threshold=config.mask_threshold)
        losses = _per_object(loss)(predictions, objects.masks, objects.ambiguous, objects.inside)
        means = jax.tree.map(
            lambda x: jnp.sum(jnp.where(objects.valid, x, 0.0)) / (count * train.iterations), losses
        )
        chosen = _per_object(sampling.choose)(predictions, objects.ambiguous)
        return means.total, (means, chosen.logits)

    def iterate(carry, iteration: tuple[Array, Array]):
        gradients, prompts, ambiguous = carry
        add_point, at_point = iteration
        objects = Objects(prompts, batch.masks, ambiguous, inside, batch.valid)
        more, losses, logits = _decode_gradients(decode, decoder, embeddings, objects)
        iou = mean(_per_object(mask_iou)(logits > config.mask_threshold, batch.masks, inside))
        prompts = _per_object(next_prompt)(
            at_point, prompts, logits, batch.masks, inside, add_point
        )
        gradients = jax.tree.map(jnp.add, gradients, more)
        return (gradients, prompts, jnp.zeros_like(ambiguous)), (losses, iou)

    embeddings, encoder_gradient = jax.vjp(encode, encoder)
    zeros = jax.tree.map(jnp.zeros_like, (decoder, embeddings))
    carry = (zeros, first.prompts, first.ambiguous)
    (sums, _, _), (losses, ious) = jax.lax.scan(iterate, carry, _iterations(train, keys))
    gradients = {**sums[0], **encoder_gradient(sums[1])[0]}
    losses = jax.tree.map(lambda x: jnp.sum(x, axis=0), losses)
    return {name: gradients[name] for name in trained}, Means(losses, ious[0], ious[-1])


def _decode_gradients(
    decode: Callable, decoder: Leaves, embeddings: Array | HqEmbeddings, objects: Objects
) -> tuple[tuple[Leaves, Array | HqEmbeddings], ObjectLoss, Array]:
    """Gradients of `decode` by parameters and embeddings, its losses, and the chosen logits.

    On the CPU a few objects of every picture at a time, so that what the backward pass needs of
    them stays in the processor's cache; elsewhere all at once.
    """
    gradient = jax.grad(decode, argnums=(0, 1), has_aux=True)

    def whole(decoder, embeddings, objects):
        gradients, (losses, logits) = gradient(decoder, embeddings, objects)
        return gradients, losses, logits

    def in_groups(decoder, embeddings, objects):
        pictures, number = objects.valid.shape
        at_once = max(1, PROMPTS_AT_ONCE // pictures)
        size = max(n for n in range(1, number + 1) if number % n == 0 and n <= at_once)

        def add(sums, group: Objects):
            gradients, losses, logits = whole(decoder, embeddings, group)
            return jax.tree.map(jnp.add, sums, (gradients, losses)), logits

        groups = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(pictures, -1, size, *x.shape[2:]), 1, 0), objects
        )
        zeros = jax.tree.map(jnp.zeros_like, (decoder, embeddings)), _no_loss()
        (gradients, losses), logits = jax.lax.scan(add, zeros, groups)
        logits = jnp.moveaxis(logits, 0, 1).reshape(pictures, number, *logits.shape[3:])
        return gradients, losses, logits

    return platform_dependent(decoder, embeddings, objects, cpu=in_groups, default=whole)


def _no_loss() -> ObjectLoss:
    return ObjectLoss(*[jnp.zeros(())] * len(ObjectLoss._fields))


def encoder_is_frozen(train: TrainConfig) -> bool:
    """Whether nothing in the image encoder is trained, so that embeddings stay what they are."""
    wanted = part(train.trained)
    return not wanted.lora and not any(
        has_prefix(prefix, "image_encoder") or not prefix for prefix in wanted.prefixes
    )


def check_batch(config: SamConfig, train: TrainConfig, batch: Batch) -> None:
    """Raises `ValueError` for a batch whose shapes do not fit, or whose encoder is not frozen."""
    pictures, size, low = len(batch.valid), config.image_size, config.low_res_size
    if (batch.images is None) == (batch.image_embeddings is None):
        raise ValueError("a batch needs either images or image_embeddings, and not both.")
    if batch.image_embeddings is not None and config.hq:
        raise ValueError(
            "an HQ model takes more of a picture than its embedding: the batch has to hold images, "
            "not image_embeddings."
        )
    if batch.image_embeddings is not None and not encoder_is_frozen(train):
        raise ValueError(
            f"trained is {train.trained!r}, which changes the image encoder: the batch has to hold "
            "images, not image_embeddings."
        )
    grid = config.grid_size
    shapes = {
        "masks": (batch.masks, (*batch.valid.shape, low, low)),
        "input_sizes": (batch.input_sizes, (pictures, 2)),
        "images": (batch.images, (pictures, size, size, 3)),
        "image_embeddings": (batch.image_embeddings, (pictures, grid, grid, config.embed_dim)),
        "boxes": (batch.boxes, (*batch.valid.shape, 4)),
    }
    for name, (array, shape) in shapes.items():
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {shape}.")
    if pictures % train.accumulate:
        raise ValueError(f"{pictures} pictures cannot be cut into {train.accumulate} equal parts.")


def _first_prompts(
    config: SamConfig, train: TrainConfig, batch: Batch, keys: Key[Array, "B P"]
) -> FirstPrompt:
    def sample(key, target, input_size, box):
        return sampling.first_prompt(
            key, target, input_size, train=train, scale=_scale(config), box=box
        )

    boxes = None if batch.boxes is None else jnp.asarray(batch.boxes)
    sizes = _each(batch.input_sizes, batch)
    return _per_object(sample)(_fold(keys, 0), batch.masks, sizes, boxes)


def _origins(config: SamConfig, keys: Key[Array, "B P"]) -> Float[Array, "B 2"] | None:
    """Where each picture begins in the frame, (x, y), uniformly random among whole pixels; None
    where the input is the whole frame."""
    free = (config.frame_size or config.image_size) - config.image_size
    if not free:
        return None
    at_origin = _fold(keys, 2**31 - 1)[:, 0]
    draw = functools.partial(jax.random.randint, shape=(2,), minval=0, maxval=free + 1)
    return jax.vmap(draw)(at_origin).astype(jnp.float32)


def _iterations(train: TrainConfig, keys: Key[Array, "B P"]) -> tuple[Array, Array]:
    """For each iteration whether a point is added after it, and a key for that point."""
    schedule = _per_object(functools.partial(sampling.point_schedule, train=train))(_fold(keys, 1))
    after = jnp.roll(jnp.moveaxis(schedule, -1, 0), -1, axis=0)
    return after, jax.vmap(lambda n: _fold(keys, n))(2 + jnp.arange(train.iterations))


def _inside(config: SamConfig, batch: Batch) -> Bool[Array, "B P h w"]:
    inside = functools.partial(
        sampling.pixels_inside, side=config.low_res_size, scale=_scale(config)
    )
    return _each(jax.vmap(inside)(jnp.asarray(batch.input_sizes)), batch)


def _each(per_picture: Array | np.ndarray, batch: Batch) -> Array:
    """Something of each picture, for each of its objects."""
    x = jnp.asarray(per_picture)[:, None]
    return jnp.broadcast_to(x, (*batch.valid.shape, *x.shape[2:]))


def _per_object(function: Callable) -> Callable:
    return jax.vmap(jax.vmap(function))


def _fold(keys: Key[Array, "B P"], number: Int[Array, ""] | int) -> Key[Array, "B P"]:
    return _per_object(lambda key: jax.random.fold_in(key, number))(keys)


def _scale(config: SamConfig) -> float:
    """Input pixels along the side of a low-resolution one."""
    return config.image_size / config.low_res_size


def _precision(config: SamConfig):
    """float32 means float32, as in `samjax.inference`."""
    return jax.default_matmul_precision("highest" if config.dtype == "float32" else "default")
