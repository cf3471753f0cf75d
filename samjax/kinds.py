"""The kinds of model that a checkpoint directory holds, and what is particular about each."""

from collections.abc import Callable
from typing import Any, NamedTuple

from samjax import yolo_model
from samjax.model import Model
from samjax.models import architecture
from samjax.models.config import EverythingThresholds, SamConfig
from samjax.models.params import Params
from samjax.models.yolo import YoloConfig
from samjax.yolo_model import YoloModel

AnyModel = Model | YoloModel

_EVERYTHING, _NAMES = "everything", "names"


class Kind(NamedTuple):
    """`name` is the description's "model"; `beside` is what it says beside the config: `what`."""

    name: str
    what: str
    model: type
    config: Any
    abstract_params: Callable[[Any], Params]
    buffer_names: Callable[[Any], frozenset[str]]
    beside: Callable[[Any], dict[str, Any]]
    build: Callable[[Params, Any, dict[str, Any]], AnyModel]


def thresholds(description: dict[str, Any]) -> EverythingThresholds:
    """Those that a description states. Raises `ValueError`."""
    return EverythingThresholds.from_dict(description.get(_EVERYTHING, {}))


def _thresholds_of(model: Model) -> dict[str, Any]:
    return {_EVERYTHING: carried} if (carried := model.everything.to_dict()) else {}


def _build_yolo(params: Params, config: YoloConfig, description: dict[str, Any]) -> YoloModel:
    names = tuple(str(name) for name in description[_NAMES])
    if len(names) != config.num_classes:
        raise ValueError(f"{len(names)} names for {config.num_classes} classes")
    return YoloModel(params, config, names)


SAM = Kind(
    "sam", "thresholds", Model, SamConfig, architecture.abstract_params, architecture.buffer_names,
    _thresholds_of, lambda params, config, about: Model(params, config, thresholds(about)),
)  # fmt: skip
YOLO = Kind(
    "yolov8", "class names", YoloModel, YoloConfig, yolo_model.abstract_params,
    lambda _: frozenset(), lambda model: {_NAMES: list(model.names)}, _build_yolo,
)  # fmt: skip


def kind_of(model: AnyModel) -> Kind:
    return SAM if isinstance(model, Model) else YOLO


def kind_named(name: str) -> Kind:
    """Raises `ValueError` for a kind that this samjax does not know."""
    for kind in (SAM, YOLO):
        if kind.name == name:
            return kind
    raise ValueError(f"it is a model of kind {name!r}; was it saved by a newer samjax?")
