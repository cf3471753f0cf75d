"""What samjax keeps on disk between processes, and where."""

import functools
import hashlib
import os
import platform
import sys
from pathlib import Path

MIN_COMPILE_SECONDS = 0.3
"""Programs that compile faster are not kept: reading them takes as long."""


def cache_folder() -> Path:
    """`SAMJAX_CACHE`, or `samjax` in the user's cache folder."""
    if given := os.environ.get("SAMJAX_CACHE"):
        return Path(given).expanduser()
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "samjax"
    if platform.system() == "Darwin":
        return Path.home() / "Library/Caches/samjax"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samjax"


def keep_compiled_programs(folder: str | os.PathLike[str] | None = None) -> Path:
    """Has JAX keep what it compiles in `folder`, and look there first (its own compilation cache).

    To be called before anything is compiled. Without `folder` it is `programs` in `cache_folder`.
    Each kind of processor gets a folder of its own in there: what is compiled for one may not run
    on another, as when a home directory is shared. The command line does this; `import samjax` does
    not. What the user has set for JAX itself (`JAX_COMPILATION_CACHE_DIR`) stays, and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. Returns the folder that is used. Raises
    `OSError` when it cannot be made.
    """
    path = Path(folder) if folder is not None else cache_folder() / "programs"
    given = _setting("jax_compilation_cache_dir")
    if given:
        return Path(str(given))
    path = path.absolute() / _processor()
    path.mkdir(parents=True, exist_ok=True)
    _set("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        _set("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return path


@functools.cache
def _processor() -> str:
    """A name for the instructions that this machine has."""
    features = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = ("flags", "Features", "model name")
        features = "\n".join(sorted({line for line in lines if line.startswith(names)}))
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _setting(name: str) -> object:
    if "jax" in sys.modules:
        return getattr(sys.modules["jax"].config, name)
    return os.environ.get(name.upper())


def _set(name: str, value: str | float) -> None:
    """Through the environment where JAX is not imported yet, so that nothing waits for it."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)
    else:
        os.environ[name.upper()] = str(value)
