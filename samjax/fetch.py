"""Models by name: downloaded once, converted once, and kept in the user's cache folder.

`models` in `cache_folder()` has the converted ones, `downloads` what is on its way and the
checksums of what came without a published one.
"""

import dataclasses
import importlib.util
import logging
import os
import shutil
from pathlib import Path

from samjax.cache import cache_folder
from samjax.download import DownloadError, NotThereError, download, sha256
from samjax.locking import locked
from samjax.orbax_folder import (
    DamagedError,
    is_checkpoint_directory,
    read_description,
    save_checkpoint,
)
from samjax.sources import HUGGINGFACE_CONFIG, read_model
from samjax.zoo import HUGGINGFACE_URL, Published, RemoteFile, find

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What a Hugging Face folder's weights are called, the better ones first; split into several files
they have an index of that name and `.index.json`."""

_log = logging.getLogger("samjax")


def is_a_name(source: str | os.PathLike) -> bool:
    """Whether it names a published model, and no file or folder is there under that name."""
    return isinstance(source, str) and find(source) is not None and not os.path.exists(source)


def unknown_name(source: str | os.PathLike) -> str:
    """What to add to the error about a source that is not there, if it looks like a name."""
    if not isinstance(source, str) or os.sep in source or Path(source).suffix:
        return ""
    return " Nor is it a published model's name; `samjax models` lists those."


def cached_path(name: str) -> Path:
    """Where the converted model is, or will be. Raises `ValueError` for an unknown name."""
    return cache_folder() / "models" / _key(_find(name))


def downloaded_path(name: str) -> Path:
    """Where its file, or its folder of files, is looked for before anything is downloaded."""
    model = _find(name)
    return cache_folder() / "downloads" / (model.file.name if model.file else _key(model))


def fetch(name: str) -> Path:
    """The checkpoint directory of a published model, which is made if it is not there.

    One process makes it while others wait. A directory in the cache that is damaged is made again.
    Raises `ValueError` for an unknown name, or a file put there by hand that is not the published
    one; `ImportError` where converting needs torch; `DownloadError` that says what to fetch and
    where to put it; and `OSError` where the cache folder cannot be written.
    """
    model, path = _find(name), cached_path(name)
    if _is_whole(path):
        return path
    lock = path.with_name(f".{path.name}.lock")

    def tell() -> None:
        _log.warning("samjax: waiting for another process that makes %s", model.name)

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise OSError(
            f"{model.name} cannot be kept in {cache_folder()} ({error.strerror}): set SAMJAX_CACHE "
            "to a folder that can be written."
        ) from error
    with locked(lock, when_waiting=tell):
        if not _is_whole(path):
            _make(model, path)
    return path


def _find(name: str) -> Published:
    model = find(name)
    if model is None:
        raise ValueError(f"There is no published model {name!r}.{unknown_name(name)}")
    return model


def _key(model: Published) -> str:
    return (model.repository or model.name).replace("/", "--")


def _is_whole(path: Path) -> bool:
    if not is_checkpoint_directory(path):
        return False
    try:
        read_description(path)
    except DamagedError as error:
        _log.warning("samjax: it is made again, since %s", error)
        return False
    return True


def _make(model: Published, path: Path) -> None:
    if model.needs_torch and importlib.util.find_spec("torch") is None:
        raise ImportError(
            f"{model.name} is published as a torch file, and torch is not installed: "
            "pip install 'samjax[convert]'. The models named facebook/... need none."
        )
    target = downloaded_path(model.name)
    try:
        if model.file:
            obtained = [_obtain(model.file, target)]
        else:
            assert model.repository is not None
            obtained = _obtain_folder(model.repository, target)
    except DownloadError as error:
        raise type(error)(f"{error}. {_instructions(model, target)}") from error
    try:
        converted = read_model(target)
    except ValueError as error:
        raise ValueError(_not_a_model(model, obtained, error)) from error
    for half in path.parent.glob(f".{path.name}.*.partial"):  # of a process that was killed
        shutil.rmtree(half, ignore_errors=True)
    if path.exists() and not is_checkpoint_directory(path):
        shutil.rmtree(path)
    save_checkpoint(path, converted, overwrite=True)
    for file in obtained:
        file.pin()
        file.path.unlink()
    _log.info("samjax: %s is kept in %s", model.name, path)


@dataclasses.dataclass(frozen=True)
class _Obtained:
    """A file that is there, and its checksum; `expected` is None if this is its first time."""

    path: Path
    digest: str
    expected: str | None

    def pin(self) -> None:
        _pin_path(self.path).write_text(f"{self.digest}\n")


def _obtain(file: RemoteFile, target: Path) -> _Obtained:
    """Downloads the file if it is not there, and checks it.

    Raises `DownloadError`, and `ValueError` for one put there by hand that is not the right one.
    """
    pinned = _pin_path(target)
    expected = file.sha256
    if expected is None and pinned.exists():
        expected = pinned.read_text().strip()
    if not target.exists():
        try:
            digest = download(dataclasses.replace(file, sha256=expected), target)
        except DownloadError as error:
            if file.sha256 is None and expected and not isinstance(error, NotThereError):
                raise type(error)(
                    f"{error} (If a checksum differs: it is that of the file that came first, in "
                    f"{pinned}. Remove that file if you expect a new one)"
                ) from error
            raise
        return _Obtained(target, digest, expected)
    digest = sha256(target)
    if expected is not None and digest != expected:
        size = target.stat().st_size
        raise ValueError(
            f"{target} is not the published file: it has {size:,} bytes"
            f"{f', expected {file.size:,}' if file.size else ''}"
            f", and SHA-256 {digest}, expected {expected}. Remove it, or put the whole file "
            "there."
        )
    return _Obtained(target, digest, expected)


def _obtain_folder(repository: str, folder: Path) -> list[_Obtained]:
    def obtain(name: str) -> _Obtained:
        url = f"{HUGGINGFACE_URL}{repository}/resolve/main/{name}"
        return _obtain(RemoteFile(url=url, name=name), folder / name)

    obtained = [obtain(HUGGINGFACE_CONFIG)]
    try:
        obtained.append(obtain("preprocessor_config.json"))
    except NotThereError:
        pass
    for weights in _WEIGHTS:
        try:
            return [*obtained, obtain(weights)]
        except NotThereError:
            pass
        try:
            index = obtain(f"{weights}.index.json")
        except NotThereError:
            continue
        names = _parts(index.path)
        return [*obtained, index, *(obtain(name) for name in names)]
    raise NotThereError(f"{HUGGINGFACE_URL}{repository} has no {' and no '.join(_WEIGHTS)}")


def _parts(index: Path) -> list[str]:
    from samjax.convert.huggingface import parts_of_index

    return parts_of_index(index)


def _pin_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _instructions(model: Published, target: Path) -> str:
    if model.file:
        file = model.file
        facts = [f"{file.size:,} bytes"] if file.size else []
        facts += [f"SHA-256 {file.sha256}"] if file.sha256 else []
        about = f" ({', '.join(facts)})" if facts else ""
        return f"Fetch {file.url}{about} with another machine and put it at {target}"
    url = f"{HUGGINGFACE_URL}{model.repository}/resolve/main/"
    return (
        f"Fetch {url}{HUGGINGFACE_CONFIG} and {url}{_WEIGHTS[0]} with another machine and put them "
        f"into {target}"
    )


def _not_a_model(model: Published, obtained: list[_Obtained], error: ValueError) -> str:
    """Files without a known checksum are removed: they may be anything, such as a log-in page."""
    doubtful = [file for file in obtained if file.expected is None]
    for file in doubtful:
        file.path.unlink(missing_ok=True)
    if not doubtful:
        return f"{model.name} cannot be converted: {error}"
    names = ", ".join(str(file.path) for file in doubtful)
    return f"What came for {model.name} cannot be read, and was removed ({names}): {error}"


def parts_on_disk(name: str) -> tuple[int, int]:
    """Bytes of the converted model, and of what has been downloaded for it and not converted."""
    target = downloaded_path(name)
    files = list(target.parent.glob(f"{target.name}*")) if find(name) else []
    files += list(target.rglob("*")) if target.is_dir() else []
    ignored = (".sha256", ".json.part", ".part.json")
    waiting = sum(f.stat().st_size for f in files if f.is_file() and not f.name.endswith(ignored))
    converted = cached_path(name)
    kept = sum(f.stat().st_size for f in converted.rglob("*") if f.is_file())
    return kept if is_checkpoint_directory(converted) else 0, waiting


def describe_checksum(model: Published) -> str:
    """ "published", "of the first download", or "none yet"."""
    if model.file and model.file.sha256:
        return "published"
    target = downloaded_path(model.name)
    pinned = _pin_path(target) if model.file else _pin_path(target / _WEIGHTS[0])
    return "of the first download" if pinned.exists() else "none yet"
