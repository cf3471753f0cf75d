"""Models by name: fetched once from a local server, converted once, kept in the cache folder."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yolo_reference

from samjax import checkpoint, detection, fetch, zoo
from samjax.checkpoint import Model, load, locate, save_checkpoint
from samjax.cli import main
from samjax.convert import save_huggingface, save_pth
from samjax.convert.yolo import load_yolo
from samjax.download import DownloadError
from samjax.models import SamConfig, TinyViTConfig
from samjax.models.architecture import abstract_params
from samjax.models.params import flatten, unflatten
from samjax.models.yolo import YoloConfig
from samjax.orbax_folder import read_description
from samjax.zoo import PUBLISHED, Published, RemoteFile


def random_model(config: SamConfig) -> Model:
    rng = np.random.default_rng(0)
    leaves = flatten(abstract_params(config))
    arrays = {n: jnp.asarray(rng.standard_normal(x.shape, np.float32)) for n, x in leaves.items()}
    counts = {n: jnp.full_like(x, 7) for n, x in arrays.items() if n.endswith("batches_tracked")}
    return Model(unflatten(arrays | counts), config)


@pytest.fixture(scope="module")
def model():
    return random_model(SamConfig.tiny(64))


@pytest.fixture(scope="module")
def pth(tmp_path_factory, model) -> bytes:
    path = tmp_path_factory.mktemp("pth") / "model.pth"
    save_pth(path, model)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("huggingface") / "model"
    save_huggingface(path, model)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(monkeypatch, server, cache, pth):
    """Puts the server in the place of the public addresses; `known` files have a checksum."""

    def publish(name="vit_b", *, known=True, content=pth, other_names=("sam_b.pt",)):
        file = RemoteFile(
            url=f"{server.url}/{name}.pth",
            name=f"{name}.pth",
            size=len(content) if known else None,
            sha256=hashlib.sha256(content).hexdigest() if known else None,
        )
        entry = Published(name=name, file=file, other_names=other_names)
        monkeypatch.setattr(zoo, "PUBLISHED", (entry,))
        monkeypatch.setattr(fetch, "HUGGINGFACE_URL", f"{server.url}/")
        return entry

    return publish


def assert_same(found: Model, expected: Model) -> None:
    assert found.config == expected.config
    for name, array in flatten(expected.params).items():
        np.testing.assert_array_equal(flatten(found.params)[name], array, err_msg=name)


def is_whole(path: Path) -> bool:
    """Cheaper than to load it."""
    return read_description(path).config == SamConfig.tiny(64)


def test_it_is_downloaded_and_converted_once(published, server, cache, pth, model, monkeypatch):
    published()
    server.serve("vit_b.pth", pth)
    assert locate("vit_b") == cache / "models" / "vit_b" and not locate("vit_b").exists()
    assert_same(load("vit_b"), model)
    server.files.clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("vit_b", "sam_b.pt", "vit_b.pth"):
        assert_same(load(name), model)
    assert len(server.asked["/vit_b.pth"]) == 1
    assert checkpoint.is_checkpoint_directory(cache / "models" / "vit_b")
    assert not list((cache / "downloads").glob("*.pth*[!6]"))


def test_what_is_there_under_the_name_is_read_instead(
    published, cache, model, tmp_path, monkeypatch
):
    published()
    monkeypatch.chdir(tmp_path)
    save_checkpoint("vit_b", model)
    assert_same(load("vit_b"), model)
    assert not cache.exists()


def test_a_download_that_broke_off_goes_on(published, server, pth):
    published()
    server.serve("vit_b.pth", pth, breaks_at=[100_000])
    assert is_whole(fetch.fetch("vit_b"))
    assert server.asked["/vit_b.pth"] == [None, "bytes=100000-"]


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    published, cache, pth, model, monkeypatch
):
    entry = published()
    url = "http://127.0.0.1:9/vit_b.pth"
    offline = dataclasses.replace(entry, file=dataclasses.replace(entry.file, url=url))
    monkeypatch.setattr(zoo, "PUBLISHED", (offline,))
    place = cache / "downloads" / "vit_b.pth"
    with pytest.raises(DownloadError) as error:
        load("vit_b")
    text = str(error.value)
    assert f"There is no way to {url}" in text and f"put it at {place}" in text
    assert f"{len(pth):,} bytes" in text and entry.file.sha256 in text
    place.write_bytes(pth[:-1])
    with pytest.raises(ValueError, match=f"not the published file: it has {len(pth) - 1:,} bytes"):
        load("vit_b")
    place.write_bytes(pth)
    assert_same(load("vit_b"), model)
    assert not place.exists()


def test_a_wrong_file_is_never_converted(published, server, cache, pth):
    published()
    server.serve("vit_b.pth", pth[:-10] + b"0123456789")
    with pytest.raises(DownloadError, match=r"(?s)another file than the published.*put it at"):
        load("vit_b")
    assert not (cache / "models" / "vit_b").exists()


def test_a_first_download_is_trusted_and_remembered(published, server, cache, pth):
    published(known=False)
    server.serve("vit_b.pth", pth)
    assert is_whole(fetch.fetch("vit_b"))
    pin = cache / "downloads" / "vit_b.pth.sha256"
    assert pin.read_text().strip() == hashlib.sha256(pth).hexdigest()
    for file in (cache / "models" / "vit_b" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    server.serve("vit_b.pth", pth + b" ")
    with pytest.raises(
        DownloadError, match=rf"(?s)another file.*Remove that file.*{pin.name}|{pin}"
    ):
        fetch.fetch("vit_b")
    pin.unlink()
    server.serve("vit_b.pth", pth)
    assert is_whole(fetch.fetch("vit_b"))


def test_a_first_download_that_is_no_model_is_not_remembered(published, server, cache):
    published(known=False)
    server.serve("vit_b.pth", b"<html>Log in, please</html>")
    with pytest.raises(ValueError, match=r"cannot be read, and was removed.*starts with b'<html"):
        load("vit_b")
    assert not [p for p in (cache / "downloads").iterdir() if p.is_file()]


def test_a_pickle_with_code_in_it(published, server, cache, tmp_path):
    import pickle

    class RunsCode:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path}/it ran'",)

    content = pickle.dumps(RunsCode(), protocol=2)
    published(content=content)
    server.serve("vit_b.pth", content)
    with pytest.raises(ValueError, match="vit_b cannot be converted.*refused, and nothing in it"):
        load("vit_b")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("missing", ["params/_METADATA", "samjax.json"])
def test_a_damaged_model_in_the_cache_is_made_again(published, server, cache, pth, caplog, missing):
    published()
    server.serve("vit_b.pth", pth)
    fetch.fetch("vit_b")
    (cache / "models" / ".vit_b.killed.partial").mkdir()
    (cache / "models" / "vit_b" / missing).unlink()
    assert is_whole(fetch.fetch("vit_b"))
    assert len(server.asked["/vit_b.pth"]) == 2
    assert ("made again" in caplog.text) == (missing != "samjax.json")
    assert sorted(p.name for p in (cache / "models").iterdir()) == [".vit_b.lock", "vit_b"]


def test_a_cache_folder_that_cannot_be_written(published, server, cache, monkeypatch, tmp_path):
    published()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMJAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="vit_b cannot be kept in .*set SAMJAX_CACHE to a folder"):
        load("vit_b")
    assert not server.asked


def test_without_torch_nothing_is_downloaded(published, server, pth, monkeypatch):
    published()
    server.serve("vit_b.pth", pth)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"torch is not installed: pip install 'samjax\[convert\]'"
    ):
        load("vit_b")
    assert not server.asked


@pytest.mark.parametrize("parts", [False, True])
def test_a_model_of_hugging_face(published, server, cache, folder, model, monkeypatch, parts):
    published()
    files = dict(folder)
    if parts:
        from safetensors.numpy import save

        from samjax.convert.huggingface import to_huggingface

        arrays = to_huggingface(model)
        names = list(arrays)
        split = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
        weight_map = {name: file for file, some in split.items() for name in some}
        del files["model.safetensors"]
        files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
        files |= {f: save({n: arrays[n] for n in some}) for f, some in split.items()}
    for name, content in files.items():
        server.serve(f"some/sam/resolve/main/{name}", content)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(load("hf://some/sam"), model)
    asked = len(server.asked)
    assert_same(load("hf://some/sam"), model)
    assert len(server.asked) == asked
    assert (cache / "models" / "some--sam").is_dir()


def test_a_model_of_hugging_face_that_is_not_there(published, server, cache):
    published()
    with pytest.raises(DownloadError) as error:
        load("hf://nobody/nothing")
    assert "config.json is not there (HTTP 404)" in str(error.value)
    assert f"put them into {cache / 'downloads' / 'nobody--nothing'}" in str(error.value)


TWO = """
import sys
from samjax import zoo
from samjax.checkpoint import load
from samjax.zoo import Published, RemoteFile
zoo.PUBLISHED = (Published(name="vit_b", file=RemoteFile(url=sys.argv[1], name="vit_b.pth")),)
print(load("vit_b").num_parameters)
"""


def test_two_processes_at_once(server, cache, pth, model):
    server.serve("vit_b.pth", pth, pause=0.2)
    command = [sys.executable, "-c", TWO, f"{server.url}/vit_b.pth"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert out.strip() == str(model.num_parameters), err
    assert len(server.asked["/vit_b.pth"]) == 1
    assert sorted(p.name for p in (cache / "models").iterdir()) == [".vit_b.lock", "vit_b"]


def test_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no vit_x. Nor is it a published model"):
        load("vit_x")
    with pytest.raises(ValueError, match="no published model 'vit_x'"):
        fetch.fetch("vit_x")


def test_names_are_clear_and_complete():
    names = [name for model in PUBLISHED for name in model.names]
    assert len(set(names)) == len(names) and "nano" not in names
    assert {"vit_b", "vit_l", "vit_h", "mobile_sam", "hq_vit_b", "hq_vit_l", "hq_vit_h",
            "hq_vit_tiny", "sam_b.pt", "sam_l.pt", "mobile_sam.pt"} <= set(names)  # fmt: skip
    for model in PUBLISHED:
        assert model.licence == ("AGPL-3.0" if model.detector else "Apache-2.0")
        assert (model.file is None) != (model.repository is None)
        if model.file:
            assert model.file.url.startswith("https://")
            assert model.file.sha256 is None or len(model.file.sha256) == 64
    assert zoo.find("hf://facebook/sam-vit-base").name == "facebook/sam-vit-base"
    assert zoo.find("hf://a/b/c") is None and zoo.find("a/b") is None


TINY_VIT = TinyViTConfig(
    widths=(8, 12, 16, 24), depths=(1, 1, 1, 1), num_heads=(1, 1, 1), out_channels=32, num_classes=1
)
STAND_INS = {
    **{name: SamConfig.tiny(64) for name in ("vit_b", "vit_l", "vit_h")},
    **{f"hq_{name}": SamConfig.tiny(64, hq=True) for name in ("vit_b", "vit_l", "vit_h")},
    "mobile_sam": SamConfig.vit_t(image_encoder=TINY_VIT, decoder_mlp_width=64),
    "hq_vit_tiny": SamConfig.vit_t(image_encoder=TINY_VIT, decoder_mlp_width=64, hq=True),
    **{f"facebook/sam-vit-{size}": SamConfig.tiny(64) for size in ("base", "large", "huge")},
    **{
        entry.name: YoloConfig(
            task="detect" if entry.name[-1] in "nsmlx" and "-" not in entry.name else "segment",
            num_classes=2,
            widths=(8, 8, 8, 8, 8),
            depths=(1, 1, 1, 1),
            prototype_width=8,
        )
        for entry in PUBLISHED
        if entry.detector
    },
}
"""A small model of each published one's architecture."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A model of that config, and the files of it under the names that are asked for."""

    @functools.cache
    def make(config, huggingface: bool):
        path = tmp_path_factory.mktemp("stand-in") / "model"
        if isinstance(config, YoloConfig):
            torch.save(yolo_reference.build(config).state_dict(), path)
            return load_yolo(path), {"": path.read_bytes()}
        model = random_model(config)
        if huggingface:
            save_huggingface(path, model)
            return model, {file.name: file.read_bytes() for file in path.iterdir()}
        save_pth(path, model)
        return model, {"": path.read_bytes()}

    return make


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_every_published_name(entry, server, cache, stand_in, monkeypatch):
    """From the path of its public address, with all that it is; its other names are the same."""
    model, files = stand_in(STAND_INS[entry.name], entry.file is None)
    monkeypatch.setattr(fetch, "HUGGINGFACE_URL", f"{server.url}/")
    path = f"{entry.repository}/resolve/main/"
    if entry.file:
        path = urllib.parse.urlsplit(entry.file.url).path.removeprefix("/")
        file = dataclasses.replace(entry.file, url=f"{server.url}/{path}", size=None, sha256=None)
        entry = dataclasses.replace(entry, file=file)
    monkeypatch.setattr(zoo, "PUBLISHED", (entry,))
    for name, content in files.items():
        server.serve(path + name, content)
    assert_same((detection.load if entry.detector else load)(entry.names[-1]), model)
    assert set(server.asked) >= {f"/{path}{name}" for name in files}
    assert {locate(name) for name in entry.names} == set((cache / "models").glob("[!.]*"))


def test_the_list_of_models(published, server, pth, capsys):
    published()
    assert main(["models"]) == 0
    assert "vit_b  vit_b.pth, sam_b.pt  " in capsys.readouterr().out
    server.serve("vit_b.pth", pth, breaks_at=[100_000] * 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: None)
        assert main(["info", "vit_b", "--no-memory"]) == 2
    assert "broke off 5 times" in capsys.readouterr().err
    main(["models"])
    assert "100 kB downloaded" in capsys.readouterr().out
    server.serve("vit_b.pth", pth)
    assert main(["info", "vit_b", "--no-memory"]) == 0
    capsys.readouterr()
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "ALSO"] and lines[1].startswith("nano ")
    assert "published" in lines[2] and "converted, " in lines[2]


def test_a_name_can_be_converted(published, server, pth, model, tmp_path):
    published()
    server.serve("vit_b.pth", pth)
    assert main(["convert", "vit_b", str(tmp_path / "out.safetensors")]) == 0
    assert_same(load(Path(tmp_path / "out.safetensors")), model)
