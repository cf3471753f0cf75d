"""Two programs for the same thing, of which the platform's is compiled."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

CPUINFO = Path("/proc/cpuinfo")

_for_cpu: contextvars.ContextVar[bool | None] = contextvars.ContextVar("for_cpu", default=None)
"""For which platform the code is being traced: the branch it is in, or what `lowered_for` said;
None where it may be lowered for any."""


def platform_dependent(*args: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, whose branches are for one platform throughout.

    JAX traces both branches, and in each both branches of every choice within: of choices in n
    layers 2**n programs, all but one of which are thrown away when the code is compiled. Tracing a
    training step took six times as long. Here a choice within a branch has been made.
    """
    if (for_cpu := _for_cpu.get()) is not None:
        return (cpu if for_cpu else default)(*args)
    return jax.lax.platform_dependent(
        *args, cpu=_within(True, cpu), default=_within(False, default)
    )


def _within(for_cpu: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    def traced(*args: Any) -> Any:
        before = _for_cpu.set(for_cpu)
        try:
            return function(*args)
        finally:
            _for_cpu.reset(before)

    return traced


@contextlib.contextmanager
def lowered_for(platform: str | None) -> Iterator[None]:
    """Of `platform_dependent` only that platform's branch is traced; None changes nothing.

    For a function under `jax.jit` that has `platform` among its static arguments, so that what was
    traced for one platform is not taken for another.
    """
    if platform is None:
        yield
        return
    before = _for_cpu.set(platform == "cpu")
    try:
        yield
    finally:
        _for_cpu.reset(before)


def platform_of(*arguments: Any) -> str | None:
    """The platform on which a compiled function runs that is called with these arrays, for
    `lowered_for`: "cpu", "cuda", "tpu" and so on. None while one of them is being traced, since
    the caller's program may be lowered for any.
    """
    leaves = jax.tree.leaves(arguments)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and leaf.committed:
            return next(iter(leaf.devices())).platform
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None:
        return jax.default_backend()
    return default if isinstance(default, str) else default.platform


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether XLA multiplies bfloat16 faster than float32 on this processor."""
    try:
        return bfloat16_pays(CPUINFO.read_text())
    except OSError:
        return False


def bfloat16_pays(cpuinfo: str) -> bool:
    """Whether it does on the processor that Linux describes like this.

    With Intel's matrix unit, AMX, a product takes a third of float32's time, with AMD's AVX-512
    instructions half. Intel's without AMX take half as long again as float32.
    """
    words = cpuinfo.split()
    return "amx_bf16" in words or ("AuthenticAMD" in words and "avx512_bf16" in words)
