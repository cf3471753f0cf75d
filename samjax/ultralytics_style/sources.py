"""What `source` may be, and the pictures in it."""

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from samjax.images import PICTURE_SUFFIXES, decode_image, pillow_to_rgb, read_image
from samjax.ultralytics_style.download import download, downloaded, is_url, url_suffix
from samjax.ultralytics_style.host_array import to_numpy
from samjax.ultralytics_style.video import VIDEO_SUFFIXES, read_frames

KINDS = (
    "a picture or video file, a folder, a glob, a URL, an array (height, width, 3) in BGR, a "
    "Pillow picture, a tensor (batch, 3, height, width) in RGB, or a list of these"
)
_STREAMS = ("rtsp://", "rtmp://", "tcp://", "udp://")


class Frame(NamedTuple):
    """One picture; `number` is that of a video's frame, from 0, and None for all else."""

    path: str
    image: UInt8[np.ndarray, "H W 3"]
    number: int | None = None


class Source(NamedTuple):
    """A picture or a video that has not been read yet. `frames` may raise, then and later."""

    name: str
    frames: Callable[[], Iterator[Frame]]
    is_video: bool = False


def list_sources(source: Any, *, vid_stride: int = 1) -> list[Source]:
    """The pictures and videos of `KINDS`, in order; folders and globs sorted by path.

    An entry of a list that is not there becomes a source that raises when it is read. Raises
    `FileNotFoundError` for one that is given alone, a folder without pictures or videos, and a glob
    that matches none; `ValueError` for an empty list and for screens, cameras and network streams;
    `TypeError` for anything else.
    """
    if not isinstance(source, list | tuple):
        return _one(source, vid_stride, number=0)
    if not source:
        raise ValueError("source is an empty list; give at least one picture")
    found: list[Source] = []
    for number, item in enumerate(source):
        if isinstance(item, list | tuple):
            raise TypeError(f"entry {number} of source is a list; give one flat list")
        try:
            found += _one(item, vid_stride, number)
        except (OSError, ValueError, TypeError) as error:
            if len(source) == 1:
                raise
            found.append(_broken(item, number, error))
    return found


def _one(source: Any, stride: int, number: int) -> list[Source]:
    if isinstance(source, str | os.PathLike):
        return _named(source, stride)
    name = f"image{number}.jpg"
    if isinstance(source, Image.Image):
        return [_picture(name, lambda: pillow_to_rgb(source, name=name))]
    if isinstance(source, np.ndarray):
        return [_picture(name, lambda: read_image(source, image_format="BGR"))]
    if hasattr(source, "__array__") and np.ndim(source):
        return _tensor(source, number)
    if isinstance(source, int):
        raise ValueError(
            f"source is {source!r}, a camera; read its frames with cv2.VideoCapture and give them "
            "as arrays"
        )
    raise TypeError(f"source is of type {type(source).__name__}; it can be {KINDS}")


def _named(source: str | os.PathLike[str], stride: int) -> list[Source]:
    text = os.fspath(source)
    if is_url(text):
        if url_suffix(text) in VIDEO_SUFFIXES:
            return [Source(text, lambda: _video_of_url(text, stride), is_video=True)]
        return [_picture(text, lambda: decode_image(download(text), name=text))]
    path = Path(text)
    if path.is_dir():
        inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        return _files(inside, stride, f"no pictures or videos in {path}")
    if path.exists():
        return [_file(path, stride)]
    _refuse_streams(text)
    if glob.has_magic(text):
        matches = [Path(match) for match in glob.glob(text, recursive=True)]
        return _files(matches, stride, f"no picture or video matches {text}")
    raise FileNotFoundError(f"no such file or folder: {path}")


def _files(paths: list[Path], stride: int, message: str) -> list[Source]:
    known = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    chosen = sorted(path for path in paths if path.suffix.lower() in known and path.is_file())
    if not chosen:
        others = f"; of {len(paths)} entries none is one" if paths else ""
        raise FileNotFoundError(f"{message}{others} (looked for {' '.join(sorted(known))})")
    return [_file(path, stride) for path in chosen]


def _file(path: Path, stride: int) -> Source:
    name = str(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Source(name, lambda: _video(path, name, stride), is_video=True)
    return _picture(name, lambda: read_image(path))


def _picture(name: str, read: Callable[[], np.ndarray]) -> Source:
    return Source(name, lambda: iter([Frame(name, read())]))


def _video(path: Path, name: str, stride: int) -> Iterator[Frame]:
    for number, image in read_frames(path, name=name, stride=stride):
        yield Frame(name, image, number)


def _video_of_url(url: str, stride: int) -> Iterator[Frame]:
    with downloaded(url) as path:
        yield from _video(path, url, stride)


def _tensor(source: Any, number: int) -> list[Source]:
    """A batch (B, 3, H, W), or one picture (3, H, W), of RGB values as `read_image` takes them."""
    array = to_numpy(source)
    batch = array[None] if array.ndim == 3 else array
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(
            f"source is a tensor of shape {array.shape}; expected (batch, 3, height, width) in "
            "RGB, float in [0, 1] or uint8. Arrays of NumPy are (height, width, 3) in BGR"
        )

    def reader(image: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: read_image(np.ascontiguousarray(image.transpose(1, 2, 0)))

    return [_picture(f"image{number + i}.jpg", reader(image)) for i, image in enumerate(batch)]


def _broken(item: Any, number: int, error: Exception) -> Source:
    def frames() -> Iterator[Frame]:
        raise error

    is_name = isinstance(item, str | os.PathLike)
    return Source(str(item) if is_name else f"entry {number} of source", frames)


def _refuse_streams(text: str) -> None:
    if (
        text.isdecimal()
        or text.lower().startswith(("screen", *_STREAMS))
        or text.endswith(".streams")
    ):
        raise ValueError(
            f"source is {text!r}: screens, cameras and network streams are not read; take their "
            "frames, with cv2.VideoCapture for instance, and give them as arrays"
        )
