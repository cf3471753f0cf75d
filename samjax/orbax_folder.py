"""Checkpoint directories of samjax: `params`, which Orbax writes and reads, and `samjax.json`, with
the format's version, the kind of model, the config, the size of each file in `params`, and what
else belongs to the kind: a SAM's thresholds for everything, a detector's class names."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from samjax.buckets import copy_there, is_in_a_bucket, local_folder
from samjax.kinds import SAM, AnyModel, Kind, kind_named, kind_of, thresholds
from samjax.model import Placement, placement
from samjax.models.config import Dtype, EverythingThresholds
from samjax.models.params import Params, describe, differences, flatten, unflatten
from samjax.writing import check_target, write_beside

FORMAT_VERSION = 1

DESCRIPTION = "samjax.json"
_PARAMS = "params"


class DamagedError(ValueError):
    """A checkpoint directory that is not whole."""


class Description(NamedTuple):
    """What `samjax.json` says: the kind of model, its config, and the whole content."""

    kind: Kind
    config: Any
    content: dict[str, Any]


def save_checkpoint(path: str | os.PathLike, model: AnyModel, *, overwrite: bool = False) -> None:
    """Writes a checkpoint directory, whole or not at all; folders above it are made.

    `overwrite` replaces a checkpoint of samjax, and nothing else. Until the new one is complete the
    old one stays. A path in a bucket ("gs://bucket/name") has to be free: it is written to a local
    folder first, and `samjax.json`, without which nothing is a checkpoint, is copied last.

    Of several processes the one that calls it writes, with nobody waiting.

    Raises `FileExistsError`, `ValueError` if the arrays do not fit the config or this process has
    only parts of them, `ImportError` where the bucket's library is missing, and `OSError` if the
    path cannot be written.
    """
    kind = kind_of(model)
    _check_fits(flatten(model.params), kind.abstract_params(model.config), "The model")
    if is_in_a_bucket(path):
        with local_folder() as folder:
            save_checkpoint(folder / "model", model)
            copy_there(folder / "model", path, last=DESCRIPTION)
        return
    path = Path(path)
    check_target(
        path, "a checkpoint directory of samjax", ours=is_checkpoint_directory(path),
        overwrite=overwrite,
    )  # fmt: skip
    with write_beside(path) as folder:
        folder.mkdir()
        with _checkpointer() as checkpointer:
            checkpointer.save(folder.absolute() / _PARAMS, _orbax_tree(model.params))
        _forget_the_place(folder / _PARAMS / "commit_success.txt")
        description = {
            "format": "samjax",
            "format_version": FORMAT_VERSION,
            "model": kind.name,
            "config": model.config.to_dict(),
            **kind.beside(model),
            "files": _file_sizes(folder / _PARAMS),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def is_checkpoint_directory(path: Path) -> bool:
    return (path / DESCRIPTION).is_file()


def read_checkpoint_directory(
    path: Path, *, dtype: Dtype | None = None, sharding: Placement | None = None
) -> AnyModel:
    """The model, each array read straight to where `sharding` puts it, as `dtype`.

    Raises `ValueError` for what is damaged, of a newer format, or cannot be laid out so.
    """
    kind, config, content = read_description(path)
    folder = path.absolute() / _PARAMS
    with _checkpointer() as checkpointer, _damage(path, "Its arrays cannot be read"):
        tree = checkpointer.metadata(folder).item_metadata.tree
    stored = flatten(tree)
    expected = kind.abstract_params(config)
    _check_fits(stored, expected, str(path))
    sharding = sharding or jnp.zeros(()).sharding
    keep = kind.buffer_names(config) if dtype else frozenset(stored)
    target = {
        name: jax.ShapeDtypeStruct(
            stored[name].shape,
            stored[name].dtype if name in keep else jnp.dtype(dtype),
            sharding=placement(sharding, name, tuple(stored[name].shape)),
        )
        for name in flatten(expected)
    }
    with _checkpointer() as checkpointer, _damage(path, "Its arrays cannot be read"):
        restored = checkpointer.restore(folder, _orbax_tree(unflatten(target)))
    with _damage(path, f"The {kind.what} in its {DESCRIPTION} cannot be used"):
        return kind.build(unflatten(flatten(restored)), config, content)


def read_description(path: Path) -> Description:
    """What the directory holds, once the format is known and every file is there in full.

    Orbax itself notices a file that is cut off only while it reads, and less plainly.
    """
    with _damage(path, f"Its {DESCRIPTION} cannot be read"):
        description = json.loads((path / DESCRIPTION).read_text())
        version = int(description["format_version"])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by a newer samjax (format {version}; this one reads up to "
            f"{FORMAT_VERSION}): pip install --upgrade samjax"
        )
    with _damage(path, f"The config in its {DESCRIPTION} cannot be used"):
        kind = kind_named(description.get("model", SAM.name))
        config = kind.config.from_dict(description["config"])
        expected = dict(description["files"])
    found = _file_sizes(path / _PARAMS)
    broken = [
        f"{_PARAMS}/{name}: {found.get(name, 'missing')}, expected {size} bytes"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if broken:
        raise DamagedError(
            f"{path} is damaged or was not copied to its end.\n"
            f"{describe({'files that are not whole': broken})}"
        )
    return Description(kind, config, description)


def parse_thresholds(text: str, path: str) -> EverythingThresholds:
    """Those in the text of a `samjax.json`. Raises `ValueError`, with the path."""
    with _damage(path, f"Its {DESCRIPTION} cannot be read"):
        description = dict(json.loads(text))
    return thresholds_in(description, path)


def thresholds_in(content: dict[str, Any], path: Path | str) -> EverythingThresholds:
    """Those of a description's content. Raises `ValueError`, with the path."""
    with _damage(path, f"The {SAM.what} in its {DESCRIPTION} cannot be used"):
        return thresholds(content)


def _checkpointer() -> ocp.StandardCheckpointer:
    """Of this process alone: Orbax's would wait for all others of `jax.distributed`."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"samjax{process}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _forget_the_place(marker: Path) -> None:
    """Orbax looks for this file, on file systems that cannot rename, and never into it; what it
    writes there is the writer's own path, which is nobody else's business."""
    if marker.exists():
        marker.write_text("The checkpoint is complete.\n")


@contextlib.contextmanager
def _damage(path: Path | str, what: str) -> Iterator[None]:
    """Orbax and TensorStore raise errors of many types for files that are missing or cut off."""
    try:
        yield
    except Exception as error:
        reason = str(error)[:300] or type(error).__name__
        raise DamagedError(
            f"{path} is damaged or was not copied to its end. {what}: {reason}"
        ) from error


def _check_fits(leaves: dict[str, Any], expected: Params, whose: str) -> None:
    groups = differences(leaves, flatten(expected))
    if any(groups.values()):
        raise ValueError(f"{whose} has arrays that do not fit its config.\n{describe(groups)}")


def _orbax_tree(params: Params) -> dict[str, Any]:
    """With strings for all keys, as Orbax keeps them."""
    return {
        str(k): _orbax_tree(v) if isinstance(v, dict) else _orbax_leaf(v) for k, v in params.items()
    }


def _orbax_leaf(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jax.process_count() == 1:
        return jnp.asarray(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"Arrays are spread over {jax.process_count()} processes, and each has only a part of "
            "them. Gather them first, in all processes: "
            "jax.experimental.multihost_utils.process_allgather(params, tiled=True)."
        )
    return np.asarray(leaf)  # Orbax takes no array of one process's device among several.
