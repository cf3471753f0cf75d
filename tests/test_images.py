import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samjax.images import list_images, read_image, write_json, write_png


def picture(height: int = 11, width: int = 17, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize(
    "suffix, options",
    [("png", {}), ("bmp", {}), ("tiff", {}), ("webp", {"lossless": True}), ("jp2", {})],
)
def test_reads_lossless_files(tmp_path, suffix, options):
    path = saved(tmp_path / f"a.{suffix}", picture(), **options)
    for source in (path, str(path)):
        image = read_image(source)
        np.testing.assert_array_equal(image, picture(), strict=True)
        assert image.flags.writeable and image.flags.c_contiguous


def test_reads_a_photo_as_pillow_does(shared_dir):
    path = shared_dir / "data/images/truck.jpg"
    np.testing.assert_array_equal(read_image(path), np.array(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    "mode, suffix",
    [("1", "png"), ("L", "jpg"), ("LA", "png"), ("P", "gif"), ("RGBA", "tiff"), ("CMYK", "jpg")],
)
def test_reads_other_colour_modes_as_rgb(tmp_path, mode, suffix):
    path = saved(tmp_path / f"a.{suffix}", picture(), mode)
    with Image.open(path) as stored:
        assert stored.mode == mode
        expected = np.array(stored.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


def test_alpha_is_dropped_not_blended(tmp_path):
    rgba = picture(channels=4)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", rgba)), rgba[..., :3])
    np.testing.assert_array_equal(read_image(rgba), rgba[..., :3], strict=True)


SIXTEEN = np.array([[0, 1, 128, 129], [256, 257, 385, 386], [32767, 32768, 65406, 65535]])


@pytest.mark.parametrize(
    "suffix, dtype", [("png", "<u2"), ("tiff", "<u2"), ("tiff", ">u2"), ("tiff", "<i4")]
)
def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path, suffix, dtype):
    expected = np.rint(SIXTEEN / 257).astype(np.uint8)
    image = read_image(saved(tmp_path / f"a.{suffix}", SIXTEEN.astype(dtype)))
    np.testing.assert_array_equal(image, np.stack([expected] * 3, axis=-1), strict=True)


def test_thirty_two_bit_grey_beyond_sixteen_bits_is_refused(tmp_path):
    path = saved(tmp_path / "a.tiff", SIXTEEN.astype(np.int32) * 2)
    with pytest.raises(ValueError, match="grey values from 0 to 131070; expected 0 to 65535"):
        read_image(path)


def test_float_files_follow_the_rule_for_floats(tmp_path):
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.stack([np.rint(grey * 255).astype(np.uint8)] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.tiff", grey)), expected)
    path = saved(tmp_path / "b.tiff", grey * 255)
    with pytest.raises(ValueError, match=r"b\.tiff has float values from 0 to 255"):
        read_image(path)


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
    99: lambda stored: stored,
}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", picture(), exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](picture()))


def test_a_rotated_sixteen_bit_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", SIXTEEN.astype(np.uint16), exif=exif)
    expected = np.rint(np.rot90(SIXTEEN, -1) / 257)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    path = saved(tmp_path / "a.png", picture(), exif=b"Exif\0\0MM\0*\xff\xff")
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 20000)])
def test_unusual_sizes(tmp_path, size):
    array = picture(*size)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", array)), array)
    np.testing.assert_array_equal(read_image(array), array)


def test_an_rgb_array_is_not_copied():
    assert np.shares_memory(read_image(array := picture()), array)


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.array([[0, 7], [128, 255]], np.uint8), [[0, 7], [128, 255]]),
        (np.array([[[0], [7]], [[128], [255]]], np.uint8), [[0, 7], [128, 255]]),
        (np.array([[False, True]]), [[0, 255]]),
        (SIXTEEN.astype("<u2"), np.rint(SIXTEEN / 257)),
        (SIXTEEN.astype(">u2"), np.rint(SIXTEEN / 257)),
        (np.array([[0, 0.25, 1]], np.float16), [[0, 64, 255]]),
        (np.array([[0, 0.1, 0.5, 1]], np.float32), [[0, 26, 128, 255]]),
        (np.array([[0, 0.1, 0.9999, 1]], np.float64), [[0, 26, 255, 255]]),
    ],
)
def test_grey_arrays_of_every_dtype(array, expected):
    image = read_image(array)
    np.testing.assert_array_equal(image[..., 0], expected)
    np.testing.assert_array_equal(image[..., 1:], image[..., :1].repeat(2, axis=2))


def test_bgr_arrays_are_reversed():
    array = picture(channels=4)
    reversed_ = read_image(array, image_format="BGR")
    np.testing.assert_array_equal(reversed_, array[..., [2, 1, 0]], strict=True)
    assert reversed_.flags.c_contiguous


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((3, 40, 50), np.uint8), r"channels first; pass image\.transpose\(1, 2, 0\)"),
        (np.zeros((40, 50, 2), np.uint8), "has 2 channels; expected 1, 3 or 4"),
        (np.zeros((40, 50, 7), np.uint8), "has 7 channels"),
        (np.zeros((2, 40, 50, 3), np.uint8), "one picture at a time"),
        (np.zeros(12, np.uint8), r"shape \(12,\); expected \(H, W\)"),
        (np.zeros((0, 50, 3), np.uint8), "no pixels"),
        (np.zeros((40, 0), np.uint8), "no pixels"),
        (np.array([[0.0, np.nan]]), "NaN or infinite"),
        (np.array([[0.0, np.inf]]), "NaN or infinite"),
        (np.array([[0.0, 255.0]]), r"from 0 to 255; floats must lie in \[0, 1\].*astype"),
        (np.array([[-0.5, 1.0]]), "from -0.5 to 1;.*np.clip"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_image(array)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.complex64, np.str_])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"expected uint8, uint16, bool or float.*astype\(np.uint8"):
        read_image(np.zeros((4, 5, 3), dtype))


def test_other_types_are_refused():
    """Without the tests' type checker, which would speak first."""
    unchecked = getattr(read_image, "__wrapped__", read_image)
    with pytest.raises(TypeError, match=r"path or a NumPy array, not list.*np.asarray\(image\)"):
        unchecked([[0, 1]])


@pytest.mark.parametrize("image_format", ["rgb", "RGBA", ""])
def test_an_unknown_image_format_is_named(image_format):
    with pytest.raises(ValueError, match=f"'RGB' or 'BGR', not '{image_format}'"):
        read_image(picture(), image_format=image_format)


def test_a_file_has_its_own_channel_order(tmp_path):
    path = saved(tmp_path / "a.png", picture())
    with pytest.raises(ValueError, match="'BGR' describes an array"):
        read_image(path, image_format="BGR")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such picture: .*absent\.png"):
        read_image(tmp_path / "absent.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, not a picture"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [(b"", "an empty file"), (b"not a picture at all", "not a picture that Pillow can read")],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jpg is {message}"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", "bmp", "gif"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = saved(tmp_path / f"a.{suffix}", picture(200, 300))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"a\.{suffix} (cannot be decoded|is not a picture)"):
        read_image(path)


@pytest.mark.parametrize("limit", [100, 1500])
def test_a_picture_beyond_pillows_guard_is_refused(tmp_path, monkeypatch, limit):
    """Above twice the limit Pillow raises; between the two it warns, and here warnings raise."""
    path = saved(tmp_path / "a.png", picture(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match="too large.*raise PIL.Image.MAX_IMAGE_PIXELS"):
            read_image(path)


@pytest.mark.parametrize(
    "array",
    [picture(), picture(channels=4), picture()[..., 0], SIXTEEN.astype(np.uint16)],
    ids=["rgb", "rgba", "grey", "sixteen bits"],
)
def test_png_round_trip(tmp_path, array):
    write_png(tmp_path / "a.png", array)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), array, strict=True)


def test_a_mask_is_written_as_black_and_white(tmp_path):
    mask = np.asfortranarray(picture()[..., 0] > 99)
    write_png(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), mask * np.uint8(255))


@pytest.mark.parametrize("shape", [(5,), (0, 5), (4, 5, 1), (4, 5, 2), (2, 4, 5, 3)])
def test_shapes_png_cannot_hold_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="cannot write shape .* as PNG"):
        write_png(tmp_path / "a.png", np.zeros(shape, np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("array", [np.zeros((4, 5)), np.zeros((4, 5, 3), np.uint16)])
def test_dtypes_png_cannot_hold_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match="cannot write shape .* as PNG"):
        write_png(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


def test_json_takes_numpy_values_and_paths(tmp_path):
    record = {"box": np.arange(4), "score": np.float32(0.5), "file": Path("a") / "b", "name": "ä"}
    write_json(tmp_path / "a.json", [record])
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    expected = {"box": [0, 1, 2, 3], "score": 0.5, "file": os.path.join("a", "b"), "name": "ä"}
    assert read == [expected]


@pytest.mark.parametrize(
    "value, error, message",
    [(float("nan"), ValueError, "JSON"), ({1}, TypeError, "JSON cannot hold a set")],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, value, error, message):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(error, match=message):
        write_json(tmp_path / "a.json", value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", picture())

    def interrupt(image, file, **options):
        file.write(b"half a pict")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "a.png", picture()[::-1])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())


def test_files_get_the_permissions_that_open_gives(tmp_path):
    write_json(tmp_path / "a.json", {})
    (tmp_path / "b.json").write_text("{}")
    modes = [(tmp_path / name).stat().st_mode for name in ("a.json", "b.json")]
    assert modes[0] == modes[1]


def write_mask(path: Path) -> None:
    write_png(path, np.ones((2, 2), bool))


def write_record(path: Path) -> None:
    write_json(path, {})


@pytest.mark.parametrize("write", [write_mask, write_record])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, write):
    with pytest.raises(FileNotFoundError, match="cannot write a.out into folder .*absent"):
        write(tmp_path / "absent" / "a.out")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot write a.out into folder .*file"):
        write(tmp_path / "file" / "a.out")
    (tmp_path / "folder.out").mkdir()
    with pytest.raises(IsADirectoryError, match="cannot write folder.out into folder"):
        write(tmp_path / "folder.out")

    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="cannot write a.out into folder .*Permission denied"):
        write(tmp_path / "a.out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.out"]


@pytest.fixture
def album(tmp_path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.tiff", ".thumbs/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_a_folder_lists_its_pictures_in_order(album):
    assert list_images(album) == [album / "a.png", album / "b.JPG"]
    assert list_images(str(album), recursive=True) == [
        album / "a.png",
        album / "b.JPG",
        album / "sub" / "c.tiff",
    ]


def test_a_hidden_folder_given_by_name_is_listed(album):
    assert list_images(album / ".thumbs") == [album / ".thumbs" / "d.png"]


def test_a_file_lists_itself(album):
    assert list_images(album / "notes.txt") == [album / "notes.txt"]


def test_a_folder_without_pictures_is_refused(album):
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*folder\.png \(sub-folders.*jpg"):
        list_images(album / "folder.png")
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*folder\.png; looked for"):
        list_images(album / "folder.png", recursive=True)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*absent"):
        list_images(tmp_path / "absent")
