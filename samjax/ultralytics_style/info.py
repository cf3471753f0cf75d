"""What `info` says of a model."""

from collections import Counter
from typing import NamedTuple

from samjax.kinds import AnyModel
from samjax.models.params import flatten


class ModelInfo(NamedTuple):
    """What `SAM.info` returns: a layer is a module that holds arrays; sizes are in bytes."""

    name: str
    layers: int
    parameters: int
    size: int
    image_size: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.layers} layers, {self.parameters:,} parameters, "
            f"{self.size / 1e6:.1f} MB, input {self.image_size} x {self.image_size}"
        )


def describe(
    name: str, model: AnyModel, image_size: int, detailed: bool, verbose: bool
) -> ModelInfo:
    """Printed where `verbose`; `detailed` lists the layers."""
    layers: Counter[str] = Counter()
    for path, leaf in flatten(model.params).items():
        layers[path.rpartition(".")[0]] += leaf.size
    info = ModelInfo(name, len(layers), model.num_parameters, model.num_bytes, image_size)
    if verbose and detailed:
        for layer, size in layers.items():
            print(f"{layer or '(top)':<60}{size:>12,}")
    if verbose:
        print(info)
    return info
