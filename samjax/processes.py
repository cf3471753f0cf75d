"""Several processes that JAX's distributed runtime has brought together."""

import jax


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    parting_timeout: int = 60,
) -> None:
    """Meets the other processes (`jax.distributed.initialize`, whose arguments these are: on Cloud
    TPU, Slurm and Kubernetes it finds them itself). `jax.process_index()` then says who this is.
    `parting_timeout` are the seconds for which a process that ends waits for the others.

    Raises `ValueError` where they cannot be found.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=parting_timeout
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the other processes cannot be found: {error} On a cluster that JAX does not know, "
            "give --coordinator HOST:PORT, --num-processes and --process-id."
        ) from error


def leave() -> None:
    """Parts from the others, when all have called it. Each has its own devices from then on."""
    jax.distributed.shutdown()
