"""What is written for pictures: names, whole folders, one COCO file, and nothing lost."""

import csv
import errno
import json
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samjax import results
from samjax.images import read_image, write_png
from samjax.naming import name_pictures
from samjax.postprocess import area_from_rle, coco_encode_rle, mask_to_rle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SETTINGS = {"command": "test", "model": "/somewhere/model", "points_per_side": 4}
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def mask(rows: slice, columns: slice) -> np.ndarray:
    pixels = np.zeros(IMAGE.shape[:2], bool)
    pixels[rows, columns] = True
    return pixels


MASKS = [mask(slice(0, 10), slice(5, 25)), mask(slice(29, 30), slice(39, 40))]


def record(pixels: np.ndarray, points: list) -> dict:
    ys, xs = np.nonzero(pixels)
    rle = mask_to_rle(pixels)
    x, y, right, bottom = (int(v) for v in (xs.min(), ys.min(), xs.max(), ys.max()))
    return {
        "segmentation": coco_encode_rle(rle),
        "area": area_from_rle(rle),
        "bbox": [x, y, right - x, bottom - y],
        "predicted_iou": 0.75,
        "point_coords": points,
        "stability_score": 0.5,
        "crop_box": [0, 0, 40, 30],
    }


RECORDS = [record(MASKS[0], [[7.5, 3.25], [1.0, 2.0]]), record(MASKS[1], [])]


def make(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGE).save(folder / name)
    return [folder / name for name in names]


@pytest.fixture
def pictures(tmp_path) -> list[results.Picture]:
    make(tmp_path / "in", "a.jpg", "b.png")
    return results.list_pictures([tmp_path / "in"])


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def filled(out: Path, pictures: list[results.Picture], **options) -> results.Run:
    run = results.open_run(out, SETTINGS, pictures, **options)
    results.begin(run)
    for picture in pictures:
        results.write_picture(run, picture, IMAGE, RECORDS)
    results.write_coco(run)
    return run


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ONE_FOLDER = {"0.png", "1.png", "annotations.json", "metadata.csv", "overlay.png"}


@pytest.mark.parametrize(
    "files, names",
    [
        (["x/photo.jpg"], ["photo"]),
        (["x/photo.jpg", "x/photo.png", "x/c.png"], ["photo.jpg", "photo.png", "c"]),
        (["x/Photo.jpg", "x/photo.png"], ["Photo.jpg", "photo.png"]),
        (["x/photo.jpg", "y/photo.jpg"], ["x/photo.jpg", "y/photo.jpg"]),
        (["1/x/p.jpg", "2/x/p.jpg"], ["1/x/p.jpg", "2/x/p.jpg"]),
        (["x/photo.jpg", "x/photo.jpg.png"], ["photo", "photo.jpg"]),
        (["x/p.jpg", "x/p.png", "x/p.jpg.gif"], ["x/p.jpg", "p.png", "p.jpg.gif"]),
        (["x/coco.json.jpg", "x/settings.json.png"], ["coco.json.jpg", "settings.json.png"]),
        (["x/.jpg", "x/a.b.c.jpg"], [".jpg", "a.b.c"]),
    ],
)
def test_every_picture_has_a_name_of_its_own(files, names):
    pairs = [(Path(file), PurePosixPath(Path(file).name)) for file in files]
    reserved = frozenset({"coco.json", "settings.json"})
    pictures = name_pictures(pairs, reserved=reserved)
    assert [picture.name for picture in pictures] == names
    assert len({picture.file_name for picture in pictures}) == len(files)


def test_a_name_is_never_inside_another():
    files = ["a.jpg", "a/b.jpg", "a/b/c.jpg"]
    pictures = name_pictures([(Path("in", file), PurePosixPath(file)) for file in files])
    assert [picture.name for picture in pictures] == ["a.jpg", "a/b.jpg", "a/b/c"]
    assert [picture.file_name for picture in pictures] == files


def test_pictures_of_folders_keep_their_sub_folders(tmp_path):
    make(tmp_path, "in/a.jpg", "in/deep/er/a.jpg", "other.png")
    found = results.list_pictures([tmp_path / "in", tmp_path / "other.png"], recursive=True)
    assert [p.name for p in found] == ["a", "deep/er/a", "other"]
    assert [p.file_name for p in found] == ["a.jpg", "deep/er/a.jpg", "other.png"]


def test_a_picture_given_twice_is_one(tmp_path, monkeypatch):
    (path,) = make(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert len(results.list_pictures([path, tmp_path / "in", "in/../in/a.jpg"])) == 1


def test_results_are_not_pictures_to_work_on(tmp_path, pictures):
    filled(tmp_path / "in" / "out", pictures)
    found = results.list_pictures([tmp_path / "in"], recursive=True)
    assert [p.name for p in found] == ["a", "b"]
    with pytest.raises(FileNotFoundError, match="all results"):
        results.list_pictures([tmp_path / "in" / "out"], recursive=True)


def test_the_folder_of_a_picture(out, pictures):
    run = filled(out, pictures)
    assert everything_in(out / "a") == ONE_FOLDER
    for i, pixels in enumerate(MASKS):
        png = np.array(Image.open(out / f"a/{i}.png"))
        np.testing.assert_array_equal(png, pixels * np.uint8(255))
    assert read_image(out / "a/overlay.png").shape == IMAGE.shape
    assert (out / "a/metadata.csv").read_text().splitlines() == [
        "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
        "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h",
        "0,200,5,0,19,9,7.5,3.25,0.75,0.5,0,0,40,30",
        "1,1,39,29,0,0,,,0.75,0.5,0,0,40,30",
    ]
    content = json.loads((out / "a/annotations.json").read_text())
    assert content["run"] == run.id
    assert content["annotations"] == [{"id": i, **r} for i, r in enumerate(RECORDS)]
    image = content["image"]
    assert (image["width"], image["height"], image["file_name"]) == (40, 30, "a.jpg")
    other = json.loads((out / "b/annotations.json").read_text())["image"]
    assert other["image_id"] != image["image_id"]
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_without_mask_files_and_with_logits(out, pictures):
    run = results.open_run(out, SETTINGS, pictures)
    logits = [np.full((1, 4, 4), i, np.float32) for i in range(2)]
    results.write_picture(run, pictures[0], IMAGE, RECORDS, mask_files=False, low_res_masks=logits)
    masks = {"0.png", "1.png"}
    assert everything_in(out / "a") == ONE_FOLDER - masks | {"0_low_res.npy", "1_low_res.npy"}
    np.testing.assert_array_equal(np.load(out / "a/1_low_res.npy"), logits[1])


def test_coco_has_the_masks_of_the_pngs(out, pictures, capsys):
    filled(out, pictures)
    coco = COCO(out / "coco.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.jpg", "b.png"]
    assert sorted(coco.anns) == [1, 2, 3, 4]
    assert coco.loadCats([1])[0]["name"] == "object"
    for image in coco.dataset["images"]:
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert len(annotations) == 2
        for i, annotation in enumerate(annotations):
            png = np.array(Image.open(out / image["file_name"][0] / f"{i}.png"))
            np.testing.assert_array_equal(coco.annToMask(annotation) * np.uint8(255), png)
            assert annotation["area"] == (png > 0).sum()
            assert annotation["iscrowd"] == 0 and annotation["score"] == 0.75
    assert [a["bbox"] for a in coco.dataset["annotations"][:2]] == [[5, 0, 20, 10], [39, 29, 1, 1]]


def test_a_run_without_masks_or_pictures_still_has_a_coco_file(out, pictures, capsys):
    run = results.open_run(out, SETTINGS, pictures)
    assert results.write_coco(run) == (0, 0)
    results.write_picture(run, pictures[0], IMAGE, [])
    assert results.write_coco(run) == (1, 0)
    assert len(COCO(out / "coco.json").imgs) == 1
    assert everything_in(out / "a") == ONE_FOLDER - {"0.png", "1.png"}
    with open(out / "a/metadata.csv", newline="") as file:
        assert list(csv.reader(file)) == [list(results.COLUMNS)]


def test_an_output_folder_that_is_not_empty(out, pictures):
    filled(out, pictures)
    with pytest.raises(FileExistsError, match="not empty.*--overwrite.*--resume"):
        results.open_run(out, SETTINGS, pictures)
    with pytest.raises(FileExistsError) as error:
        results.open_run(out, SETTINGS, pictures, resumable=False)
    assert "--resume" not in str(error.value)


def test_an_empty_output_folder_may_have_hidden_files(out, pictures):
    out.mkdir()
    (out / ".DS_Store").write_text("")
    filled(out, pictures)


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_an_output_folder_that_is_a_file(tmp_path, pictures, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="there is a file in its place"):
        results.open_run(tmp_path / name, SETTINGS, pictures, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_folder_without_permission(out, pictures, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*out \(Permission denied\)"):
        results.open_run(out, SETTINGS, pictures)


def test_overwrite_replaces_results_and_nothing_else(out, pictures):
    first = filled(out, pictures)
    (out / "notes.txt").write_text("mine")
    second = results.open_run(out, SETTINGS, pictures, overwrite=True)
    assert second.id != first.id
    results.begin(second)
    assert results.missing(second, pictures) == pictures
    results.write_picture(second, pictures[0], IMAGE, RECORDS[:1])
    assert everything_in(out / "a") == ONE_FOLDER - {"1.png"}
    assert everything_in(out / "b") == ONE_FOLDER
    assert results.write_coco(second) == (1, 1)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("theirs", ["coco.json", "settings.json", "a/thesis.txt", "a"])
def test_overwrite_refuses_what_samjax_did_not_write(out, pictures, theirs):
    (out / theirs).parent.mkdir(parents=True)
    (out / theirs).write_text("mine")
    with pytest.raises(FileExistsError, match="not samjax's"):
        results.open_run(out, SETTINGS, pictures, overwrite=True)
    assert everything_in(out) == {theirs}


def test_a_stranger_in_a_result_folder_is_not_lost(out, pictures):
    filled(out, pictures)
    (out / "b/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b/notes\.txt is not samjax's"):
        results.open_run(out, SETTINGS, pictures, overwrite=True)


def test_results_are_not_put_inside_results(tmp_path, out, pictures):
    filled(out, pictures)
    make(tmp_path / "in2", "a/c.jpg")
    inside = results.list_pictures([tmp_path / "in2"], recursive=True)
    with pytest.raises(FileExistsError, match="would be inside .*a, which is"):
        results.open_run(out, SETTINGS, inside, resume=True)


def test_resume_does_what_is_missing(out, pictures):
    run = results.open_run(out, SETTINGS, pictures)
    results.begin(run)
    results.write_picture(run, pictures[1], IMAGE, RECORDS)
    again = results.open_run(out, SETTINGS, pictures, resume=True)
    assert again.id == run.id
    assert results.missing(again, pictures) == pictures[:1]
    results.write_picture(again, pictures[0], IMAGE, RECORDS)
    assert results.missing(again, pictures) == []
    assert results.write_coco(again) == (2, 4)


def test_resume_of_nothing_begins(out, pictures):
    filled(out, pictures, resume=True)


def test_resume_with_other_settings_names_them(out, pictures):
    filled(out, pictures)
    with pytest.raises(ValueError) as error:
        results.open_run(out, SETTINGS | {"points_per_side": 8}, pictures, resume=True)
    assert "points_per_side was 4 and is now 8" in str(error.value)
    assert "model" not in str(error.value)


def test_resume_needs_a_run(out, pictures):
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no settings\.json .*--overwrite"):
        results.open_run(out, SETTINGS, pictures, resume=True)


def test_resume_does_not_take_another_picture_for_done(tmp_path, out, pictures):
    filled(out, pictures)
    others = results.list_pictures(make(tmp_path / "other", "a.png"))
    run = results.open_run(out, SETTINGS, others, resume=True)
    with pytest.raises(ValueError, match=r"results of a\.jpg, not of a\.png"):
        results.missing(run, others)


@pytest.mark.parametrize("when", ["first", "overwrite"])
def test_a_disk_that_is_full_leaves_whole_folders(out, pictures, monkeypatch, when, capsys):
    """The third picture file of the second folder cannot be written."""
    if when == "overwrite":
        filled(out, pictures)
    run = results.open_run(out, SETTINGS, pictures, overwrite=when == "overwrite")
    results.begin(run)
    results.write_picture(run, pictures[0], IMAGE, RECORDS)

    def full(path, array):
        if Path(path).name == "overlay.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_png(path, array)

    monkeypatch.setattr(results, "write_png", full)
    with pytest.raises(OSError, match="No space left"):
        results.write_picture(run, pictures[1], IMAGE, RECORDS[:1])
    assert results.write_coco(run) == (1, 2)
    assert len(COCO(out / "coco.json").anns) == 2
    old = {f"b/{name}" for name in ONE_FOLDER} if when == "overwrite" else set()
    new = {f"a/{name}" for name in ONE_FOLDER} | {"coco.json", "settings.json"}
    assert everything_in(out) == old | new


def test_a_coco_file_that_fails_leaves_the_old_one(out, pictures, monkeypatch):
    run = filled(out, pictures)
    before = (out / "coco.json").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "coco_annotation", full)
    with pytest.raises(OSError, match="No space left"):
        results.write_coco(run)
    assert (out / "coco.json").read_bytes() == before


def test_what_a_killed_run_leaves_does_not_count(out, pictures):
    run = filled(out, pictures)
    half = out / ".c.1234.partial" / "c"
    half.mkdir(parents=True)
    (half / "annotations.json").write_text((out / "a/annotations.json").read_text())
    (out / "d").mkdir()
    (out / "d" / "annotations.json").write_text('{"run": ')
    assert results.write_coco(run) == (2, 4)
