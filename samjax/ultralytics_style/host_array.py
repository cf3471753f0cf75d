"""Arrays that answer to what code for torch tensors calls on them."""

from typing import Any

import numpy as np


class HostArray(np.ndarray):
    """A NumPy array with `cpu()` and `numpy()`, so that `boxes.xyxy.cpu().numpy()` works."""

    def cpu(self) -> "HostArray":
        return self

    def numpy(self) -> np.ndarray:
        return self.view(np.ndarray)


def host(array: np.ndarray) -> HostArray:
    """The same memory as a `HostArray`."""
    return np.asarray(array).view(HostArray)


def to_numpy(value: Any) -> np.ndarray:
    """A list, array or tensor of any library, from wherever it lies. May raise what NumPy raises
    for values that are no array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)
