"""What is told of programs that JAX compiles."""

import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.compiles import _LOGGER, Compiled, compiles_reported

pytestmark = pytest.mark.optimized


@pytest.fixture
def fresh():
    """A function that was never compiled, of two arguments."""

    def some_product(x, y):
        return x @ y

    return jax.jit(some_product)


A, B = np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)


def test_each_program_once(fresh, caplog):
    told: list[Compiled] = []
    with compiles_reported(told.append):
        fresh(A, B).block_until_ready()
        fresh(A, B).block_until_ready()
        thread = threading.Thread(target=lambda: fresh(A[:2], B).block_until_ready())
        thread.start()
        thread.join()
    fresh(A[:1], B)
    assert [(t.name, t.arguments, t.from_cache) for t in told] == [
        ("some_product", ("float32[3,4]", "float32[4,2]"), False),
        ("some_product", ("float32[2,4]", "float32[4,2]"), False),
    ]
    assert all(0 < t.seconds < 60 for t in told)
    assert not caplog.records and _LOGGER.level == logging.NOTSET and not _LOGGER.filters


def test_what_jax_logs_by_itself_is_still_logged(fresh, caplog):
    with jax.log_compiles(), compiles_reported(lambda program: None):
        fresh(A, B)
    assert any("some_product" in r.message and r.name == _LOGGER.name for r in caplog.records)


def test_from_the_cache(fresh, tmp_path):
    from jax.experimental.compilation_cache import compilation_cache

    told: list[Compiled] = []
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with compiles_reported(told.append):
            fresh(A, B)
            fresh.clear_cache()
            fresh(A, B)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert [program.from_cache for program in told] == [False, True]
    assert told[1].arguments == told[0].arguments


def test_as_text():
    program = Compiled("decode", tuple(f"float32[{i}]" for i in range(10)), 1.234, False)
    assert str(program).startswith("compiled in 1.23 s: decode(2 more, float32[2], float32[3]")
    assert str(program).endswith("float32[9])")
    assert str(Compiled("f", ("int32[]",), 0.1, True)) == "from the cache in 0.10 s: f(int32[])"


def test_the_program_shows_them(capsys, monkeypatch):
    from samjax import cli
    from samjax.cli import info

    def compute(args):
        jax.jit(lambda x: jnp.sin(x) + 41.0)(A).block_until_ready()
        return 0

    monkeypatch.setattr(info, "run", compute)
    assert cli.main(["info", "nano", "--show-compiles"]) == 0
    *programs, last = capsys.readouterr().err.splitlines()
    assert any("float32[3,4]" in line and "lambda" in line for line in programs)
    assert " programs compiled in " in last and last.endswith(" from the cache in 0.0 s")
