"""`SAM`: a model by its name, as users of Ultralytics write it."""

import os
from collections.abc import Iterator
from typing import Any

import jax

from samjax.checkpoint import Model
from samjax.predictor import SamPredictor
from samjax.ultralytics_style.info import ModelInfo, describe
from samjax.ultralytics_style.loop import Failure
from samjax.ultralytics_style.predictor import DEFAULT_MODEL, Predictor
from samjax.ultralytics_style.results import Results


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
        size = self.model.config.image_size
        return describe(self.name, self.model, size, detailed, verbose)
