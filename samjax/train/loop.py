"""A training run from its settings to a trained model, through interruptions."""

import dataclasses
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from samjax.checkpoint import Model, load, save_checkpoint
from samjax.datasets import Report, Source
from samjax.evaluate import evaluate
from samjax.images import write_png
from samjax.models.architecture import abstract_params
from samjax.models.config import SamConfig
from samjax.models.params import describe, differences, flatten
from samjax.predictor import SamPredictor
from samjax.train.checkpoints import CheckpointError, Checkpoints
from samjax.train.data import make_loader, settings_for
from samjax.train.embeddings import EmbeddingCache
from samjax.train.examples import Example
from samjax.train.gradients import Batch, encoder_is_frozen
from samjax.train.journal import Journal, draw_curves
from samjax.train.run_config import RunConfig
from samjax.train.samples import sample_sheet
from samjax.train.step import (
    Metrics,
    TrainState,
    init_state,
    replicate,
    shard,
    train_step,
    trained_params,
)
from samjax.train.stopping import stop_signals

LOG, EVALUATIONS, CURVES, SAMPLES = "log.csv", "evaluation.csv", "curves.png", "samples"
CHECKPOINTS, MODEL = "checkpoints", "model"
PROTOCOLS = ("box", "1 click, oracle", "1 click", "3 clicks", "5 clicks")
LOG_COLUMNS = ("seconds", *Metrics._fields, "left_out")


class DivergedError(ValueError):
    """The loss is not a number any more."""


def run_training(run: RunConfig, *, progress: bool = True) -> Path:
    """Trains, and returns the folder of the trained model, a checkpoint for `samjax.load`.

    Goes on from the latest checkpoint where `run.output` holds the same run, to the very
    parameters that it would have had without a stop. Leaves in `run.output`: `checkpoints`,
    `log.csv`, and at each evaluation `evaluation.csv`, `curves.png`, `samples/step_N.png` and
    `model` (the average of the parameters, where one is kept).

    With several processes (`jax.distributed.initialize`, or `samjax.processes.join`, before
    anything else) each calls this with the same run, and all see the same folders. Each loads its
    share of a step's pictures; process 0 evaluates and writes. What is trained does not depend on
    their number, up to the order in which devices' gradients are added.

    Ctrl-C and SIGTERM end it with `KeyboardInterrupt` after a last checkpoint. A checkpoint that
    cannot be written is warned of, and tried again at the next turn. Raises `CheckpointError` when
    the last one cannot be written, `DivergedError`, `ValueError` for settings that do not fit each
    other or the run that is there, and what opening data and model raises.
    """
    output = Path(run.output)
    sources = [data.open() for data in run.data]
    validation = [data.open() for data in run.validation]
    model = load(run.model)
    config = _training_config(model, run)
    params = model.astype("float32").params
    state = init_state(config, run.train, params, seed=run.seed)
    settings = settings_for(
        config, num_objects=run.num_objects, repeat_objects=run.repeat_objects,
        augmentation=run.augmentation if run.augment else None,
    )  # fmt: skip
    embeddings = None
    if run.embedding_cache:
        if not encoder_is_frozen(run.train):
            raise ValueError(
                f"embeddings can be kept where the whole image encoder is frozen; trained is "
                f"{run.train.trained!r}"
            )
        encoder = Model(params, config)
        embeddings = EmbeddingCache(Path(run.embedding_cache), encoder)
        embeddings.fill(encoder, sources, settings, progress=progress)
        multihost_utils.sync_global_devices("samjax: embeddings are kept")
    mesh = _mesh(run)
    state = replicate(mesh, state)
    loader = make_loader(
        sources, settings, batch_size=run.batch_size // jax.process_count(), seed=run.seed,
        weights=[data.weight for data in run.data] if len(run.data) > 1 else None,
        num_workers=run.num_workers, embeddings=embeddings,
        drop_remainder=True,
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    with Checkpoints(output / CHECKPOINTS, run, config, state.frozen) as checkpoints:
        examples = iter(loader)
        restored = checkpoints.restore(state)
        if restored is not None:
            state = restored.state
            examples.set_state(restored.loader)
            if jax.process_index() == 0:
                tqdm.write(
                    f"continuing at step {int(state.step)} of {run.train.total_steps}",
                    file=sys.stderr,
                )
        return _Run(run, output, model, config, mesh, checkpoints, sources, validation).steps(
            state, examples, progress=progress
        )


class _Run:
    def __init__(
        self,
        run: RunConfig,
        output: Path,
        model: Model,
        config: SamConfig,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        sources: Sequence[Source],
        validation: Sequence[Source],
    ):
        self.run, self.output, self.model, self.config = run, output, model, config
        self.mesh, self.checkpoints = mesh, checkpoints
        self.sources, self.validation = sources, validation
        self.report = Report("training", sum(len(source) for source in sources))
        self.writes = jax.process_index() == 0

    def steps(self, state: TrainState, examples, *, progress: bool) -> Path:
        run, first = self.run, int(state.step)
        self.progress = progress and self.writes
        self.log = Journal(self.output / LOG, LOG_COLUMNS, step=first, writes=self.writes)
        self.evaluations = Journal(
            self.output / EVALUATIONS, PROTOCOLS, step=first, writes=self.writes
        )
        before = self.log.rows[-1]["seconds"] if self.log.rows else 0.0
        self.start = time.monotonic() - before
        step = train_step(self.config, run.train)
        total = run.train.total_steps
        pending: list[Metrics] = []
        saved = True
        bar = tqdm(
            total=total, initial=first, unit="step", disable=not self.progress,
            file=sys.stderr, dynamic_ncols=True,
        )  # fmt: skip
        with bar, stop_signals(self.mesh) as stop_is_asked:
            for number in range(first + 1, total + 1):
                example = next(examples)
                self.report.add_counts(example.left_out)
                state, batch = shard(self.mesh, state, _batch(example))
                state, metrics = step(state, batch)
                if pending:  # One step ahead keeps the device busy; more would outrun the bar.
                    jax.block_until_ready(pending[-1])
                pending.append(metrics)
                stopped = stop_is_asked()
                if number % run.log_every == 0 or number == total or stopped:
                    bar.set_postfix_str(self._write_log(number, pending))
                    pending = []
                bar.update()
                due = number % run.checkpoint_every == 0 or number == total or stopped
                if due:
                    if pending:
                        self._write_log(number, pending)
                        pending = []
                    saved = self._save(state, examples.get_state(), number == total)
                if stopped:
                    if saved:
                        self._write_model(state)
                    if self.writes:
                        self._tell_where_it_stopped(number, saved)
                    raise KeyboardInterrupt
                if number == total or (run.evaluate_every and number % run.evaluate_every == 0):
                    self._evaluate(state, number)
        if first >= total and not (self.output / MODEL).exists():
            self._evaluate(state, first)
        if self.report.counts and self.writes:
            print(self.report, file=sys.stderr)
        multihost_utils.sync_global_devices("samjax: the model is written")
        return self.output / MODEL

    def _write_log(self, number: int, pending: list[Metrics]) -> str:
        means = Metrics(*np.mean([jax.device_get(metrics) for metrics in pending], axis=0).tolist())
        if not np.isfinite(means.loss):
            last = self.checkpoints.latest_step
            kept = "no checkpoint" if last is None else f"the checkpoint of step {last}"
            raise DivergedError(
                f"the loss became {means.loss} within the {len(pending)} steps before step "
                f"{number}. {self.output} has {kept} from before. A smaller train.learning_rate "
                f"({self.run.train.learning_rate} now) or more train.warmup_steps may help."
            )
        row = {
            "seconds": time.monotonic() - self.start,
            **means._asdict(),
            "left_out": float(self.report.counts.total()),
        }
        self.log.add(number, row)
        return f"loss {means.loss:.3f}, IoU {means.last_iou:.3f}"

    def _save(self, state: TrainState, loader, last: bool) -> bool:
        try:
            self.checkpoints.save(state, loader)
        except CheckpointError as error:
            if last or jax.process_count() > 1:  # The others wait for this one.
                raise
            warnings.warn(f"{error} Training goes on.", stacklevel=2)
            return False
        return True

    def _tell_where_it_stopped(self, number: int, saved: bool) -> None:
        tqdm.write(
            f"stopped after step {number}; the same command goes on from "
            f"{'there' if saved else 'the last checkpoint'}"
            f"{f', and {self.output / MODEL} is the model so far' if saved else ''}",
            file=sys.stderr,
        )

    def _write_model(self, state: TrainState) -> Model:
        params = jax.device_get(trained_params(self.config, self.run.train, state))
        model = dataclasses.replace(self.model, params=params)
        if self.writes:
            save_checkpoint(self.output / MODEL, model, overwrite=True)
        return model

    def _evaluate(self, state: TrainState, number: int) -> None:
        """Mean IoUs, the model, the curves, and samples."""
        model = self._write_model(state)
        if not self.writes:
            return
        predictor = SamPredictor(model)
        if self.validation:
            each = -(-self.run.validation_pictures // len(self.validation))
            found = [
                evaluate(predictor, source, max_pictures=each, progress=self.progress)
                for source in self.validation
            ]
            ious = {p: np.concatenate([one.ious[p] for one in found]) for p in PROTOCOLS}
            means = {protocol: float(values.mean()) for protocol, values in ious.items()}
            self.evaluations.add(number, means)
            shown = ", ".join(f"{protocol} {mean:.3f}" for protocol, mean in means.items())
            tqdm.write(f"step {number}: {shown}", file=sys.stderr)
        draw_curves(self.output / CURVES, self.log, self.evaluations)
        if self.run.sample_pictures:
            shown_from = self.validation or self.sources
            sheet = sample_sheet(predictor, shown_from, self.run.sample_pictures)
            if sheet is not None:
                (self.output / SAMPLES).mkdir(exist_ok=True)
                write_png(self.output / SAMPLES / f"step_{number:07}.png", sheet)


def _batch(example: Example) -> Batch:
    return Batch(
        example.masks, example.valid, example.input_size, example.image, example.image_embedding,
        example.boxes,
    )  # fmt: skip


def _training_config(model: Model, run: RunConfig) -> SamConfig:
    """The model's, with the run's input size and precision. Raises `ValueError` where arrays depend
    on the size."""
    config = _resized(model.config, run.image_size or model.config.image_size)
    if run.crop_size:
        if run.crop_size > config.image_size:
            raise ValueError(
                f"crop_size is {run.crop_size}; it has to be at most the input's "
                f"{config.image_size} pixels"
            )
        config = _resized(config, run.crop_size).replace(frame_size=config.image_size)
    if config != model.config:
        groups = differences(flatten(model.params), flatten(abstract_params(config)))
        if any(groups.values()):
            raise ValueError(
                f"the input is {config.image_size}, the model's {model.config.image_size}, and "
                f"this image encoder has arrays for its own size:\n{describe(groups)}"
            )
    return config if run.precision is None else config.at_precision(run.precision)


def _resized(config: SamConfig, image_size: int) -> SamConfig:
    encoder = dataclasses.replace(config.image_encoder, image_size=image_size)
    return config.replace(image_encoder=encoder)


def _mesh(run: RunConfig) -> jax.sharding.Mesh:
    """All devices, in one axis over which pictures are spread. Raises `ValueError` where they
    cannot be divided evenly."""
    devices = jax.devices()
    parts = len(devices) * run.train.accumulate
    if run.batch_size % parts and len(devices) > 1:
        raise ValueError(
            f"batch_size is {run.batch_size}; {len(devices)} devices with {run.train.accumulate} "
            f"parts each need a multiple of {parts}"
        )
    return jax.make_mesh((len(devices),), ("data",), devices=devices)
