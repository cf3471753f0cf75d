"""Annotated pictures of whatever kind lies at a path."""

import os
from pathlib import Path

from samjax.datasets.sources import Source, open_coco, open_mask_folder, open_sa1b


def open_source(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> Source:
    """A COCO instances file, a folder of `sa_*.json` in SA-1B's layout, or a folder with `images`
    and `masks`: which one shows in itself.

    `images` is the folder of a COCO file's pictures, by default `images` beside the file. Raises
    `FileNotFoundError` and `ValueError` as the functions for each kind, and `ValueError` for
    `images` with a folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no annotated pictures: there is no file or folder {path}")
    if path.is_dir():
        if images:
            raise ValueError(
                f"a folder of pictures, {images}, goes with a COCO file; {path} is a folder itself"
            )
        return open_mask_folder(path) if (path / "masks").is_dir() else open_sa1b(path)
    return open_coco(path, images or path.parent / "images")
