"""Pictures in, pictures out: the host side of every program."""

import contextlib
import io
import json
import math
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from samjax.drawing import overlay

__all__ = [
    "PICTURE_SUFFIXES",
    "decode_image",
    "list_images",
    "overlay",
    "pillow_to_rgb",
    "read_image",
    "reading_up_to",
    "write_image",
    "write_json",
    "write_png",
]

PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""Suffixes, in lower case, by which `list_images` knows a picture."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGED = (
    OSError,
    EOFError,
    LookupError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def read_image(
    source: str | os.PathLike[str] | np.ndarray,
    *,
    image_format: str = "RGB",
) -> UInt8[np.ndarray, "H W 3"]:
    """Any picture as RGB, uint8, height first.

    Files go through Pillow: upright by their EXIF orientation, first frame only, alpha dropped,
    palettes, CMYK and YCbCr converted. Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the
    fourth channel being alpha, which is dropped. Grey is repeated three times. Values:

    - uint8 as they are; an RGB array is returned without a copy where its layout allows;
    - uint16, and files of 16 or 32 bits a grey value: round(v / 257), so 65535 becomes 255;
    - float, and float TIFF files: round(255 v), v in [0, 1];
    - bool: 0 or 255.

    Pillow itself reduces 16-bit *colour* files to their high byte. `image_format` is the channel
    order of an array, "RGB" or "BGR"; files carry their own.

    Raises:
        FileNotFoundError, IsADirectoryError: no file there, or a folder.
        TypeError: neither a path nor an array, or an array of another dtype.
        ValueError: not a picture, truncated, too large for Pillow's guard, no pixels, NaN or
            infinity, floats outside [0, 1], another number of axes or channels, a layout that
            looks like channels first, an unknown `image_format`.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}")
    if isinstance(source, np.ndarray):
        rgb = _to_rgb(source, name="the picture array")
        return np.ascontiguousarray(rgb[..., ::-1]) if image_format == "BGR" else rgb
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"a picture is a path or a NumPy array, not {type(source).__name__}: "
            "convert other arrays with np.asarray(image)"
        )
    if image_format == "BGR":
        raise ValueError(
            "image_format='BGR' describes an array; a file carries its own channel order"
        )
    path = Path(source)
    return _to_rgb(_pixels(_open(path), name=str(path)), name=str(path))


@contextlib.contextmanager
def reading_up_to(pixels: int) -> Iterator[None]:
    """Has Pillow's guard against decompression bombs let pictures of that many pixels pass.

    The limit is Pillow's and for the whole process, on all threads, until the block ends; a higher
    one stays, and so does none.
    """
    before = Image.MAX_IMAGE_PIXELS
    if before is not None:
        Image.MAX_IMAGE_PIXELS = max(before, pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode_image(content: bytes, *, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """A picture file that is in memory, as `read_image` reads one; `name` is for messages.

    Raises ValueError as `read_image` does.
    """
    picture = _decode(io.BytesIO(content), name=name, size=len(content))
    return _to_rgb(_pixels(picture, name=name), name=name)


def pillow_to_rgb(picture: Image.Image, *, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """A Pillow picture by the rules that `read_image` has for files; `name` is for messages.

    Raises ValueError as `read_image` does.
    """
    return _to_rgb(_pixels(_upright(picture), name=name), name=name)


def _open(path: Path) -> Image.Image:
    """The first frame of a picture file, decoded and upright."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a picture; list_images lists a folder's")
    if not path.exists():
        raise FileNotFoundError(f"no such picture: {path}")
    return _decode(path, name=str(path), size=path.stat().st_size)


def _decode(file: Path | io.BytesIO, *, name: str, size: int) -> Image.Image:
    try:
        with Image.open(file) as picture:
            picture.load()
            return _upright(picture)
    except UnidentifiedImageError as error:
        what = "an empty file" if size == 0 else "not a picture that Pillow can read"
        raise ValueError(f"{name} is {what}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} is too large: Pillow guards against decompression bombs ({error}). "
            "If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS, or give samjax everything "
            "its --tile"
        ) from error
    except PermissionError:
        raise
    except _DAMAGED as error:
        raise ValueError(
            f"{name} cannot be decoded; it may be truncated or damaged ({error})"
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(_orientation(picture))
    return picture.copy() if method is None else picture.transpose(method)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the metadata is absent or unreadable."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGED:
        return 1


def _pixels(picture: Image.Image, *, name: str) -> np.ndarray:
    """Grey of more than 8 bits as (H, W) uint16 or float32, all else as (H, W, 3) uint8."""
    if picture.mode == "F":
        return np.array(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.array(picture)
        low, high = int(grey.min()), int(grey.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{name} has grey values from {low} to {high}; expected 0 to 65535")
        return grey.astype(np.uint16)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _to_rgb(array: np.ndarray, *, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """The rules that `read_image` states for arrays, applied to `array`."""
    if array.ndim not in (2, 3):
        hint = "; give one picture at a time" if array.ndim == 4 else ""
        raise ValueError(
            f"{name} has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4){hint}"
        )
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: it has no pixels")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        if array.shape[0] in (1, 3, 4):
            raise ValueError(
                f"{name} has shape {array.shape}, which looks like channels first; "
                "pass image.transpose(1, 2, 0)"
            )
        raise ValueError(f"{name} has {array.shape[2]} channels; expected 1, 3 or 4")
    if array.ndim == 2:
        array = array[:, :, None]
    pixels = _to_uint8(array[:, :, :3], name=name)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _to_uint8(values: np.ndarray, *, name: str) -> UInt8[np.ndarray, "H W C"]:
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(
            f"{name} has dtype {values.dtype}; expected uint8, uint16, bool or float in [0, 1]. "
            "If its values are 0 to 255, pass image.astype(np.uint8)"
        )
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has NaN or infinite values")
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} has float values from {low:g} to {high:g}; floats must lie in [0, 1]. "
            "If its values are 0 to 255, pass image.astype(np.uint8); else scale or np.clip them"
        )
    return np.rint(values.astype(np.float32) * np.float32(255)).astype(np.uint8)


def list_images(path: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """The picture files of a folder, sorted by path; of a file, the file itself.

    A folder's pictures are known by `PICTURE_SUFFIXES` in either case; names that begin with a
    dot are skipped, and so are sub-folders unless `recursive`. A file given by name is returned
    whatever its suffix.

    Raises FileNotFoundError where nothing is there, or no picture in the folder.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {root}")
    entries = root.rglob("*") if recursive else root.iterdir()
    pictures = sorted(entry for entry in entries if _is_picture(entry, root))
    if not pictures:
        hint = "" if recursive else " (sub-folders are only searched when recursive)"
        suffixes = " ".join(sorted(PICTURE_SUFFIXES))
        raise FileNotFoundError(f"no pictures in {root}{hint}; looked for {suffixes}")
    return pictures


def _is_picture(entry: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in entry.relative_to(root).parts)
    return not hidden and entry.suffix.lower() in PICTURE_SUFFIXES and entry.is_file()


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a picture or a mask as PNG; whoever looks finds the old file or the whole new one.

    `array` is uint8 (H, W), (H, W, 3) RGB or (H, W, 4) RGBA; uint16 (H, W), for labels; or bool
    (H, W), written as 0 and 255.

    Raises ValueError for another shape or dtype, and the OSError of its kind, naming the folder,
    when the file cannot be written.
    """
    if array.dtype == np.bool_ and array.ndim == 2:
        array = array.astype(np.uint8) * np.uint8(255)
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    colour = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not (grey or colour) or array.size == 0:
        raise ValueError(
            f"cannot write shape {array.shape}, dtype {array.dtype} as PNG; expected uint8 "
            "(H, W), (H, W, 3) or (H, W, 4), uint16 (H, W), or bool (H, W)"
        )
    with _replacing(path) as file:
        Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG")


def write_image(path: str | os.PathLike[str], array: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an RGB picture in the format of the name's suffix, whole or not at all.

    Raises ValueError for a suffix that Pillow writes no pictures to, and the OSError of its kind,
    naming the folder, when the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    known = Image.registered_extensions()
    if known.get(suffix) not in Image.SAVE:
        raise ValueError(
            f"{path} ends in {suffix or 'no suffix'}, which is no picture format to write; use "
            ".jpg or .png"
        )
    with _replacing(path) as file:
        Image.fromarray(np.ascontiguousarray(array)).save(file, format=known[suffix])


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as UTF-8 JSON; whoever looks finds the old file or the whole new one.

    NumPy numbers and arrays become numbers and lists, paths become strings.

    Raises ValueError for NaN or infinity and TypeError for what JSON cannot hold, before anything
    is written, and the OSError of its kind, naming the folder, when the file cannot be written.
    """
    text = json.dumps(obj, default=_to_json, allow_nan=False)
    with _replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A new file beside `path` that takes its place when the block ends, or vanishes on error."""
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = f"cannot write {path.name} into folder {path.parent} ({error.strerror})"
            raise OSError(error.errno, reason) from error
        raise


def _to_json(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")
