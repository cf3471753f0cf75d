"""Files over HTTP: resumed where they broke off, and kept only if they are what they should be."""

import dataclasses
import errno
import hashlib
import http.client
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samjax.zoo import RemoteFile

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

ATTEMPTS = 5
"""Tries in a row that bring nothing before it is given up."""

_CHUNK = 1 << 18
_LASTING = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class DownloadError(OSError):
    """A file that cannot be had; the message says why, and what to do."""


class NotThereError(DownloadError):
    """The address answers that it has no such file."""


def download(file: RemoteFile, target: Path, *, pause: float = 1.0) -> str:
    """Fetches `file` to `target` and returns its SHA-256.

    Bytes are kept in `TARGET.part` until they are all there, and a later call, or a later process,
    goes on from them if the server still has the same file. A bar shows progress where stderr is a
    terminal. `pause` is what it waits before it tries again, in seconds; each time twice as long.

    Raises `NotThereError` for an answer of 404 or 410, and `DownloadError` for other answers, a
    network that is not there, a file that is not the one expected (it is removed), and a transfer
    that breaks off again and again; then what has come is kept. `OSError` where `target` cannot be
    written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(file, target.with_name(f"{target.name}.part"))
    with tqdm(
        desc=file.name, total=file.size, initial=part.size, unit="B", unit_scale=True, disable=None
    ) as bar:
        fruitless, most = 0, part.size
        while not _receive(part, bar):
            fruitless = 0 if part.size > most else fruitless + 1
            most = max(most, part.size)
            if fruitless >= ATTEMPTS:
                raise DownloadError(
                    f"{file.url} broke off {ATTEMPTS} times at {most:,} bytes"
                    f"{_of(part.total)}: {part.trouble}. What has come is kept: try again later"
                )
            time.sleep(pause * 2 ** max(fruitless - 1, 0))
    digest = sha256(part.path)
    if file.sha256 is not None and digest != file.sha256:
        size = part.size
        part.remove()
        raise DownloadError(
            f"{file.url} gave another file than the published one ({size:,} bytes"
            f"{_of(file.size)}, SHA-256 {digest}, expected {file.sha256}). It was removed. Is "
            "there a proxy or a log-in page in between?"
        )
    part.path.replace(target)
    part.remove()
    return digest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass
class _Part:
    """The bytes that have come so far, and what the server said of the whole."""

    file: RemoteFile
    path: Path
    trouble: str = ""
    ended_at: int | None = None
    """Where a body ended too early, in full as the server said."""

    def __post_init__(self) -> None:
        self.notes = self.path.with_name(f"{self.path.name}.json")
        try:
            self.server: dict[str, Any] = dict(json.loads(self.notes.read_text()))
        except (OSError, ValueError, TypeError):
            self.server = {}
        if self.server.get("url") != self.file.url:
            self.remove()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int | None:
        """What is published counts for more than what the server says."""
        return self.file.size if self.file.size is not None else self.server.get("total")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.server = {}

    def remember(self, total: int | None, validator: str | None) -> None:
        self.server = {"url": self.file.url, "total": total, "validator": validator}
        self.notes.write_text(json.dumps(self.server))


def _receive(part: _Part, bar: tqdm) -> bool:
    """One connection. Whether everything is there; `part.trouble` says what went wrong if not."""
    have = part.size
    if have and have == part.total:
        return True
    headers = {"User-Agent": "samjax", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := part.server.get("validator"):
            headers["If-Range"] = validator
    try:
        request = urllib.request.Request(part.file.url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return _read_body(part, answer, bar)
    except urllib.error.HTTPError as error:
        error.close()
        return _refused(part, error)
    except (TimeoutError, ConnectionError, http.client.HTTPException, urllib.error.URLError) as e:
        if isinstance(e, urllib.error.URLError) and _is_no_network(e.reason):
            raise DownloadError(f"There is no way to {part.file.url} ({e.reason})") from e
        part.trouble = str(getattr(e, "reason", e)) or type(e).__name__
        return False


def _read_body(part: _Part, answer: Any, bar: tqdm) -> bool:
    start, said = _range(answer)
    if start not in (0, part.size):
        part.trouble = "the server sent another range than it was asked for"
        part.remove()
        return False
    if start == 0:  # also where the server knows no ranges, or has another file by now
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        weak = validator is not None and validator.startswith("W/")
        part.remember(said, None if weak else validator)
        _check_space(part)
    bar.total, bar.n = part.total, start
    bar.refresh()
    with part.path.open("r+b" if start else "wb") as sink:
        sink.seek(start)
        while chunk := answer.read1(_CHUNK):  # read() would lose what came before a time-out
            sink.write(chunk)
            bar.update(len(chunk))
    if part.total is None or part.size == part.total:
        return True
    part.trouble = "the connection ended early"
    if part.size > part.total or (part.size == said and part.ended_at == said):
        raise _wrong_size(part)
    part.ended_at = part.size
    return False


def _range(answer: Any) -> tuple[int | None, int | None]:
    """Where the body starts in the file, and the file's size; None where that is not said."""
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None:
            return None, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = answer.headers.get("Content-Length")
    return 0, int(length) if length and length.isdecimal() else None


def _refused(part: _Part, error: urllib.error.HTTPError) -> bool:
    url, have = part.file.url, part.size
    if error.code == 416 and have:  # nothing there after what has come
        if have == part.server.get("total"):
            raise _wrong_size(part) from error
        part.trouble = "the server has no more of it than has come"
        part.remove()
        return False
    if error.code in _LASTING:
        part.trouble = f"HTTP {error.code} {error.reason}"
        return False
    if error.code in (404, 410):
        raise NotThereError(f"{url} is not there (HTTP {error.code})") from error
    raise DownloadError(f"{url} is refused (HTTP {error.code} {error.reason})") from error


def _wrong_size(part: _Part) -> DownloadError:
    size, total = part.size, part.total
    part.remove()
    return DownloadError(
        f"{part.file.url} gave {size:,} bytes where {total:,} are expected: it is another file, and"
        " was removed. Is there a proxy or a log-in page in between?"
    )


def _check_space(part: _Part) -> None:
    needed, free = part.total or 0, shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise OSError(
            f"{part.file.name} has {needed:,} bytes and {part.path.parent} has room for {free:,}: "
            "make room, or set SAMJAX_CACHE to a folder on another disk."
        )


def _is_no_network(reason: object) -> bool:
    return isinstance(reason, socket.gaierror | ConnectionRefusedError) or (
        isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )


def _of(total: int | None) -> str:
    return "" if total is None else f" of {total:,}"
