"""Where a figure was measured: versions, hardware, commit. Nothing heavy is imported."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "jax", "jaxlib", "flax", "torch", "segment-anything",
    "transformers", "openvino", "onnxruntime", "keras", "keras-hub",
    "ultralytics",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and of what is compared; empty for what this environment does not have."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def cores() -> int:
    """Those that this process may use, which is how many threads each contender gets."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def hardware() -> dict[str, str]:
    """The processor's name, the cores this process may use, and the memory in GiB."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": str(cores()), "memory_gib": f"{memory:.0f}"}


def commit() -> str:
    """The checkout's commit, with a plus where tracked files differ from it; empty outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(
            git("status", "--porcelain", "-uno")
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
