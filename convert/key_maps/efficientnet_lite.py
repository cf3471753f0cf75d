"""The names of `efficientnet-lite-pytorch`, with blocks counted within their stage.

The package counts them through: `_blocks.3` is `_blocks.2.0` here, if the stages before it have
one block and two. Torch keeps depthwise kernels as (channels, 1, row, column).
"""

import numpy as np

from samjax.convert.table import SAME, Row, Table, Transform, permute

_CONV = permute(2, 3, 1, 0)


def _pointwise_forward(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4 or x.shape[2:] != (1, 1):
        raise ValueError(f"{x.shape}, expected (out, in, 1, 1)")
    return x[:, :, 0, 0].transpose()


def _pointwise_inverse(x: np.ndarray) -> np.ndarray:
    return x.transpose()[:, :, None, None]


_POINTWISE = Transform(_pointwise_forward, _pointwise_inverse)
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.{a}", f"{target}.{b}", SAME) for a, b in _NORM.items()]


_SOURCE, _TARGET = "_blocks.{i}.{j}", "stages.{i}.{j}"

EFFICIENTNET_LITE = Table(
    [
        Row("_conv_stem.weight", "stem.kernel", _CONV),
        *_norm("_bn0", "stem_norm"),
        Row(f"{_SOURCE}._expand_conv.weight", f"{_TARGET}.expand.kernel", _POINTWISE),
        *_norm(f"{_SOURCE}._bn0", f"{_TARGET}.expand_norm"),
        Row(f"{_SOURCE}._depthwise_conv.weight", f"{_TARGET}.depthwise.kernel", _CONV),
        *_norm(f"{_SOURCE}._bn1", f"{_TARGET}.depthwise_norm"),
        Row(f"{_SOURCE}._project_conv.weight", f"{_TARGET}.project.kernel", _POINTWISE),
        *_norm(f"{_SOURCE}._bn2", f"{_TARGET}.project_norm"),
    ]
)
