"""Where the modules meet `jax.jit`. Everything else calls these functions.

`params` is the nested dict of a model's arrays (`samjax.load(...).params`). The architecture is
read from their shapes unless `config` is given, which also chooses the type to compute in.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from samjax import upscaler
from samjax.models import Sam, SamConfig
from samjax.models.architecture import abstract_model, config_from_params
from samjax.models.initialization import random_params
from samjax.models.params import Params
from samjax.models.shared_picture import SharedPicture
from samjax.platforms import lowered_for, platform_dependent, platform_of
from samjax.types import HqEmbeddings, Predictions, Prompts


def init_params(config: SamConfig, seed: int = 0) -> Params:
    """Random parameters, for training from the start and for tests."""
    return random_params(Sam, config, jax.random.key(seed))


def bind(config: SamConfig, params: Params) -> Sam:
    """The module with these parameters. Cheap enough to call inside a jitted function."""
    return nnx.merge(_graphdef(config), params)


def encode_images(
    params: Params, images: Float[Array | np.ndarray, "B S S 3"], *, config: SamConfig | None = None
) -> Float[Array, "B H W D"] | HqEmbeddings:
    """Image embeddings of a batch of normalized, padded pictures (`samjax.transforms`).

    Those of an HQ model come with its HQ features, (B, h, w, D / 8) at the masks' resolution.
    Raises `ValueError` when the pictures are not of the model's input size.
    """
    config = config or config_from_params(params)
    size = config.image_size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; this model takes (B, {size}, {size}, 3): "
            "resize the longest side, normalize and pad (samjax.transforms)."
        )
    return _encode(config, platform_of(params, images), params, images)


def share_pictures(
    params: Params,
    image_embeddings: Float[Array | np.ndarray, "B H W D"] | HqEmbeddings,
    *,
    config: SamConfig | None = None,
) -> SharedPicture | None:
    """What all prompts without masks share of each picture, for `decode_masks`.

    With it a decoder on the CPU takes less time for every prompt, the same masks but for rounding;
    it is worth its time (that of about three prompts) and memory (34 MB a picture of Meta's models)
    where a picture is asked often. None where nothing is gained: on other platforms, in
    half precision, and of pictures that are spread over devices. Raises `ValueError` when the
    embeddings do not fit the model.
    """
    config = config or config_from_params(params)
    _check_embeddings(config, image_embeddings)
    image_embeddings = jax.tree.map(jnp.asarray, image_embeddings)
    leaf = jax.tree.leaves(image_embeddings)[0]
    on_cpu = {device.platform for device in leaf.devices()} == {"cpu"}
    if config.dtype != "float32" or not on_cpu or _spread(image_embeddings) is not None:
        return None
    return _share(config, platform_of(params, image_embeddings), params, image_embeddings)


def decode_masks(
    params: Params,
    image_embeddings: Float[Array | np.ndarray, "B H W D"] | HqEmbeddings,
    prompts: Prompts,
    *,
    config: SamConfig | None = None,
    least_iou: float | None = None,
    hq_token_only: bool = False,
    shared: SharedPicture | None = None,
) -> Predictions:
    """All masks of every prompt on every picture: (B, P, M, h, w) logits and (B, P, M) IoUs.

    `prompts` have leading axes (B, P); `samjax.prompts.pack` builds them. `Predictions.select`
    picks the single mask or the multimask outputs. With `least_iou`, all masks of a prompt are
    zeros where no multimask output has a predicted IoU above it; the CPU does not compute them.
    Embeddings that are spread over the devices of a mesh are decoded each where it is, with
    parameters that are on all of them. `shared` is what `share_pictures` returns of the embeddings;
    without it, it is made anew where the prompts are many. It is not used for prompts with masks.

    An HQ model makes two masks (M = 2): the single one, and the best of the multimask outputs by
    predicted IoU, both with the HQ token's logits added; with `hq_token_only` they are these alone.
    Raises `ValueError` when shapes do not fit the model or each other.
    """
    config = config or config_from_params(params)
    if hq_token_only and not config.hq:
        raise ValueError("hq_token_only is for HQ models, and this one has no HQ token.")
    _check_decoder_input(config, image_embeddings, prompts)
    if shared is not None:
        pictures = jax.tree.leaves(image_embeddings)[0].shape[:3]
        if shared.multiplied.shape[:3] != pictures:
            raise ValueError(
                f"shared is of pictures (B, H, W) = {shared.multiplied.shape[:3]}, and "
                f"image_embeddings of {pictures}; share_pictures makes it of the same embeddings."
            )
    least = None if least_iou is None else np.float32(least_iou)
    return _decode(
        config, hq_token_only, platform_of(params, image_embeddings, prompts), params,
        image_embeddings, prompts, least, shared, spread=_spread(image_embeddings),
    )  # fmt: skip


def predict_masks(
    params: Params,
    images: Float[Array | np.ndarray, "B S S 3"],
    prompts: Prompts,
    *,
    config: SamConfig | None = None,
) -> Predictions:
    """`encode_images` and `decode_masks` in one go."""
    embeddings = encode_images(params, images, config=config)
    return decode_masks(params, embeddings, prompts, config=config)


def compiled_programs() -> dict[str, int]:
    """How many shapes of each function have been compiled in this process."""
    programs = {
        "encode_images": _encode,
        "share_pictures": _share,
        "decode_masks": _decode,
        **upscaler.PROGRAMS,
    }
    return {name: program._cache_size() for name, program in programs.items()}  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=64)
def _graphdef(config: SamConfig) -> nnx.GraphDef:
    return nnx.split(abstract_model(config))[0]


def _precision(config: SamConfig):
    """float32 means float32: TPUs and recent GPUs would otherwise round the factors."""
    return jax.default_matmul_precision("highest" if config.dtype == "float32" else "default")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    config: SamConfig, platform: str | None, params: Params, images: Array
) -> Array | HqEmbeddings:
    with lowered_for(platform), _precision(config):
        return bind(config, params).encode(images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _share(
    config: SamConfig,
    platform: str | None,
    params: Params,
    image_embeddings: Array | HqEmbeddings,
) -> SharedPicture:
    with lowered_for(platform), _precision(config):
        return for_each_picture(bind(config, params).share, image_embeddings)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="spread")
def _decode(
    config: SamConfig,
    hq_token_only: bool,
    platform: str | None,
    params: Params,
    image_embeddings: Array | HqEmbeddings,
    prompts: Prompts,
    least_iou: Array | None,
    shared: SharedPicture | None = None,
    *,
    spread: NamedSharding | None = None,
) -> Predictions:
    with lowered_for(platform), _precision(config):
        model = bind(config, params)
        return for_each_picture(
            lambda embedding, prompts, shared: model.decode(
                embedding, prompts, least_iou=least_iou, hq_token_only=hq_token_only, shared=shared
            ),
            *jax.tree.map(jnp.asarray, (image_embeddings, prompts, shared)), spread=spread,
        )  # fmt: skip


def _spread(pictures: Array | np.ndarray | HqEmbeddings) -> NamedSharding | None:
    """How pictures are spread over several devices; None where they are not, or while tracing,
    when it is not known."""
    pictures = jax.tree.leaves(pictures)[0]
    if not isinstance(pictures, jax.Array) or isinstance(pictures, jax.core.Tracer):
        return None
    sharding = pictures.sharding
    if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return None
    return sharding


def for_each_picture(
    function: Callable, *pictures: Any, spread: NamedSharding | None = None
) -> Any:
    """`function` of each picture's arrays: one after the other on the CPU, elsewhere together.

    Matrix products with an axis for pictures in front take XLA:CPU twice as long, even for one
    picture, and under `jax.vmap` no picture could go its own way in `jax.lax.cond`. Where the
    pictures are `spread` over the devices of a mesh, each device does its own; without being told,
    the CPU's would all go through every picture.
    """

    def one_by_one(*pictures: Any) -> Any:
        if len(jax.tree.leaves(pictures)[0]) > 1:
            return jax.lax.map(lambda one: function(*one), pictures)
        of_one = function(*jax.tree.map(lambda x: x[0], pictures))
        return jax.tree.map(lambda x: x[None], of_one)

    def all_here(*pictures: Any) -> Any:
        return platform_dependent(*pictures, cpu=one_by_one, default=jax.vmap(function))

    if spread is None:
        return all_here(*pictures)
    axis = PartitionSpec(spread.spec[0])
    return jax.shard_map(
        all_here, mesh=spread.mesh, in_specs=axis, out_specs=axis, check_vma=False
    )(*pictures)


def _check_embeddings(
    config: SamConfig, image_embeddings: Array | np.ndarray | HqEmbeddings
) -> tuple[int, ...]:
    """The axis of pictures, as a shape."""
    if config.hq != isinstance(image_embeddings, HqEmbeddings):
        wanted, kind = ("HqEmbeddings", "an") if config.hq else ("an array", "no")
        raise ValueError(
            f"image_embeddings are of type {type(image_embeddings).__name__}; expected {wanted}, "
            f"as encode_images returns them: this is {kind} HQ model."
        )
    grid, low = config.grid_size, config.low_res_size
    hq_features = None
    if isinstance(image_embeddings, HqEmbeddings):
        image_embeddings, hq_features = image_embeddings
    batch = image_embeddings.shape[:1]
    _expect("image_embeddings", image_embeddings.shape, ("B", grid, grid, config.embed_dim))
    if hq_features is not None:
        _expect("hq_features", hq_features.shape, (*batch, low, low, config.embed_dim // 8))
    return batch


def _check_decoder_input(
    config: SamConfig, image_embeddings: Array | np.ndarray | HqEmbeddings, prompts: Prompts
) -> None:
    batch, low = _check_embeddings(config, image_embeddings), config.low_res_size
    _expect("prompts.labels", prompts.labels.shape, (*batch, "P", "T"))
    _expect("prompts.coords", prompts.coords.shape, (*prompts.labels.shape, 2))
    if prompts.mask_inputs is not None:
        _expect("prompts.mask_inputs", prompts.mask_inputs.shape,
                (*prompts.labels.shape[:2], low, low))  # fmt: skip
    if prompts.has_mask is not None:
        _expect("prompts.has_mask", prompts.has_mask.shape, prompts.labels.shape[:2])


def _expect(name: str, shape: Sequence[int], expected: tuple) -> None:
    fits = len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(e) for e in expected)
        raise ValueError(f"{name} has shape {tuple(shape)}; expected ({wanted}).")
