"""What a COCO file says of pictures, by their names: boxes and points that are known beforehand."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple


class CocoObjects(NamedTuple):
    """`images` and `annotations` are by `file_name`; every image has a list, perhaps an empty one,
    of annotations without the crowds. `categories` are as the file has them."""

    images: dict[str, Mapping[str, Any]]
    annotations: dict[str, list[Mapping[str, Any]]]
    categories: list[Mapping[str, Any]]


class PictureNames:
    """Finds a picture among names: by its own, or by the last part where only one has that."""

    def __init__(self, names: Iterable[str]):
        self._names = set(names)
        last = Counter(PurePosixPath(name).name for name in self._names)
        self._short = {
            short: name for name in self._names if last[short := PurePosixPath(name).name] == 1
        }

    def find(self, name: str) -> str | None:
        return name if name in self._names else self._short.get(PurePosixPath(name).name)


def read_coco_objects(path: Path, content: bytes | None = None) -> CocoObjects:
    """The file's images and annotations; `content` is what is in it, where that has been read.

    Raises `FileNotFoundError`, and `ValueError` for what is no COCO file, and for an annotation of
    a picture that it does not list.
    """
    if content is None:
        if not path.exists():
            raise FileNotFoundError(f"There is no {path}.")
        content = path.read_bytes()
    file = _parse(path, content)
    try:
        by_id = {image["id"]: image for image in file["images"]}
        images = {str(image["file_name"]): image for image in by_id.values()}
        annotations: dict[str, list[Mapping[str, Any]]] = {name: [] for name in images}
        for thing in file["annotations"]:
            if thing.get("iscrowd"):
                continue
            if thing["image_id"] not in by_id:
                raise ValueError(
                    f"{path} has an object in picture {thing['image_id']!r} that it does not list."
                )
            annotations[str(by_id[thing["image_id"]]["file_name"])].append(thing)
    except (KeyError, TypeError, AttributeError) as error:
        raise not_coco(path, error) from None
    return CocoObjects(images, annotations, file.get("categories") or [])


def not_coco(path: Path, error: Exception) -> ValueError:
    """What to raise where the file lacks something, or has it in another form."""
    return ValueError(
        f"{path} is no COCO file of objects ({type(error).__name__}: {error}); expected images "
        "with id and file_name, annotations with image_id and bbox, and categories with an id."
    )


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        file = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON file ({error}), and so no COCO file.") from None
    if isinstance(file, list):
        raise ValueError(
            f"{path} is a list, as COCO results are, which do not say what the pictures are "
            "called; expected a COCO file with images, annotations and categories."
        )
    if not isinstance(file, dict):
        raise ValueError(f"{path} holds a {type(file).__name__}; expected a COCO file.")
    return file
