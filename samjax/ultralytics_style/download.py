"""Pictures and videos from the web."""

import contextlib
import http.client
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

TIMEOUT = 30.0
"""Seconds without a sign of life after which a server is given up."""

MAX_PICTURE_BYTES = 512 * 2**20


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def url_suffix(url: str) -> str:
    """The suffix of the file that a URL names, in lower case."""
    return PurePosixPath(urllib.parse.urlparse(url).path).suffix.lower()


def download(url: str) -> bytes:
    """What a URL holds, in memory.

    Raises `OSError` naming the URL when it cannot be had in full, `ValueError` when it is larger
    than `MAX_PICTURE_BYTES`.
    """
    with _opened(url) as response:
        content = response.read(MAX_PICTURE_BYTES + 1)
        if len(content) > MAX_PICTURE_BYTES:
            raise ValueError(f"{url} holds more than {MAX_PICTURE_BYTES} bytes; that is no picture")
        if response.length:
            raise http.client.IncompleteRead(content, response.length)
        return content


@contextlib.contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """What a URL holds, as a file that is there for the block. Raises `OSError` as `download`."""
    with tempfile.TemporaryDirectory(prefix="samjax-") as folder:
        path = Path(folder, f"download{url_suffix(url)}")
        with _opened(url) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        yield path


@contextlib.contextmanager
def _opened(url: str) -> Iterator[http.client.HTTPResponse]:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "samjax"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} cannot be had: the server says {error.code} {error.reason}") from None
    except http.client.IncompleteRead as error:
        raise OSError(f"{url} broke off with {error.expected} bytes to come") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(f"{url} cannot be had: {reason}") from None
    except ConnectionError as error:
        raise OSError(f"{url} cannot be had: {error}") from None
