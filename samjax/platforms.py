"""Two programs for the same thing, of which the platform's is compiled."""

import contextvars
from collections.abc import Callable
from typing import Any

import jax

_for_cpu: contextvars.ContextVar[bool | None] = contextvars.ContextVar("for_cpu", default=None)
"""Inside of which branch the code is being traced; None outside of any."""


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
