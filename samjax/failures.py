"""What one picture of many may raise while the rest can be done."""

import jax

FAILURES = (ValueError, TypeError, OSError, MemoryError, jax.errors.JaxRuntimeError)


def reason(name: object, error: Exception) -> str:
    """The error's own words, with the picture's name where they do not have it."""
    text = str(error) or type(error).__name__
    return text if str(name) in text else f"{name}: {text}"
