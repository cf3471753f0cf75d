"""`Predictor`: prompts on a picture that is set, or on any number of pictures."""

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import samjax
from samjax.checkpoint import Model
from samjax.devices import find_device
from samjax.ultralytics_style.arguments import Arguments
from samjax.ultralytics_style.files import SavedRun
from samjax.ultralytics_style.finding import (
    Encoded,
    Found,
    find_everything,
    find_objects,
    make_generator,
    to_results,
)
from samjax.ultralytics_style.objects import read_objects
from samjax.ultralytics_style.results import Results
from samjax.ultralytics_style.sources import Frame, Source, list_sources

DEFAULT_MODEL = "sam_b.pt"

_FAILURES = (ValueError, TypeError, OSError, MemoryError, jax.errors.JaxRuntimeError)
"""What a picture may raise that cannot be read or done, while the next one can."""


class Failure(NamedTuple):
    """A picture that could not be done, and why."""

    path: str
    reason: str


class Predictor:
    """Prompts in Ultralytics' form, on Meta's numbers.

    Args:
      overrides: the documented arguments by name (`samjax.ultralytics_style.arguments`), used
        where a call does not give its own; "model" is a name or file that `samjax.load` takes, or a
        `samjax.Model`; "sam_b.pt" when absent.
      keep_last: a call without a source is about the last picture that was given alone, where none
        has been set.

    Raises `TypeError` for an argument that is not documented, `ValueError` for a value that is out
    of range or cannot be done, and what `samjax.load` raises.
    """

    def __init__(self, overrides: Mapping[str, Any] | None = None, *, keep_last: bool = False):
        values = dict(overrides or {})
        model = values.pop("model", None) or DEFAULT_MODEL
        self.arguments = Arguments().updated(values)
        find_device(self.arguments.device)
        self._loaded: Model = model if isinstance(model, Model) else samjax.load(model)
        self._placed: tuple[Any, Model] = ((None, False), self._loaded)
        self._kept: Encoded | None = None
        self._keep_last = keep_last
        self.failures: list[Failure] = []
        """Pictures of the last call that could not be done."""

    @property
    def model(self) -> Model:
        """As it was last used: on its device, and in its precision."""
        return self._placed[1]

    def set_image(self, image: Any) -> None:
        """Encodes one picture, which calls without a source are then about.

        `image` is anything that holds one picture: a file, a URL, a BGR array, a Pillow picture.
        Should anything fail, the picture that was set before stays set. Raises `ValueError` for
        several pictures or a video, and what reading a picture raises.
        """
        sources = list_sources(image)
        if len(sources) != 1 or sources[0].is_video:
            what = "a video" if sources[0].is_video else f"{len(sources)} pictures"
            raise ValueError(f"set_image takes one picture, and this is {what}.")
        encoded = Encoded(next(sources[0].frames()))
        encoded.predictor(self._model(self.arguments))
        self._kept = encoded

    def reset_image(self) -> None:
        """Forgets the picture."""
        self._kept = None

    def __call__(
        self,
        source: Any = None,
        *,
        stream: bool = False,
        bboxes: Any = None,
        points: Any = None,
        labels: Any = None,
        masks: Any = None,
        multimask_output: bool = False,
        **arguments: Any,
    ) -> list[Results] | Iterator[Results]:
        """Masks of the objects that the prompts show, or without prompts of everything.

        Args:
          source: see `samjax.ultralytics_style.sources`; None is the picture that is set, which is
            not encoded again.
          stream: return an iterator, which holds one picture at a time, and not a list.
          bboxes: (4,) or (N, 4): x0, y0, x1, y1 in pixels of the picture.
          points: (2,) or (N, 2): an object for each point; (N, n, 2): n points for each object.
          labels: of the points, 1 for the object and 0 for the background; all 1 when absent.
          masks: (h, w) or (N, h, w): low-resolution logits, as `result.masks.logits`.
          multimask_output: three masks for each object, not the one; for prompts only.
          **arguments: the fields of `samjax.ultralytics_style.arguments.Arguments`, for this call.

        The same prompts go to every picture of the source. A picture of several that cannot be done
        is reported in samjax's log and in `failures`, and the rest is done. Raises, before anything
        is computed, `TypeError` and `ValueError` for wrong arguments, prompts and sources,
        `RuntimeError` without a source when no picture is set; then what a single picture raises,
        and `ValueError` when none of several could be done.
        """
        settings = self.arguments.updated(arguments)
        model = self._model(settings)
        _check_size(settings.imgsz, model.config.image_size)
        side = model.config.low_res_size
        objects = read_objects(bboxes, points, labels, masks, side=side)
        if objects is None:
            generator = make_generator(model, settings)
        sources = None
        if source is not None:
            sources = list_sources(source, vid_stride=settings.vid_stride)
        elif self._kept is None:
            raise RuntimeError(
                "there is no source, and no picture is set: give source=..., or call "
                "set_image(picture) first."
            )

        def find(encoded: Encoded) -> Found:
            if objects is None:
                return find_everything(generator, encoded)
            return find_objects(encoded.predictor(model), objects, multimask_output)

        found = self._run(sources, find, settings)
        return found if stream else list(found)

    def _run(
        self,
        sources: Sequence[Source] | None,
        find: Callable[[Encoded], Found],
        settings: Arguments,
    ) -> Iterator[Results]:
        self.failures = []
        saved = SavedRun(settings)
        several = sources is not None and len(sources) > 1
        done = 0
        for name, encoded, milliseconds, error in self._pictures(sources):
            started = time.perf_counter()
            try:
                if error is not None:
                    raise error
                found = find(encoded)
            except _FAILURES as failure:
                if not several:
                    raise
                self._report(name, failure)
                continue
            inferred = time.perf_counter()
            result = to_results(encoded.frame, found, settings)
            finished = time.perf_counter()
            result.speed = {
                "preprocess": milliseconds,
                "inference": 1e3 * (inferred - started),
                "postprocess": 1e3 * (finished - inferred),
            }
            done += 1
            if settings.verbose:
                times = ", ".join(f"{value:.1f} ms {key}" for key, value in result.speed.items())
                frame = "" if result.frame is None else f" frame {result.frame}"
                print(f"{name}{frame}: {result.verbose()}, {times}", file=sys.stderr)
            saved.write(result)
            if settings.show:
                result.show()
            yield result
        if self.failures:
            first = f"{len(self.failures)} of {len(self.failures) + done} pictures not done"
            if not done:
                raise ValueError(f"{first}; the first: {self.failures[0].reason}")
            logging.getLogger("samjax").warning("samjax: %s (predictor.failures)", first)

    def _pictures(
        self, sources: Sequence[Source] | None
    ) -> Iterator[tuple[str, Any, float, Exception | None]]:
        """Name, picture, milliseconds it took to read, or what reading it raised."""
        if sources is None:
            assert self._kept is not None
            yield self._kept.frame.path, self._kept, 0.0, None
            return
        if self._keep_last:
            self._kept = None
        for source in sources:
            frames: Iterator[Frame] | None = None
            while True:
                started = time.perf_counter()
                try:
                    frames = source.frames() if frames is None else frames
                    frame = next(frames, None)
                except _FAILURES as error:
                    yield source.name, None, 0.0, error
                    break
                if frame is None:
                    break
                encoded = Encoded(frame)
                if self._keep_last and len(sources) == 1 and not source.is_video:
                    self._kept = encoded
                yield source.name, encoded, 1e3 * (time.perf_counter() - started), None

    def _report(self, name: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        reason = reason if name in reason else f"{name}: {reason}"
        self.failures.append(Failure(name, reason))
        logging.getLogger("samjax").warning("samjax: skipped: %s", reason)

    def _model(self, settings: Arguments) -> Model:
        """The model on the device and in the precision that are asked for."""
        key = (settings.device or None, bool(settings.half))
        if self._placed[0] != key:
            model = self._loaded
            device = find_device(settings.device)
            if device is not None:
                model = dataclasses.replace(model, params=jax.device_put(model.params, device))
            if settings.half:
                model = dataclasses.replace(model, config=model.config.replace(dtype="float16"))
            self._placed = (key, model)
        return self._placed[1]


def _check_size(imgsz: Any, side: int) -> None:
    """imgsz is taken where it is the model's own size, and reported elsewhere."""
    if imgsz is not None and set(np.ravel(np.asarray(imgsz)).tolist()) != {side}:
        logging.getLogger("samjax").warning(
            "samjax: imgsz=%s has no effect: this model sees pictures at %d pixels", imgsz, side
        )
