"""How torch lays out what several formats have, as rows and transforms for their tables.

Torch keeps linear weights as (out, in), convolutions as (out, in, row, column), depthwise ones as
(channels, 1, row, column) and transposed convolutions as (in, out, row, column). A transposed
convolution of stride 2 with a 2x2 kernel needs no flip here, since `UpscaleTwice` writes each tap
where torch does.
"""

import numpy as np

from samjax.convert.table import Row, Transform, permute

LINEAR = permute(1, 0)
CONV = permute(2, 3, 1, 0)
CONV_TRANSPOSED = permute(0, 2, 3, 1)

_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def layer(source: str, target: str, kernel: Transform) -> list[Row]:
    """A layer with a bias."""
    return [
        Row(f"{source}.weight", f"{target}.kernel", kernel),
        Row(f"{source}.bias", f"{target}.bias"),
    ]


def norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}.scale"), Row(f"{source}.bias", f"{target}.bias")]


def batch_norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.{a}", f"{target}.{b}") for a, b in _BATCH_NORM.items()]


def _pointwise_forward(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4 or x.shape[2:] != (1, 1):
        raise ValueError(f"{x.shape}, expected (out, in, 1, 1)")
    return x[:, :, 0, 0].transpose()


def _pointwise_inverse(x: np.ndarray) -> np.ndarray:
    return x.transpose()[:, :, None, None]


POINTWISE = Transform(_pointwise_forward, _pointwise_inverse)


def _count_forward(x: np.ndarray) -> np.ndarray:
    if x.shape or x.dtype != np.int64:
        raise ValueError(f"{x.dtype} of shape {x.shape}, expected one int64")
    if not 0 <= x <= 2**24:
        raise ValueError(f"{x}, expected a count of at most {2**24}, which float32 can hold")
    return x.astype(np.float32)


def _count_inverse(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64)


COUNT = Transform(_count_forward, _count_inverse)
"""A whole number, which is float32 here as no gradient can be taken beside an integer."""
