"""`Predictor`: prompts on a picture that is set, or on any number of pictures."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import samjax
from samjax.checkpoint import Model
from samjax.devices import find_device
from samjax.ultralytics_style.arguments import Arguments
from samjax.ultralytics_style.finding import (
    Encoded,
    Found,
    find_everything,
    find_objects,
    make_generator,
    to_results,
)
from samjax.ultralytics_style.loop import Failure, PictureLoop, one_picture
from samjax.ultralytics_style.objects import read_objects
from samjax.ultralytics_style.results import Results
from samjax.ultralytics_style.sources import Frame

DEFAULT_MODEL = "sam_b.pt"


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
        self._loop = PictureLoop(keep_last=keep_last)

    @property
    def failures(self) -> list[Failure]:
        """Pictures of the last call that could not be done."""
        return self._loop.failures

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
        encoded = one_picture(image)
        encoded.predictor(self._model(self.arguments))
        self._loop.kept = encoded

    def reset_image(self) -> None:
        """Forgets the picture."""
        self._loop.kept = None

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
        sources = self._loop.sources(source, settings)

        def find(encoded: Encoded) -> Found:
            if objects is None:
                return find_everything(generator, encoded)
            return find_objects(encoded.predictor(model), objects, multimask_output)

        def conclude(frame: Frame, found: Found) -> Results:
            return to_results(frame, found, settings)

        found = self._loop.run(sources, find, conclude, settings)
        return found if stream else list(found)

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
