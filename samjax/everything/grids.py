"""The points of every layer of crops, given or made."""

import numpy as np
from jaxtyping import Float

from samjax.postprocess import build_all_layer_point_grids


def make_point_grids(
    points_per_side: int | None, point_grids: list[np.ndarray] | None, layers: int, factor: int
) -> list[Float[np.ndarray, "N 2"]]:
    """Points in [0, 1] for the whole picture, then for the crops of each of `layers` layers.

    The arguments are the generator's. Raises `ValueError` where not exactly one of the first two
    is given, or grids do not fit.
    """
    if (points_per_side is None) == (point_grids is None):
        raise ValueError(
            f"points_per_side is {points_per_side} and point_grids "
            f"{'given' if point_grids is not None else 'None'}; give exactly one of the two."
        )
    if point_grids is None:
        assert points_per_side is not None
        return build_all_layer_point_grids(points_per_side, layers, factor)
    if len(point_grids) != layers + 1:
        raise ValueError(
            f"point_grids has {len(point_grids)} grids; crop_n_layers={layers} needs {layers + 1}."
        )
    grids = [np.asarray(grid, np.float64) for grid in point_grids]
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(f"a point grid has shape {grid.shape}; expected (N, 2), N > 0.")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError("a point grid has values outside [0, 1]; they are shares of a side.")
    return grids
