"""Keeps XLA:CPU from computing wrong sums where jaxlib is known to do so.

jaxlib 0.10.2 hands reductions on the CPU to YNNPACK, and gets one kind wrong without a word: the
sum over a narrow axis of what a small matrix product returns, over more than 32768 rows (float32)
or 16384 (float64). `sum((matrix @ row) ** 2)` with a 3x3 matrix over 40000 rows has 7232 wrong
rows (jax issue 39103). Reductions of rank 7 and more can crash the process (40412, 39257).
`-reduce` gives reductions back to XLA's own code and leaves products and convolutions with
YNNPACK. It mends all three, and so does naming `individual_dot,individual_convolution`, which is
what `-reduce` leaves of 0.10.2's defaults.

What it costs on two AVX2 cores, as processor time against the defaults, from one round on a busy
machine: the ViT-B image encoder at 1024 pixels takes 1.2 with `jax.nn.softmax` over all logits at
once, and 1.1 with 128 queries at a time and rows reduced in two steps (over the outer key axis,
then the inner one), which by itself is 1.6 times faster. The mask decoder takes 1.0. Without
YNNPACK (an empty value) these are 1.2, 1.0 and 1.1. Everything agrees with float64 to 1.4e-6 of
the largest value.

| jaxlib          | takes the flag | 39103 | 40412 | 39257 | set here |
|-----------------|----------------|-------|-------|-------|----------|
| 0.9.0 to 0.10.1 | yes            | right | runs  |       | no       |
| 0.10.2          | yes            | WRONG | CRASH | CRASH | -reduce  |
| 0.11.0          | yes            | right | runs  | CRASH | no       |
| 0.11.1          | yes            | right | runs  | runs  | no       |
| 0.11.2          | yes            | right | runs  | runs  | no       |
| 0.12.0          | yes            | right | runs  |       | no       |
| 0.12.0.1        | yes            | right | runs  | runs  | no       |

An empty field was not tried. 0.11.0 is left alone: nothing in samjax reduces arrays of rank 8.
No other version is touched, because jaxlib ends the process when it meets a flag or a value that
it does not know. XLA_FLAGS reaches child processes too; one that runs another XLA (TensorFlow, an
old jaxlib) and does not know this flag has to be started without it.
"""

import functools
import os
import re
import sys
import warnings
from pathlib import Path

import jaxlib

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
SAFE_VALUE = "-reduce"

_AFFECTED = frozenset({"0.10.2"})
_SETTING = f"{FLAG}={SAFE_VALUE}"


def configure() -> None:
    """Appends the setting to XLA_FLAGS where it is needed and still has an effect.

    Does nothing for a jaxlib that is not known to have the fault, and nothing where XLA_FLAGS
    already gives this flag a value. Warns with `RuntimeWarning`, and changes nothing, when it is
    too late (a jax backend is up on the CPU) or impossible (XLA_FLAGS names a file that has to
    stay as it is). Starts no backend itself.
    """
    if jaxlib.__version__ not in _AFFECTED:
        return
    flags = os.environ.get("XLA_FLAGS", "").strip()
    names_file = bool(flags) and not flags.startswith("--")
    if _gives_flag(_read(flags) if names_file else flags):
        return
    if _backend_is_up():
        _warn(
            "jax started its backend before samjax was imported, so the fault stays switched on. "
            f"Import samjax first, or start Python with XLA_FLAGS={_SETTING}"
        )
    elif names_file:
        _warn(
            f"XLA_FLAGS names the file {flags!r}, which samjax leaves alone. Add {_SETTING} to it"
        )
    else:
        os.environ["XLA_FLAGS"] = f"{flags} {_SETTING}".strip()


def _gives_flag(flags: str) -> bool:
    return re.search(rf"(^|\s){FLAG}(=|\s|$)", flags) is not None


def _read(path: str) -> str:
    """The file's text; nothing for one that cannot be read, of which jaxlib will complain."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _backend_is_up() -> bool:
    """Whether jax computes on a CPU backend that has already read XLA_FLAGS.

    jax has no public way to ask this without starting one, so it asks a private function. Where a
    future jax has moved that away, the answer is no: the flag is then appended, which is harmless
    when it comes too late, and only the warning is lost.
    """
    if "jax" not in sys.modules:
        return False
    import jax

    try:
        started = jax._src.xla_bridge.backends_are_initialized()
    except AttributeError:
        return False
    return started and jax.default_backend() == "cpu"


@functools.cache  # once is enough
def _warn(what: str) -> None:
    warnings.warn(
        f"jaxlib {jaxlib.__version__} computes some sums over many rows wrong on the CPU, without "
        f"an error (jax issue 39103). {what}; or use a newer jaxlib.",
        RuntimeWarning,
        stacklevel=3,
    )
