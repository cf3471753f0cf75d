"""How a run is stopped: by Ctrl-C or SIGTERM, after a step, and after the same one everywhere."""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


@contextlib.contextmanager
def stop_signals(mesh: jax.sharding.Mesh) -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM came, so that the step they come in is
    finished. A second Ctrl-C is one.

    Each process of the mesh has to call it after each step, and gets the same answer, which ends
    all of them after the same step. With several processes it tells of signals before the step
    before, since waiting for the others' answers to this step would leave the devices idle.
    """
    stopped = threading.Event()
    asked = stopped.is_set if jax.process_count() == 1 else _AnyOf(mesh, stopped).asked
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _AnyOf:
    """Whether the event is set in any process."""

    def __init__(self, mesh: jax.sharding.Mesh, event: threading.Event):
        self._event, self._number = event, len(mesh.local_devices)
        self._spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._any = functools.partial(jax.jit, out_shardings=replicated)(jnp.any)
        self._last: jax.Array | None = None

    def asked(self) -> bool:
        here = np.full(self._number, self._event.is_set())
        flags = jax.make_array_from_process_local_data(self._spread, here)
        last, self._last = self._last, self._any(flags)
        return last is not None and bool(last)
