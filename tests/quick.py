"""Programs that compile in a quarter of the time, for tests of what is computed.

XLA leaves out what only makes them fast. What users run is compiled as they compile it, and so is
whatever a test measures or compares bit by bit.
"""

import functools

import jax

OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
"""The same, for the environment of another process."""

jit = functools.partial(jax.jit, compiler_options=OPTIONS)
