"""A run's checkpoints: what is trained, optimizer, step, random state, loader's position."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from samjax.models.config import SamConfig
from samjax.models.params import fingerprint
from samjax.train.parameters import Leaves
from samjax.train.run_config import RunConfig
from samjax.train.step import TrainState

_UNFINISHED = "*.orbax-checkpoint-tmp*"
_STATE, _RUN = "state", "run"


class CheckpointError(OSError):
    """A checkpoint that could not be written; those before it are as they were."""


class Restored(NamedTuple):
    """A state to go on with, and where the loader was."""

    state: TrainState
    loader: dict[str, Any]


class Checkpoints:
    """The latest `run.keep` states of a run, in a folder of Orbax's `CheckpointManager`.

    Frozen arrays are not in them: they come from the model that the run started from, and their
    SHA-256 says whether it is the same one. Use it in a `with` block.
    """

    def __init__(self, folder: Path, run: RunConfig, config: SamConfig, frozen: Leaves):
        self.folder, self.run = folder, run
        description = {
            "settings": run.to_dict(),
            "config": config.to_dict(),
            "frozen": fingerprint(frozen),
        }
        self._description: dict[str, Any] = json.loads(json.dumps(description))
        for unfinished in folder.glob(_UNFINISHED) if folder.is_dir() else ():
            if jax.process_index() == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.run.keep, enable_async_checkpointing=False
        )
        return ocp.CheckpointManager(
            self.folder.absolute(), options=options, item_names=(_STATE, _RUN)
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, loader: dict[str, Any]) -> None:
        """Raises `CheckpointError` when it cannot be written, say because the disk is full. What
        there was before is still there, and what was begun is gone."""
        step = int(state.step)
        if step == self.latest_step:
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_saved(state)),
            run=ocp.args.JsonSave({**self._description, "loader": loader}),
        )
        last = self.latest_step
        try:
            self._manager.save(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types.
            self._forget(step, last)
            kept = "There is none before it." if last is None else f"The last is step {last}'s."
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.folder}: {reason} "
                f"{kept}"
            ) from error

    def restore(self, like: TrainState) -> Restored | None:
        """The latest checkpoint, on the devices of `like`'s arrays; None where there is none.

        Raises `ValueError` for a run with other settings, of another architecture, or whose frozen
        arrays were others: it names the differences. A checkpoint that turns out to be damaged is
        left with a warning for the one before it.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            self._check_same_run(step)
            target = jax.tree.map(_abstract, _saved(like))
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), run=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
                warnings.warn(
                    f"the checkpoint of step {step} in {self.folder} is damaged: {reason}",
                    stacklevel=2,
                )
                continue
            values = {name: restored[_STATE][name] for name in _saved(like)}
            state = like._replace(**values)
            return Restored(state, restored[_RUN]["loader"])
        if self._manager.all_steps():
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read; remove the folder to begin "
                "anew."
            )
        return None

    def _check_same_run(self, step: int) -> None:
        path = self.folder / str(step) / _RUN / "metadata"
        try:
            found = json.loads(path.read_text())
            then = RunConfig.from_dict(found["settings"])
            model_then = SamConfig.from_dict(found["config"]).to_dict()
        except (OSError, ValueError, KeyError):
            return  # Damaged: reading it as a whole will say so.
        differences = self.run.differences(then)
        model_now = SamConfig.from_dict(self._description["config"]).to_dict()
        if not differences:
            differences = [
                f"architecture: {name} is {model_now[name]!r} here, {model_then[name]!r} there"
                for name in sorted(model_now)
                if model_then[name] != model_now[name]
            ]
        if not differences and found["frozen"] != self._description["frozen"]:
            differences = [f"the frozen arrays of {self.run.model} are others than then"]
        if differences:
            raise ValueError(
                f"{self.folder.parent} holds a run with other settings, so it is not continued. "
                "Choose another output, or the same settings:\n  " + "\n  ".join(differences)
            )

    def _forget(self, step: int, last: int | None) -> None:
        """Removes what an unfinished save has left, and lets the manager look anew, which it does
        only together with the other processes: where there are some, this one's run is over."""
        alone = jax.process_count() == 1
        if alone:
            self._manager.close()
        if jax.process_index() == 0:
            for unfinished in self.folder.glob(_UNFINISHED):
                shutil.rmtree(unfinished, ignore_errors=True)
            if last != step:
                shutil.rmtree(self.folder / str(step), ignore_errors=True)
        if alone:
            self._manager = self._open()


def _saved(state: TrainState) -> dict[str, Any]:
    """Orbax has no place for an empty dict."""
    fields = {name: value for name, value in state._asdict().items() if name != "frozen"}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
