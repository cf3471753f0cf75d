"""Every choice of a training run: a small TOML file, or `RunConfig` in Python.

model = "nano"
output = "runs/cells"

[[data]]
path = "cells/instances.json"

[[validation]]
path = "cells/validation.json"
images = "cells/images"

[train]
trained = "decoder"
learning_rate = 1e-4
total_steps = 2000
"""

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samjax.datasets import Source, open_source
from samjax.models.config import Precision
from samjax.train.augment import Augmentation
from samjax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Annotated pictures, as `samjax.datasets.open_source` takes them. `weight` is the share of
    training pictures drawn from here, relative to the other data.
    """

    path: str
    images: str = ""
    weight: float = 1.0

    def open(self) -> Source:
        """Raises `FileNotFoundError` and `ValueError` as `samjax.datasets.open_source`."""
        return open_source(self.path, self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Raises `ValueError` for values without a meaning.

    What shapes the result: all but the fields in `MAY_CHANGE`, which can be others when a run is
    continued.
    """

    data: tuple[DataConfig, ...]
    output: str
    """Folder for checkpoints, the log, pictures, and the trained model."""
    model: str = "nano"
    """What training starts from: whatever `samjax.load` takes."""
    precision: Precision | None = None
    """What its steps compute in, if it is to be another than the model's: parameters, their
    averages and the optimizer are float32 always, and evaluations are the model's."""
    validation: tuple[DataConfig, ...] = ()
    image_size: int = 0
    """Input size in training if it is to be another one than the model's."""
    crop_size: int = 0
    """Side in pixels of the windows that are trained on, in place of the whole input; their
    positions are encoded as those of a random place in it. An augmentation's scale of 1 is then a
    picture of this size. For an image encoder whose arrays fit every size."""
    batch_size: int = 4
    """Pictures in a step, over all devices and processes."""
    num_objects: int = 8
    """Masks drawn from each picture; P in shapes."""
    repeat_objects: bool = False
    """A picture with fewer masks shows them again, under other prompts."""
    augment: bool = True
    augmentation: Augmentation = Augmentation()
    train: TrainConfig = TrainConfig()
    seed: int = 0
    """Of the order of pictures, augmentation, prompts and new parameters."""
    embedding_cache: str = ""
    """Folder where image embeddings are kept, computed once; for a frozen image encoder."""
    num_workers: int = 0
    """Processes that load pictures; with 0 it is threads of this one."""
    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2
    """Checkpoints kept, the latest ones."""
    evaluate_every: int = 1000
    """Steps between evaluations; there is always one at the end. 0 for that one alone."""
    validation_pictures: int = 50
    """At most this many in an evaluation, spread evenly over the data."""
    sample_pictures: int = 4
    """Of them shown beside their ground truth."""

    def __post_init__(self):
        _check(len(self.data) > 0, "data", "at least one [[data]] with a path", self.data)
        for name in ("batch_size", "num_objects", "log_every", "checkpoint_every", "keep",
                     "validation_pictures"):  # fmt: skip
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("num_workers", "evaluate_every", "sample_pictures", "image_size", "crop_size"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for data in self.data:
            _check(data.weight > 0 and math.isfinite(data.weight), "weight", "above 0", data.weight)
        _check(
            not (self.embedding_cache and self.augment), "augment",
            "false where embeddings are cached, since they are of the picture as it is",
            self.augment,
        )  # fmt: skip

    def replace(self, **changes: Any) -> "RunConfig":
        return dataclasses.replace(self, **changes)

    def differences(self, other: "RunConfig") -> list[str]:
        """A line for each choice that shapes the result and is another in `other`."""
        ours, theirs = (_flat(dataclasses.asdict(run)) for run in (self, other))
        return [
            f"{name}: {ours.get(name)!r} here, {theirs.get(name)!r} there"
            for name in sorted({*ours, *theirs})
            if name.split(".")[0] not in MAY_CHANGE and ours.get(name) != theirs.get(name)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Raises `ValueError` that names a key that is unknown, or a value of a wrong type."""
        return _build(cls, values, "")


MAY_CHANGE = (
    "output", "validation", "num_workers", "log_every", "checkpoint_every", "keep",
    "evaluate_every", "validation_pictures", "sample_pictures", "embedding_cache",
)  # fmt: skip


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's values, with paths in it taken from the folder it is in.

    Raises `FileNotFoundError`, and `ValueError` for a file that is no TOML.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    tables = [values, *_tables(values.get("data")), *_tables(values.get("validation"))]
    for table in tables:
        for name in ("path", "images", "output", "embedding_cache"):
            if isinstance(table.get(name), str) and table[name]:
                table[name] = os.path.normpath(path.parent / table[name])
    model = values.get("model")
    if isinstance(model, str) and (path.parent / model).exists():
        values["model"] = os.path.normpath(path.parent / model)
    return values


def with_setting(values: dict[str, Any], text: str) -> dict[str, Any]:
    """`values` with one more, given as "train.learning_rate=1e-4"; the value is TOML's, and a word
    needs no quotes. Raises `ValueError` for another form."""
    name, equals, value = text.partition("=")
    *tables, last = name.strip().split(".")
    if not equals or not last:
        raise ValueError(f"a setting is NAME=VALUE, such as train.learning_rate=1e-4, not {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    changed = dict(values)
    inner = changed
    for table in tables:
        inner[table] = dict(inner.get(table, {}))
        inner = inner[table]
    inner[last] = parsed
    return changed


def _tables(value: Any) -> list[dict[str, Any]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'a run'} has to be a table of settings, not {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(hints)}"
            raise ValueError(f"there is no setting {where}{name}{hint}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"{where}{missing[0]} is missing: it has to be given")
    return cls(**{n: _value(v, hints[n], f"{where}{n}") for n, v in values.items()})


def _value(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type that `hint` says."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{name}.")
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(_value(v, kind, f"{name}[{i}]") for i, (v, kind) in pairs)
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return _value(value, part, name)
            except ValueError:
                continue
    elif origin is typing.Literal and value in parts:
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ValueError(f"{name} is {value!r}; it has to be {kind}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= _flat(inner, f"{prefix}{name}.")
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _check(holds: bool, name: str, wanted: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} has to be {wanted}, not {value!r}")
