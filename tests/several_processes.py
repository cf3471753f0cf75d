"""The program `samjax` in processes of its own, alone or several that meet."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path


@contextlib.contextmanager
def processes():
    """A function that starts `samjax` with words and a number of simulated devices. What still runs
    at the end is killed."""
    started = []

    def start(words, devices=1, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "samjax", *map(str, words)],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
                 **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def together(number):
    """For each of so many processes the words by which it meets the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        ["--coordinator", f"127.0.0.1:{port}", "--num-processes", number, "--process-id", i]
        for i in range(number)
    ]


def finished(process, code=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output
