"""Names for pictures: one folder of the output for each, and never one for two."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Picture(NamedTuple):
    """A picture file; `name` is its folder in the output, `file_name` what COCO calls it.

    Both are relative, with "/" between folders.
    """

    path: Path
    name: str
    file_name: str


def name_pictures(
    files: Sequence[tuple[Path, PurePosixPath]], *, reserved: frozenset[str] = frozenset()
) -> list[Picture]:
    """Names for files, each given with its path relative to the folder that was asked for.

    A name is the relative path without suffix. Where two would be the same, or one the other's
    parent, or one of `reserved`, it is the whole relative path, and then as many of the folders
    above as it needs. Short names that differ by case alone count as the same: to some file systems
    they are. Raises `ValueError` where even whole paths clash.
    """
    steps = [0] * len(files)
    for _ in range(1000):
        pictures = [_picture(*file, step) for file, step in zip(files, steps, strict=True)]
        clashing = _clashing([picture.name for picture in pictures], steps, reserved)
        if not clashing:
            return pictures
        for i in clashing:
            steps[i] += 1
    names = ", ".join(str(files[i][0]) for i in sorted(clashing)[:2])
    raise ValueError(f"{names} cannot get folders of their own; give them to two runs")


def next_folder(parent: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """The first of `name`, `name`2, `name`3, ... in `parent` that is not there or is empty."""
    number = 1
    while True:
        folder = Path(parent, name if number == 1 else f"{os.fspath(name)}{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return folder
        number += 1


def _picture(path: Path, relative: PurePosixPath, step: int) -> Picture:
    if step < 2:
        name = relative.with_name(relative.stem) if step == 0 else relative
        return Picture(path, str(name), str(relative))
    parts = Path(os.path.abspath(path)).parts[1:]
    name = PurePosixPath(*parts[-(len(relative.parts) + step - 1) :])
    return Picture(path, str(name), str(name))


def _clashing(names: Sequence[str], steps: Sequence[int], reserved: frozenset[str]) -> set[int]:
    """Indices of the names that have to be longer; names at step 0 are short."""
    same = defaultdict(list)
    for i, name in enumerate(names):
        same[name.casefold()].append(i)
    parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    clashing = {i for i, name in enumerate(names) if name in parents | reserved}
    for group in same.values():
        exact = len({names[i] for i in group}) < len(group)
        if len(group) > 1 and (exact or any(steps[i] == 0 for i in group)):
            clashing.update(group)
    return clashing
