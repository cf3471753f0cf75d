"""Downloads from a server that is slow, breaks off, lies, or has another file."""

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from samjax import download as module
from samjax.download import DownloadError, NotThereError, download
from samjax.zoo import RemoteFile

CONTENT = np.random.default_rng(0).bytes(300_000)
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "model.pth"


def fetch(server, target, *, size=SIZE, sha256=DIGEST, name="model.pth"):
    file = RemoteFile(url=f"{server.url}/{name}", name=name, size=size, sha256=sha256)
    return download(file, target, pause=0.0)


def assert_whole(target):
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("known", [True, False])
def test_a_file(server, target, known):
    server.serve("model.pth", CONTENT)
    facts = {} if known else {"size": None, "sha256": None}
    assert fetch(server, target, **facts) == DIGEST
    assert_whole(target)
    assert server.asked["/model.pth"] == [None]


def test_a_slow_server(server, target):
    server.serve("model.pth", CONTENT, pause=0.02)
    assert fetch(server, target) == DIGEST
    assert_whole(target)


@pytest.mark.parametrize("known", [True, False])
def test_it_goes_on_where_it_broke_off(server, target, known):
    server.serve("model.pth", CONTENT, breaks_at=[100_000, 250_000])
    facts = {} if known else {"size": None, "sha256": None}
    assert fetch(server, target, **facts) == DIGEST
    assert server.asked["/model.pth"] == [None, "bytes=100000-", "bytes=250000-"]
    assert_whole(target)


def test_a_connection_that_stalls(server, target, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.serve("model.pth", CONTENT, breaks_at=[100_000], stalls=1)
    assert fetch(server, target) == DIGEST
    assert server.asked["/model.pth"] == [None, "bytes=100000-"]


def test_a_server_without_ranges(server, target):
    server.serve("model.pth", CONTENT, breaks_at=[100_000], ranges=False)
    assert fetch(server, target) == DIGEST
    assert server.asked["/model.pth"] == [None, "bytes=100000-"]
    assert_whole(target)


def test_a_server_that_always_breaks_off_in_the_same_place(server, target):
    server.serve("model.pth", CONTENT, breaks_at=[100_000] * 99)
    with pytest.raises(DownloadError, match="broke off 5 times at 100,000 bytes of 300,000"):
        fetch(server, target)
    assert not target.exists()
    assert target.with_name("model.pth.part").stat().st_size == 100_000
    server.serve("model.pth", CONTENT)
    assert fetch(server, target) == DIGEST
    assert server.asked["/model.pth"][-1] == "bytes=100000-"
    assert_whole(target)


def test_a_file_that_changed_in_between_starts_again(server, target):
    server.serve("model.pth", b"old" * 1000, breaks_at=[1000] * 99, etag='"old"')
    with pytest.raises(DownloadError, match="broke off"):
        fetch(server, target, size=None, sha256=None)
    server.serve("model.pth", CONTENT, etag='"new"')
    assert fetch(server, target, size=None, sha256=None) == DIGEST
    assert_whole(target)


def test_the_part_of_another_address_is_not_used(server, target):
    server.serve("other.pth", b"?" * 1000, breaks_at=[500] * 99)
    with pytest.raises(DownloadError):
        fetch(server, target, name="other.pth")
    server.serve("model.pth", CONTENT)
    assert fetch(server, target) == DIGEST
    assert server.asked["/model.pth"] == [None]


@pytest.mark.parametrize("notes", ["", "{", "[]", '{"url": 3}', None])
def test_notes_beside_a_part_that_cannot_be_read(server, target, notes):
    target.parent.mkdir()
    target.with_name("model.pth.part").write_bytes(b"garbage")
    if notes is not None:
        target.with_name("model.pth.part.json").write_text(notes)
    server.serve("model.pth", CONTENT)
    assert fetch(server, target) == DIGEST
    assert_whole(target)


def test_a_length_that_is_too_long(server, target):
    server.serve("model.pth", CONTENT, claims=400_000)
    assert fetch(server, target) == DIGEST
    with pytest.raises(DownloadError, match="broke off 5 times"):
        fetch(server, target.with_name("unknown"), size=None, sha256=None)
    assert not target.with_name("unknown").exists()


def test_a_length_that_is_too_short(server, target):
    server.serve("model.pth", CONTENT, claims=100_000, ranges=False)
    with pytest.raises(DownloadError, match="gave 100,000 bytes where 300,000 are expected"):
        fetch(server, target)
    assert not any(target.parent.iterdir())


@pytest.mark.parametrize("content", [b"<html>Log in, please</html>", CONTENT[::-1], CONTENT * 2])
def test_a_wrong_file(server, target, content):
    server.serve("model.pth", content)
    with pytest.raises(DownloadError, match="another file.*log-in page"):
        fetch(server, target)
    assert not any(target.parent.iterdir())


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_not_there(server, target, status):
    server.serve("model.pth", CONTENT, statuses=[status])
    with pytest.raises(NotThereError, match=rf"model\.pth is not there \(HTTP {status}\)"):
        fetch(server, target)


def test_a_refusal(server, target):
    server.serve("model.pth", CONTENT, statuses=[403])
    with pytest.raises(DownloadError, match=r"is refused \(HTTP 403"):
        fetch(server, target)


def test_a_server_that_is_busy_for_a_while(server, target):
    server.serve("model.pth", CONTENT, statuses=[503, 429])
    assert fetch(server, target) == DIGEST


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://nowhere.invalid/x"])
def test_no_network(target, url):
    with pytest.raises(DownloadError, match=f"There is no way to {url}"):
        download(RemoteFile(url=url, name="x"), target, pause=0.0)


def test_a_disk_without_room(server, target, monkeypatch):
    usage = shutil.disk_usage(target.parents[1])._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    server.serve("model.pth", CONTENT)
    with pytest.raises(OSError, match="has 300,000 bytes and .* has room for 1,000"):
        fetch(server, target)


KILLED = """
import os, sys
from pathlib import Path
from samjax import download
from samjax.zoo import RemoteFile
download._CHUNK = 1000
come = []
download.tqdm.update = lambda bar, n: os._exit(9) if len(come) > 50 else come.append(n)
download.download(RemoteFile(url=sys.argv[1], name="model.pth", size=300_000), Path(sys.argv[2]))
"""


def test_a_later_process_goes_on(server, target):
    server.serve("model.pth", CONTENT)
    command = [sys.executable, "-c", KILLED, f"{server.url}/model.pth", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    have = target.with_name("model.pth.part").stat().st_size
    assert 0 < have < 300_000
    assert fetch(server, target) == DIGEST
    assert server.asked["/model.pth"] == [None, f"bytes={have}-"]
    assert_whole(target)
