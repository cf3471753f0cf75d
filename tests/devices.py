"""Code run in a process of its own that has several CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

from quick import FLAGS


def run_on_devices(number: int, code: str, *arguments: str, cwd: Path) -> str:
    """What `code` prints; its error where it fails. It can import what the tests can."""
    environment = {
        "PATH": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={number} {FLAGS}",
        **{name: value for name, value in os.environ.items() if "COMPILATION_CACHE" in name},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=cwd,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
