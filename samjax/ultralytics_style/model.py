"""`SAM`: a model by its name, as users of Ultralytics write it."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from samjax.checkpoint import Model
from samjax.models.params import flatten
from samjax.predictor import SamPredictor
from samjax.ultralytics_style.predictor import DEFAULT_MODEL, Failure, Predictor
from samjax.ultralytics_style.results import Results


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


class SAM:
    """Segment Anything in Ultralytics' form.

        model = SAM("sam_b.pt")
        model("picture.jpg", bboxes=[439, 437, 524, 709])   # one box: one object
        model(points=[900, 370], labels=[1])                # a click on the same picture
        model("picture.jpg")                                # everything

    `model` is a name or file that `samjax.load` takes, or a `samjax.Model`. Raises what
    `samjax.load` raises.
    """

    task = "segment"

    def __init__(self, model: str | os.PathLike[str] | Model = DEFAULT_MODEL):
        self.name = type(model).__name__ if isinstance(model, Model) else os.fspath(model)
        self.predictor = Predictor({"model": model}, keep_last=True)

    @property
    def model(self) -> Model:
        return self.predictor.model

    @property
    def device(self) -> jax.Device:
        """The device on which the parameters lie, or would be put."""
        return SamPredictor(self.model).device

    @property
    def failures(self) -> list[Failure]:
        """Pictures of the last call that could not be done."""
        return self.predictor.failures

    def __call__(
        self,
        source: Any = None,
        stream: bool = False,
        bboxes: Any = None,
        points: Any = None,
        labels: Any = None,
        masks: Any = None,
        **arguments: Any,
    ) -> list[Results] | Iterator[Results]:
        """As `Predictor`'s. Without a source it is about the picture of the last call, where that
        was on a single one; its embedding is computed once."""
        return self.predictor(
            source, stream=stream, bboxes=bboxes, points=points, labels=labels, masks=masks,
            **arguments,
        )  # fmt: skip

    predict = __call__

    def info(self, detailed: bool = False, verbose: bool = True) -> ModelInfo:
        """Layers, parameters and size, printed where `verbose`; `detailed` lists the layers."""
        leaves = flatten(self.model.params)
        layers: Counter[str] = Counter()
        for name, leaf in leaves.items():
            layers[name.rpartition(".")[0]] += leaf.size
        model = self.model
        info = ModelInfo(
            self.name, len(layers), model.num_parameters, model.num_bytes, model.config.image_size
        )
        if verbose and detailed:
            for layer, size in layers.items():
                print(f"{layer or '(top)':<60}{size:>12,}")
        if verbose:
            print(info)
        return info
