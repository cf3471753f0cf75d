"""Files and folders that are written whole or not at all, and what stands in the way."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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


def check_target(path: Path, what: str, *, ours: bool, overwrite: bool) -> None:
    """Raises `FileExistsError` where `path` is taken and must not be replaced.

    It may be only with `overwrite`, and if it is `ours`: what the caller writes, as `what` calls it
    ("a torch file"). An empty folder is free.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; overwrite=True (--overwrite) replaces it.")
    if not ours:
        raise FileExistsError(
            f"{path} is not {what}, so it is not replaced even with overwrite. Choose another "
            "name, or remove it yourself."
        )


def check_writable(folder: Path) -> None:
    """Makes an output folder, and a file in it that goes again. Raises `OSError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".", dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        text = f"the output folder cannot be {folder}: there is a file in its place"
        raise NotADirectoryError(errno.ENOTDIR, text) from None
    except OSError as error:
        text = f"cannot write into the output folder {folder} ({error.strerror})"
        raise OSError(error.errno, text) from error


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Each setting of two runs that is not the same, in words; empty where all are."""
    return "; ".join(
        f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )
