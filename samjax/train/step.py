"""One compiled training step, and the state it takes from batch to batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt32

from samjax.models.config import SamConfig
from samjax.models.params import Params
from samjax.platforms import lowered_for, platform_of
from samjax.train.config import TrainConfig
from samjax.train.gradients import Batch, batch_gradients, check_batch
from samjax.train.optimizer import learning_rate_schedule, make_optimizer
from samjax.train.parameters import Leaves, join_params, split_params


class TrainState(NamedTuple):
    """All that a run needs to continue: arrays in dicts with strings as keys, for Orbax.

    `trained`, `frozen` and `ema` are flat (`samjax.train.parameters`); `ema` is empty where none
    is kept. `step` counts updates; `key` never changes, each step folds its number into it.
    """

    trained: Leaves
    frozen: Leaves
    opt_state: Any
    ema: Leaves
    step: Int[Array, ""]
    key: UInt32[Array, "2"]


class Metrics(NamedTuple):
    """Of one step, before its update. Means over valid objects, the losses' over iterations too.

    The IoUs are those of the mask that a user would be shown, after the first and last iteration.
    """

    loss: Float[Array, ""]
    focal_loss: Float[Array, ""]
    dice_loss: Float[Array, ""]
    edge_loss: Float[Array, ""]
    outline_loss: Float[Array, ""]
    iou_loss: Float[Array, ""]
    first_iou: Float[Array, ""]
    last_iou: Float[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    objects: Float[Array, ""]


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(config: SamConfig, train: TrainConfig, params: Params, *, seed: int) -> TrainState:
    """The state before the first step. Trained arrays are copied, float32; frozen ones are shared.

    `params` may be on any mesh, and the state is where they are. Raises `ValueError` as
    `split_params` does.
    """
    at_lora, at_steps = jax.random.split(jax.random.key(seed))
    trained, frozen = split_params(params, config, train, at_lora)
    trained = {name: jnp.array(x, jnp.float32, copy=True) for name, x in trained.items()}
    ema = {name: jnp.copy(x) for name, x in trained.items()} if train.ema_decay else {}
    opt_state = make_optimizer(train, trained).init(trained)
    return TrainState(
        trained, {name: jnp.asarray(x) for name, x in frozen.items()}, opt_state, ema,
        jnp.zeros((), jnp.int32), jax.random.key_data(at_steps),
    )  # fmt: skip


def trained_params(
    config: SamConfig, train: TrainConfig, state: TrainState, *, ema: bool = True
) -> Params:
    """Plain params to save or predict with: the average where one is kept and `ema` says so."""
    trained = state.ema if ema and state.ema else state.trained
    return join_params(trained, state.frozen, config, train)


@functools.lru_cache(maxsize=16)
def train_step(config: SamConfig, train: TrainConfig) -> Step:
    """The compiled function from a state and a batch to the next state and the step's metrics.

    The state's arrays are given up to it (only `frozen` can be used again). Shapes are static: one
    program for each shape of batch. It runs where its arguments are: with the batch sharded over a
    mesh and the state replicated (`shard`), gradients are summed over the devices by the compiler.
    A batch of any layout draws the same prompts. Raises `ValueError` when the batch does not fit
    the model or `train`.
    """

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def update(
        platform: str | None, state: TrainState, frozen: Leaves, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        with lowered_for(platform):
            gradients, means, objects = batch_gradients(
                config, train, state.trained, frozen, batch, key
            )
        optimizer = make_optimizer(train, state.trained)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        ema = {
            name: average + (1.0 - train.ema_decay) * (trained[name] - average)
            for name, average in state.ema.items()
        }
        rate = learning_rate_schedule(train)(state.step)
        metrics = Metrics(
            *means.losses, means.first_iou, means.last_iou, _norm(gradients), rate,
            objects,
        )  # fmt: skip
        return TrainState(trained, {}, opt_state, ema, state.step + 1, state.key), metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        check_batch(config, train, batch)
        platform = platform_of(state, batch)
        after, metrics = update(platform, state._replace(frozen={}), state.frozen, batch)
        return after._replace(frozen=state.frozen), metrics

    return step


def replicate(mesh: jax.sharding.Mesh, state: TrainState) -> TrainState:
    """The state on every device of a mesh; where there are several processes, each has to give the
    same."""
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(state, replicated)
    return jax.tree.map(
        lambda x: (
            jax.make_array_from_process_local_data(replicated, np.asarray(x))
            if x.is_fully_addressable
            else x
        ),
        state,
    )


def shard(mesh: jax.sharding.Mesh, state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
    """State on every device of a mesh, pictures spread over its axis "data".

    The compiler is left to spread what is computed from them (axes of type Auto), whatever the
    types of the mesh's own axes. Where there are several processes, each gives the pictures for
    its own devices. Raises `ValueError` when the pictures cannot be divided among the devices.
    """
    state = replicate(mesh, state)
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    if jax.process_count() == 1:
        return state, jax.device_put(batch, spread)
    return state, jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(spread, np.asarray(x)), batch
    )


def _norm(leaves: Leaves) -> Float[Array, ""]:
    return jnp.sqrt(sum((jnp.sum(x * x) for x in leaves.values()), jnp.zeros(())))
