"""Models in files: `Model`, `load` and `save_checkpoint`.

A checkpoint of samjax is a directory: `params`, which Orbax writes and reads, and `samjax.json`,
with the format's version, the config, the size of each file in `params`, and, where the model
carries any, its thresholds for everything. One comes with the package: "nano".
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from samjax.models.architecture import abstract_params, buffer_names, config_from_params
from samjax.models.config import Dtype, EverythingThresholds, SamConfig
from samjax.models.params import Params, describe, differences, flatten, unflatten

FORMAT_VERSION = 1

NANO = "nano"
"""The name of the package's own model, which is used where none is named."""

ASSETS = Path(__file__).with_name("assets")
"""Where it lies."""

_DESCRIPTION = "samjax.json"
_PARAMS = "params"
_EVERYTHING = "everything"
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A model's arrays and its config: what predictor, generator and user code take.

    A pytree whose leaves are the arrays, so that it passes through `jax.jit` and `jax.grad`.
    `params` is a nested dict of arrays (typed loosely, since JAX puts other leaves in as well).
    `everything` are the thresholds that the generator uses where its caller names none.
    """

    params: Any
    config: SamConfig = dataclasses.field(metadata={"static": True})
    everything: EverythingThresholds = dataclasses.field(
        default=EverythingThresholds(), metadata={"static": True}
    )

    @classmethod
    def from_params(cls, params: Params) -> "Model":
        """With the config that the shapes show (`config_from_params`)."""
        return cls(params, config_from_params(params))

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def astype(self, dtype: Dtype) -> "Model":
        """With parameters of another type; what the modules compute in (`config.dtype`) stays.

        Constants keep theirs: in bfloat16 the positional encoding would lose several pixels.
        """
        keep = buffer_names(self.config)
        leaves = flatten(self.params)
        cast = {n: x if n in keep else jnp.asarray(x, dtype) for n, x in leaves.items()}
        return dataclasses.replace(self, params=unflatten(cast))


def load(source: str | os.PathLike | None = None, *, dtype: Dtype | None = None) -> Model:
    """Reads a checkpoint: a directory by `save_checkpoint`, or a `.pth` file in Meta's names.

    What it is shows in the content, not in the name; torch is imported only for a torch file.
    The string "nano" is the package's own model, also where there is a file of that name, which
    is "./nano" or a `Path`; without a source it is nano too, and that is logged once.

    `dtype` changes the parameters' type on the way (see `Model.astype`); otherwise they keep the
    file's. nano's, which the package holds in half precision, become float32: the predictions are
    the same, no call has to convert them, and training on does not round its updates.

    Raises `FileNotFoundError`, and `ValueError` for what is damaged, foreign, incomplete, of a
    newer format, or would run code; nothing in a file is ever run.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; use 'float32', 'bfloat16' or 'float16'.")
    if source is None:
        _log_default()
        source = NANO
    path = locate(source)
    if not path.exists():
        raise FileNotFoundError(_no_nano(path) if source == NANO else f"There is no {path}.")
    if source == NANO:
        dtype = dtype or "float32"
    for kind in _SOURCES:
        if kind.recognizes(path):
            model = kind.read(path)
            return model if dtype is None else model.astype(dtype)
    raise ValueError(_unrecognized(path))


def locate(source: str | os.PathLike) -> Path:
    """Where `load` looks for it."""
    return ASSETS / NANO if source == NANO else Path(source)


def read_thresholds(source: str | os.PathLike) -> EverythingThresholds:
    """What the model carries, without its arrays; nothing where there is no checkpoint directory.

    Raises `ValueError` as `load` does.
    """
    path = locate(source)
    return _read_description(path)[1] if is_checkpoint_directory(path) else EverythingThresholds()


def save_checkpoint(path: str | os.PathLike, model: Model, *, overwrite: bool = False) -> None:
    """Writes a checkpoint directory, whole or not at all; folders above it are made.

    `overwrite` replaces a checkpoint of samjax, and nothing else. Until the new one is complete the
    old one stays. Raises `FileExistsError`, `ValueError` if the arrays do not fit the config, and
    `OSError` if the path cannot be written.
    """
    path = Path(path)
    _check_fits(flatten(model.params), model.config, "The model")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{path} exists; overwrite=True (--overwrite) replaces it.")
        if not is_checkpoint_directory(path):
            raise FileExistsError(
                f"{path} is not a checkpoint directory of samjax, so it is not replaced even with "
                "overwrite. Choose another name, or remove it yourself."
            )
    with write_beside(path) as folder:
        folder.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute() / _PARAMS, _orbax_tree(model.params))
        _forget_the_place(folder / _PARAMS / "commit_success.txt")
        description = {
            "format": "samjax",
            "format_version": FORMAT_VERSION,
            "config": model.config.to_dict(),
            **({_EVERYTHING: carried} if (carried := model.everything.to_dict()) else {}),
            "files": _file_sizes(folder / _PARAMS),
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def is_checkpoint_directory(path: Path) -> bool:
    return (path / _DESCRIPTION).is_file()


def is_torch_file(path: Path) -> bool:
    """Whether it starts as `torch.save` starts: a zip archive, or a pickle before torch 1.6."""
    return path.is_file() and (starts_as_zip(path) or _start(path).startswith(_PICKLE_MAGICS))


def starts_as_zip(path: Path) -> bool:
    return _start(path).startswith(_ZIP_MAGIC)


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Gives a path to write a file or directory to, and moves it to `path` when that is done.

    An error leaves what was at `path` as it was. Being killed leaves a hidden folder
    `.NAME.*.partial` beside it, which can be removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, f"Cannot write {path}: {error.strerror}") from error
    staged, replaced = Path(folder, path.name), Path(folder, "replaced")
    try:
        yield staged
        if path.is_dir():
            path.rename(replaced)
        try:
            staged.replace(path)
        except OSError:
            if replaced.exists():
                replaced.rename(path)
            raise
    finally:
        if path.exists() or not replaced.exists():
            shutil.rmtree(folder, ignore_errors=True)


class _Source(NamedTuple):
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], Model]


def _read_directory(path: Path) -> Model:
    config, everything = _read_description(path)
    folder = path.absolute() / _PARAMS
    with ocp.StandardCheckpointer() as checkpointer, _damage(path, "Its arrays cannot be read"):
        tree = checkpointer.metadata(folder).item_metadata.tree
    stored = flatten(tree)
    _check_fits(stored, config, str(path))
    sharding = jnp.zeros(()).sharding
    target = {
        name: jax.ShapeDtypeStruct(stored[name].shape, stored[name].dtype, sharding=sharding)
        for name in flatten(abstract_params(config))
    }
    with ocp.StandardCheckpointer() as checkpointer, _damage(path, "Its arrays cannot be read"):
        restored = checkpointer.restore(folder, _orbax_tree(unflatten(target)))
    return Model(unflatten(flatten(restored)), config, everything)


def _read_description(path: Path) -> tuple[SamConfig, EverythingThresholds]:
    """Config and thresholds, once the format is known and every file is there in full.

    Orbax itself notices a file that is cut off only while it reads, and less plainly.
    """
    with _damage(path, f"Its {_DESCRIPTION} cannot be read"):
        description = json.loads((path / _DESCRIPTION).read_text())
        version = int(description["format_version"])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by a newer samjax (format {version}; this one reads up to "
            f"{FORMAT_VERSION}): pip install --upgrade samjax"
        )
    with _damage(path, f"The config in its {_DESCRIPTION} cannot be used"):
        config = SamConfig.from_dict(description["config"])
        expected = dict(description["files"])
    with _damage(path, f"The thresholds in its {_DESCRIPTION} cannot be used"):
        everything = EverythingThresholds.from_dict(description.get(_EVERYTHING, {}))
    found = _file_sizes(path / _PARAMS)
    broken = [
        f"{_PARAMS}/{name}: {found.get(name, 'missing')}, expected {size} bytes"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if broken:
        raise ValueError(
            f"{path} is damaged or was not copied to its end.\n"
            f"{describe({'files that are not whole': broken})}"
        )
    return config, everything


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _forget_the_place(marker: Path) -> None:
    """Orbax looks for this file, on file systems that cannot rename, and never into it; what it
    writes there is the writer's own path, which is nobody else's business."""
    if marker.exists():
        marker.write_text("The checkpoint is complete.\n")


def _read_torch(path: Path) -> Model:
    from samjax.convert import load_pth

    return load_pth(path)


_SOURCES = (_Source(is_checkpoint_directory, _read_directory), _Source(is_torch_file, _read_torch))


@contextlib.contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Orbax and TensorStore raise errors of many types for files that are missing or cut off."""
    try:
        yield
    except Exception as error:
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(
            f"{path} is damaged or was not copied to its end. {what}: {reason}"
        ) from error


def _check_fits(leaves: dict[str, Any], config: SamConfig, whose: str) -> None:
    groups = differences(leaves, flatten(abstract_params(config)))
    if any(groups.values()):
        raise ValueError(f"{whose} has arrays that do not fit its config.\n{describe(groups)}")


def _orbax_tree(params: Params) -> dict[str, Any]:
    """With strings for all keys, as Orbax keeps them."""
    return {
        str(k): _orbax_tree(v) if isinstance(v, dict) else _orbax_leaf(v) for k, v in params.items()
    }


def _orbax_leaf(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


@functools.cache
def _log_default() -> None:
    """Through logging, once: no -W error turns it into an exception, and it can be silenced."""
    logging.getLogger("samjax").warning(
        "samjax: no model is named, so this is %s, a small one for trying out; "
        'samjax.load("%s") takes it without this line',
        NANO, NANO,
    )  # fmt: skip


def _no_nano(path: Path) -> str:
    return (
        f"The model {NANO} is not in this installation of samjax: there is no {path}. Install "
        "samjax again, or name a checkpoint"
        + (f"; the {NANO} in this folder is ./{NANO}." if Path(NANO).exists() else ".")
    )


def _unrecognized(path: Path) -> str:
    if path.is_dir():
        if not any(path.iterdir()):
            return f"{path} is an empty directory."
        return (
            f"{path} has no {_DESCRIPTION}: it is not a checkpoint directory of samjax, or one "
            "that was not written or copied to its end."
        )
    start = _start(path)
    if not start:
        return f"{path} is an empty file."
    return f"{path} is neither a checkpoint directory nor a torch file; it starts with {start!r}."


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)
