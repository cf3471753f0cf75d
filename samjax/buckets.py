"""Paths in a bucket ("gs://bucket/name"), through `etils.epath`, which Orbax uses too.

What lies there is copied to a local folder to be read, and from one when it is written: every
format works in a bucket as it does on a disk.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from etils import epath

LIBRARIES = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs"}
"""What each kind of bucket needs, by its scheme. None of them comes with samjax."""


def is_in_a_bucket(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(tuple(LIBRARIES))


@contextlib.contextmanager
def local_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="samjax-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def copied_here(path: str | os.PathLike, markers: tuple[str, ...]) -> Iterator[Path]:
    """A local copy of a file, or of a folder that has one of `markers` in it.

    Raises `FileNotFoundError`; `ValueError` for a folder without any of them, of which nothing is
    copied; `ImportError` that says what to install; and `OSError` where the bucket cannot be read.
    In messages of errors inside the block the path in the bucket stands for the local one.
    """
    with local_folder() as folder:
        here = folder / Path(os.fspath(path)).name
        with _bucket(path) as there:
            if there.is_file():
                _copy(there, here)
            elif not there.exists():
                raise FileNotFoundError(f"There is no {os.fspath(path)}.")
            elif not any((there / marker).exists() for marker in markers):
                raise ValueError(
                    f"{os.fspath(path)} has no {' or '.join(markers)}: it is not a checkpoint, or "
                    "one that was not copied to its end."
                )
            else:
                _copy_folder(there, here)
        try:
            yield here
        except ValueError as error:
            if str(here) not in str(error):
                raise
            raise ValueError(str(error).replace(str(here), os.fspath(path))) from error


def copy_there(folder: Path, path: str | os.PathLike, *, last: str) -> None:
    """Copies a local folder to a place that is free; the file `last` comes when all others are in.

    Raises `FileExistsError`, `ImportError` that says what to install, and `OSError`.
    """
    with _bucket(path) as there:
        if there.exists():
            raise FileExistsError(
                f"{os.fspath(path)} exists, and what is in a bucket is not replaced, since that "
                "cannot be done in one step. Choose another name, or remove it yourself."
            )
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        for file in sorted(files, key=lambda file: file == folder / last):
            target = there.joinpath(*file.relative_to(folder).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def read_text(path: str | os.PathLike, name: str) -> str | None:
    """What is in the file `name` of a folder, if it is there. Raises what `copied_here` does."""
    with _bucket(path) as there:
        return (there / name).read_text() if (there / name).exists() else None


def list_bucket(path: str | os.PathLike) -> list[str]:
    """All files under a path in a bucket, or the file itself. Raises what `copied_here` does."""
    with _bucket(path) as there:
        if there.is_file():
            return [os.fspath(there)]
        if not there.exists():
            raise FileNotFoundError(f"There is no {os.fspath(path)}.")
        return sorted(_files(there))


@contextlib.contextmanager
def open_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file on a disk or in a bucket, to be read. Raises `OSError`, `ImportError`."""
    if not is_in_a_bucket(path):
        with open(path, "rb") as file:
            yield file
        return
    with _bucket(path) as there, there.open("rb") as file:
        yield file


def _files(there: epath.Path) -> Iterator[str]:
    for entry in there.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield os.fspath(entry)


@contextlib.contextmanager
def _bucket(path: str | os.PathLike) -> Iterator[epath.Path]:
    text = os.fspath(path)
    try:
        yield epath.Path(text)
    except ImportError as error:
        library = next(name for scheme, name in LIBRARIES.items() if text.startswith(scheme))
        raise ImportError(f"{text} is in a bucket, which needs {library}: pip install {library}"
        ) from error  # fmt: skip
    except (ValueError, OSError):
        raise
    except Exception as error:  # each library has errors of its own
        raise OSError(f"{text} cannot be reached ({type(error).__name__}: {error})") from error


def _copy_folder(there: epath.Path, here: Path) -> None:
    here.mkdir(parents=True, exist_ok=True)
    for entry in there.iterdir():
        if entry.is_dir():
            _copy_folder(entry, here / entry.name)
        else:
            _copy(entry, here / entry.name)


def _copy(there: epath.Path, here: Path) -> None:
    with there.open("rb") as source, here.open("wb") as sink:
        shutil.copyfileobj(source, sink)
