"""From sources to results, picture by picture, with what went wrong on the way."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from samjax.failures import FAILURES, reason
from samjax.ultralytics_style.arguments import Arguments
from samjax.ultralytics_style.files import SavedRun
from samjax.ultralytics_style.finding import Encoded
from samjax.ultralytics_style.results import Results
from samjax.ultralytics_style.sources import Frame, Source, list_sources

T = TypeVar("T")


class Failure(NamedTuple):
    """A picture that could not be done, and why."""

    path: str
    reason: str


class PictureLoop:
    """What `Predictor` and `FastSAM` share.

    Args:
      keep_last: a picture that was given alone is kept for calls without a source.

    Attributes:
      kept: the picture that calls without a source are about, None for none.
      failures: pictures of the last call that could not be done.
    """

    def __init__(self, *, keep_last: bool):
        self.kept: Encoded | None = None
        self.failures: list[Failure] = []
        self._keep_last = keep_last

    def sources(self, source: Any, settings: Arguments) -> list[Source] | None:
        """None for the picture that is kept. Raises `RuntimeError` where there is none, and what
        `list_sources` raises."""
        if source is not None:
            return list_sources(source, vid_stride=settings.vid_stride)
        if self.kept is None:
            raise RuntimeError(
                "there is no source, and no picture is set: give source=..., or call "
                "set_image(picture) first."
            )
        return None

    def run(
        self,
        sources: Sequence[Source] | None,
        find: Callable[[Encoded], T],
        conclude: Callable[[Frame, T], Results],
        settings: Arguments,
    ) -> Iterator[Results]:
        """What `conclude` makes of what is found in each picture, as it is asked for.

        Raises what a single picture raises, and `ValueError` when none of several could be done.
        """
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
            except FAILURES as failure:
                if not several:
                    raise
                self._report(name, failure)
                continue
            inferred = time.perf_counter()
            result = conclude(encoded.frame, found)
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
            assert self.kept is not None
            yield self.kept.frame.path, self.kept, 0.0, None
            return
        if self._keep_last:
            self.kept = None
        for source in sources:
            frames: Iterator[Frame] | None = None
            while True:
                started = time.perf_counter()
                try:
                    frames = source.frames() if frames is None else frames
                    frame = next(frames, None)
                except FAILURES as error:
                    yield source.name, None, 0.0, error
                    break
                if frame is None:
                    break
                encoded = Encoded(frame)
                if self._keep_last and len(sources) == 1 and not source.is_video:
                    self.kept = encoded
                yield source.name, encoded, 1e3 * (time.perf_counter() - started), None

    def _report(self, name: str, error: Exception) -> None:
        self.failures.append(Failure(name, reason(name, error)))
        logging.getLogger("samjax").warning("samjax: skipped: %s", self.failures[-1].reason)


def one_picture(image: Any) -> Encoded:
    """The picture in anything that holds one. Raises `ValueError` for several or a video."""
    sources = list_sources(image)
    if len(sources) != 1 or sources[0].is_video:
        what = "a video" if sources[0].is_video else f"{len(sources)} pictures"
        raise ValueError(f"set_image takes one picture, and this is {what}.")
    return Encoded(next(sources[0].frames()))
