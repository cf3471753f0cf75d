"""What is kept of a picture that has been encoded, and how it is kept in a file, for clicks and
everything without the image encoder.

A safetensors file with what the encoder computed, the picture's sizes, and the SHA-256 of the
picture's pixels and of the parameters and settings that encoded it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from samjax.model import Model
from samjax.models.config import SamConfig
from samjax.models.params import fingerprint, flatten
from samjax.types import HqEmbeddings
from samjax.upscaler import Upscaler
from samjax.writing import check_target, write_beside

KIND = "samjax embedding"
FORMAT = "1"


class Prepared(NamedTuple):
    """A picture on the host, as the image encoder takes it; sizes and pixels as in `Picture`."""

    batch: Float[np.ndarray, "1 S S 3"]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    pixels: str


class Picture(NamedTuple):
    """What the predictor keeps of a picture: its embedding (of an HQ model, with HQ features), the
    sizes (height, width) of the picture as it was given and as it was resized for the model, and
    the SHA-256 of its pixels (`samjax.embeddings`)."""

    features: Float[Array, "1 h w D"] | HqEmbeddings
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    upscaler: Upscaler
    pixels: str


def encoder_digest(model: Model) -> str:
    """SHA-256 of all that decides about a model's embeddings: the image encoder's parameters (and
    an HQ model's fusion) with their types, its architecture, normalization and type of computing.

    All of these arrays are gone through.
    """
    config = model.config
    leaves = flatten({"image_encoder": model.params["image_encoder"]})
    if config.hq:
        leaves |= flatten({"hq": model.params["mask_decoder"]["hq"]})
    described = f"{config.image_encoder} {config.pixel_mean} {config.pixel_std} {config.dtype}"
    return hashlib.sha256((fingerprint(leaves) + described).encode()).hexdigest()


def pixels_digest(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    """SHA-256 of a picture as it was read, its size included."""
    digest = hashlib.sha256(f"{pixels.shape[0]} {pixels.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def write_embedding(
    path: str | os.PathLike[str], picture: Picture, encoder: str, *, overwrite: bool = False
) -> None:
    """Writes the embedding of a picture, in the type that it has; `encoder` is the
    `encoder_digest` of the model that it comes from.

    The file is whole or not there. Raises `FileExistsError` where there is something, unless
    `overwrite` is given and it is such a file, and `OSError` where it cannot be written.
    """
    path = Path(path)
    check_target(path, "an embedding of samjax's", ours=_is_ours(path), overwrite=overwrite)
    features = picture.features
    if not isinstance(features, HqEmbeddings):
        arrays = {"image_embeddings": features}
    else:
        arrays = features._asdict()
    metadata = {
        "kind": KIND,
        "format": FORMAT,
        "original_size": json.dumps(picture.original_size),
        "input_size": json.dumps(picture.input_size),
        "pixels": picture.pixels,
        "encoder": encoder,
    }
    with write_beside(path) as new:
        save_file({name: np.asarray(x) for name, x in arrays.items()}, new, metadata)


def read_embedding(
    path: str | os.PathLike[str],
    config: SamConfig,
    encoder: str,
    pixels: UInt8[np.ndarray, "H W 3"] | None = None,
) -> Picture:
    """The picture that `write_embedding` wrote, for a model of this `config` and `encoder_digest`.

    With `pixels`, also of the same picture. Raises `FileNotFoundError`, and `ValueError` that says
    what differs: no such file, another model, another picture, damaged, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; save_embedding writes it.")
    try:
        with safe_open(path, framework="numpy") as file:
            found = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no embedding, or damaged: {error}") from None
    if found.get("kind") != KIND:
        raise ValueError(f"{path} is no embedding of samjax's; save_embedding writes them.")
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {found.get('format')}, and this samjax reads {FORMAT}: update it, "
            "or encode the picture again."
        )
    if found["encoder"] != encoder:
        raise ValueError(
            f"{path} was encoded by another model: other parameters, architecture, normalization "
            "or type. Load that model, or encode the picture again with set_image."
        )
    original_size, input_size = (
        tuple(json.loads(found[name])) for name in ("original_size", "input_size")
    )
    if pixels is not None and found["pixels"] != pixels_digest(pixels):
        raise ValueError(
            f"{path} is of another picture: of {original_size[0]}x{original_size[1]} pixels, and "
            f"this one has {pixels.shape[0]}x{pixels.shape[1]}"
            + (", other ones." if original_size == pixels.shape[:2] else ".")
        )
    features = jax.device_put(arrays)
    return Picture(
        HqEmbeddings(**features) if config.hq else features["image_embeddings"],
        original_size,
        input_size,
        Upscaler(config, input_size, original_size),
        found["pixels"],
    )


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("kind") == KIND
    except (SafetensorError, OSError):
        return False
