"""What there is to segment: pictures in folders, globs, lists, tars, ArrayRecord files and buckets.

Each picture has a key, its name in everything that is written: the path within the folder, or the
archive's name and the path within that.
"""

import functools
import glob
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from samjax.buckets import is_in_a_bucket, list_bucket, open_file
from samjax.images import PICTURE_SUFFIXES, decode_image, read_image

TAR_SUFFIXES = (".tar",)
RECORD_SUFFIXES = (".array_record", ".arrayrecord")
LIST_SUFFIXES = (".txt", ".lst")
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each new try at what the operating system could not read."""

Source = str | os.PathLike[str]


class Item(NamedTuple):
    """A picture: the file that it is in, and where in it: `size` bytes from `start`, or the record
    `start` where `size` is -1. The whole file where both are -1."""

    key: str
    path: str
    start: int = -1
    size: int = -1


class Problem(NamedTuple):
    """A source that could not be read, or something in it."""

    path: str
    reason: str


class Listing(NamedTuple):
    items: list[Item]
    problems: list[Problem]


def list_items(sources: Source | Sequence[Source], *, output: Path | None = None) -> Listing:
    """All pictures of the sources, in the order of their keys; what is in `output` is none.

    A source is a folder, with all folders in it; a glob; a file of paths, one a line (.txt); a tar
    in WebDataset's form, uncompressed; an ArrayRecord file whose records are picture files; a
    picture; or any of these in a bucket. An archive that cannot be read is a `Problem`, and the
    rest goes on.

    Raises `FileNotFoundError` for a source that is not there, `ValueError` where there is no
    picture in any and where two pictures have the same key.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    items: list[Item] = []
    problems: list[Problem] = []
    for source in given:
        found, wrong = _list_source(os.fspath(source), Path())
        items += found
        problems += wrong
    if output is not None:
        own = str(output.resolve()) + os.sep
        items = [one for one in items if not os.path.realpath(one.path).startswith(own)]
    unique: dict[str, Item] = {}
    for item in items:
        other = unique.setdefault(item.key, item)
        if other != item:
            raise ValueError(
                f"two pictures are called {item.key}: in {other.path} and {item.path}. Give the "
                "folder above both, or segment them to two outputs."
            )
    if not unique:
        told = f" ({problems[0].path}: {problems[0].reason})" if problems else ""
        raise ValueError(f"there are no pictures in {', '.join(str(one) for one in given)}{told}")
    return Listing([unique[key] for key in sorted(unique)], problems)


def read_item(item: Item) -> UInt8[np.ndarray, "H W 3"]:
    """The picture, as `samjax.images.read_image` reads one.

    What the operating system could not read is tried again after `PAUSES`. Raises what
    `read_image` raises.
    """
    for pause in (*PAUSES, None):
        try:
            return _read(item)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError


def _read(item: Item) -> UInt8[np.ndarray, "H W 3"]:
    if item.start < 0 and not is_in_a_bucket(item.path):
        return read_image(item.path)
    if item.start >= 0 and item.size < 0:
        content = _record_reader(item.path).read([item.start])[0]
        return decode_image(content, name=f"record {item.key}")
    with open_file(item.path) as file:
        if item.start >= 0:
            file.seek(item.start)
        content = file.read(item.size) if item.size >= 0 else file.read()
    if item.size >= 0 and len(content) < item.size:
        raise ValueError(f"{item.path} ends within {item.key}: it is truncated.")
    return decode_image(content, name=item.path if item.start < 0 else item.key)


def _list_source(source: str, beside: Path) -> Listing:
    if is_in_a_bucket(source):
        return _expand(list_bucket(source), source.rstrip("/"))
    path = beside / source
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if _is_wanted(file, path))
        return _expand(files, str(path))
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return _list_of(path)
    if path.is_file():
        return _expand([str(path)], str(path.parent))
    if glob.has_magic(str(path)):
        files = sorted(glob.glob(str(path), recursive=True))
        folders = [part for part in Path(path).parts]
        fixed = next(i for i, part in enumerate(folders) if glob.has_magic(part))
        return _expand([f for f in files if os.path.isfile(f)], str(Path(*folders[:fixed])))
    if path.suffixes[-2:-1] == [".tar"]:
        raise FileNotFoundError(f"no such file: {path}")
    raise FileNotFoundError(f"no such file, folder or pattern: {path}")


def _list_of(path: Path) -> Listing:
    """Paths in a list are relative to it."""
    items: list[Item] = []
    problems: list[Problem] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        try:
            found, wrong = _list_source(text, path.parent)
        except OSError as error:
            problems.append(Problem(f"{path}, line {number}", str(error)))
            continue
        if len(found) == 1 and found[0].start < 0 and not os.path.isabs(text):
            found = [found[0]._replace(key=PurePosixPath(text).as_posix())]
        items += found
        problems += wrong
    return Listing(items, problems)


def _is_wanted(file: Path, root: Path) -> bool:
    suffixes = PICTURE_SUFFIXES | set(TAR_SUFFIXES) | set(RECORD_SUFFIXES)
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower() in suffixes and file.is_file()


def _expand(files: Iterable[str], root: str) -> Listing:
    """Pictures as they are, archives into the pictures in them."""
    items: list[Item] = []
    problems: list[Problem] = []
    for file in files:
        key = file[len(root) :].lstrip("/") if file.startswith(root) else Path(file).name
        key = PurePosixPath(key.replace(os.sep, "/")).as_posix()
        suffix = PurePosixPath(key).suffix.lower()
        inside: Callable[[str, str], Iterator[Item]] | None = None
        if suffix in TAR_SUFFIXES:
            inside = _tar_members
        elif suffix in RECORD_SUFFIXES:
            inside = _record_items
        elif suffix in PICTURE_SUFFIXES:
            items.append(Item(key, file))
            continue
        else:
            problems.append(Problem(file, _unknown(suffix)))
            continue
        try:
            items += list(inside(file, key))
        except (tarfile.TarError, OSError, ValueError, RuntimeError, EOFError) as error:
            problems.append(Problem(file, f"cannot be read ({type(error).__name__}: {error})"))
    return Listing(items, problems)


def _unknown(suffix: str) -> str:
    if suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        return "is compressed, and a picture in it cannot be found without reading all: unpack it"
    return f"is neither a picture nor an archive of pictures ({suffix or 'no suffix'})"


def _tar_members(path: str, key: str) -> Iterator[Item]:
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = PurePosixPath(member.name.removeprefix("./"))
            if member.isfile() and name.suffix.lower() in PICTURE_SUFFIXES:
                yield Item(f"{key}/{name}", path, member.offset_data, member.size)


def _record_items(path: str, key: str) -> Iterator[Item]:
    count = _record_reader(path).num_records()
    if not count:  # which is what the library says of a damaged file, too
        raise ValueError("it has no records, or is damaged")
    for number in range(count):
        yield Item(f"{key}/{number:08d}", path, number)


@functools.lru_cache(maxsize=64)
def _record_reader(path: str) -> Any:
    """Which reads the file's index once. Threads share it."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ImportError(
            f'{path} is an ArrayRecord file, which needs array_record: pip install "samjax[batch]"'
        ) from error
    return ArrayRecordReader(path)
