"""What a user installs: a wheel with all the rooms in it, and torch left alone until needed."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves a build folder behind, and takes up what an older one holds.
    source = folder / "source"
    for name in ("samjax", "convert"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "-w", folder, source],
        check=True,
    )  # fmt: skip
    return next(folder.glob("samjax-*.whl"))


def test_wheel_holds_every_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for room, installed in (("samjax", "samjax"), ("convert", "samjax/convert")):
        for file in (ROOT / room).rglob("*.py"):
            assert f"{installed}/{file.relative_to(ROOT / room)}" in names
    assert "samjax/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "convert/")) for name in names)


def test_wheel_holds_nano_in_few_megabytes(wheel, tmp_path):
    if not (ROOT / "samjax/assets/nano").is_dir():
        pytest.skip("samjax/assets/nano is not in this source tree")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    files = [file for file in (ROOT / "samjax/assets").rglob("*") if file.is_file()]
    for file in files:
        assert (tmp_path / file.relative_to(ROOT)).read_bytes() == file.read_bytes(), file
    assert sum(file.stat().st_size for file in files) <= 20e6
    code = (
        "import samjax; model = samjax.load('nano')\n"
        f"assert samjax.__file__.startswith({str(tmp_path)!r}), samjax.__file__\n"
        "assert model.config == samjax.SamConfig.nano()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_wheel_imports_with_its_converter(wheel, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "import samjax, samjax.convert, samjax.cli\n"
        f"assert samjax.__file__.startswith({str(wheel)!r}), samjax.__file__\n"
        f"assert samjax.convert.__file__.startswith({str(wheel)!r}), samjax.convert.__file__\n"
        "assert all(hasattr(samjax, name) for name in samjax.__all__)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_editable_install_finds_the_converter(tmp_path):
    code = "import samjax.convert as c; print(c.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(run.stdout.strip()).parent == ROOT / "convert"
