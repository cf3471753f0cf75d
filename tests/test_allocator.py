"""Freed memory is kept after `tune_allocator`, and only then. Each case in a process of its own."""

import platform
import subprocess
import sys

import pytest

from samjax import allocator, cli

COUNT_FAULTS = """
import resource
import numpy as np
import samjax
{setup}

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(2**24)
before = faults()
for _ in range(4):
    np.ones(2**24)
print(faults() - before)
"""
PAGES = 4 * 2**24 * 8 // 4096


def faults(setup: str) -> int:
    code = COUNT_FAULTS.format(setup=setup)
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                         env={"OMP_NUM_THREADS": "1"})  # fmt: skip
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_is_kept():
    kept = faults("assert samjax.tune_allocator()\nassert samjax.tune_allocator()")
    assert kept < PAGES / 100
    # Huge pages make faults fewer and larger, so that only the ratio is sure.
    assert faults("") > 10 * max(kept, 1)


def test_another_c_library(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.tune_allocator()


@pytest.mark.parametrize(
    "argv, expected", [(None, 1), (["info", "no"], 0)], ids=["program", "call"]
)
def test_the_program_does_it(monkeypatch, tmp_path, argv, expected):
    calls = []
    monkeypatch.setattr(cli, "tune_allocator", lambda: calls.append(1))
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr(sys, "argv", ["samjax", "info", "no"])
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    assert len(calls) == expected
