"""nano before its training: what others have trained, and a neck of random numbers between."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from samjax.checkpoint import Model
from samjax.convert.efficientnet_lite import load_pretrained, translate
from samjax.convert.key_maps.meta import META
from samjax.convert.pth import read_state_dict
from samjax.convert.table import to_foreign
from samjax.inference import init_params
from samjax.models.architecture import abstract_params
from samjax.models.config import EfficientNetLiteConfig, SamConfig
from samjax.models.params import Params, flatten

_PARTS = {"PromtEncoder": "prompt_encoder", "MaskDecoder": "mask_decoder"}
"""The names in the file, as they are spelled there, and ours."""


def initial_nano(
    decoder_path: str | os.PathLike, seed: int, *, config: SamConfig | None = None
) -> Model:
    """A model to start training from: ImageNet backbone, trained decoder, random neck; float32.

    `decoder_path` is what `read_decoder` reads, `seed` draws the neck. `config` (by default
    `SamConfig.nano()`) may name another EfficientNet-Lite, input size or neck. Raises what
    `load_pretrained` and `read_decoder` raise, and `ValueError` for an image encoder of another
    kind.
    """
    config = config or SamConfig.nano()
    if not isinstance(config.image_encoder, EfficientNetLiteConfig):
        raise ValueError(
            f"config.image_encoder is a {type(config.image_encoder).__name__}; nano has an "
            "EfficientNetLiteConfig."
        )
    params = init_params(config, seed)
    encoder = {**params["image_encoder"], "backbone": load_pretrained(config.image_encoder)}
    return Model({"image_encoder": encoder, **read_decoder(decoder_path, config)}, config)


def read_decoder(path: str | os.PathLike, config: SamConfig) -> Params:
    """`prompt_encoder` and `mask_decoder` of a model, from a torch file with two state dicts.

    The file holds {"PromtEncoder": ..., "MaskDecoder": ...} in Meta's names, as MobileSAMv2
    publishes them (Apache-2.0, see NOTICE). Raises `ValueError` that lists what is missing,
    unexpected or does not fit `config`, and what `read_state_dict` raises.
    """
    content = read_state_dict(path)
    if sorted(content) != sorted(_PARTS) or not all(
        isinstance(part, Mapping) for part in content.values()
    ):
        raise ValueError(
            f"{path} holds {sorted(content)}; expected the state dicts {list(_PARTS)}."
        )
    arrays = {
        f"{_PARTS[part]}.{name}": np.asarray(x)
        for part, state_dict in content.items()
        for name, x in state_dict.items()
    }
    expected = _decoder_leaves(abstract_params(config))
    return translate(META, arrays, expected, f"The arrays in {path}")


def decoder_to_state_dicts(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `read_decoder`: what Meta's two modules load, whatever the image encoder."""
    leaves = {name: np.asarray(x) for name, x in _decoder_leaves(params).items()}
    foreign = {name: np.array(x, order="C") for name, x in to_foreign(META, leaves).items()}
    return {
        part: {
            name.removeprefix(f"{ours}."): x
            for name, x in foreign.items()
            if name.startswith(f"{ours}.")
        }
        for part, ours in _PARTS.items()
    }


def _decoder_leaves(params: Params) -> dict[str, Any]:
    return flatten({name: params[name] for name in _PARTS.values()})
