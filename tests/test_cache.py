"""The folder for what is kept, and compiled programs that a second process finds there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samjax import cache, cli

pytestmark = pytest.mark.optimized

PROGRAM = """
import sys
if {jax_first}:
    import jax
import samjax
folder = samjax.keep_compiled_programs()
assert ("jax" in sys.modules) == {jax_first}
import jax
from samjax import inference
from samjax.models import SamConfig
hits = []
jax.monitoring.register_event_listener(lambda name, **kw: hits.append("cache_hits" in name))
inference.init_params(SamConfig.tiny(64))
print(folder, sum(hits))
"""


def run(tmp_path: Path, *, jax_first: bool = False, **env: str) -> tuple[Path, int]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SAMJAX_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(jax_first=jax_first)],
        check=True, capture_output=True, text=True,
        env={**kept, "SAMJAX_CACHE": str(tmp_path / "cache"), **env},
    )  # fmt: skip
    folder, hits = done.stdout.split()
    return Path(folder), int(hits)


def test_a_second_process_compiles_nothing_large_again(tmp_path):
    folder, hits = run(tmp_path)
    assert (
        hits == 0 and folder.is_relative_to(tmp_path / "cache/programs") and any(folder.iterdir())
    )
    for jax_first in (False, True):
        again, hits = run(tmp_path, jax_first=jax_first)
        assert again == folder and hits > 0


def test_the_users_own_folder_stays(tmp_path):
    theirs = tmp_path / "theirs"
    for jax_first in (False, True):
        folder, _ = run(tmp_path, jax_first=jax_first, JAX_COMPILATION_CACHE_DIR=str(theirs))
        assert folder == theirs
    assert not (tmp_path / "cache").exists()


def test_where(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMJAX_CACHE", "~/things")
    assert cache.cache_folder() == Path.home() / "things"
    monkeypatch.delenv("SAMJAX_CACHE")
    monkeypatch.setattr(cache.platform, "system", lambda: "Linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "samjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache/samjax"


def test_a_folder_that_cannot_be_made_is_a_warning_of_the_program(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMJAX_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "_setting", lambda name: None)
    with pytest.raises(NotADirectoryError):
        cache.keep_compiled_programs()
    monkeypatch.setattr(sys, "argv", ["samjax", "info", "no-such-model"])
    assert cli.main() == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("samjax: warning: compiled programs are not kept: ")
    assert "set SAMJAX_CACHE to a folder that can be written" in warning
    assert error.startswith("samjax: error: ")
