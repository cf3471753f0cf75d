"""A callable for other people's pipelines: a stage of Ray Data, of Apache Beam, of anything that
maps a function over batches."""

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samjax.batch.items import Item
from samjax.batch.reading import Read
from samjax.batch.shards import Result
from samjax.batch.tasks import MODES, Task, outcomes
from samjax.checkpoint import Model, load
from samjax.failures import FAILURES, reason
from samjax.images import decode_image, read_image
from samjax.model import Model as _Model
from samjax.models.config import Precision

_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _load(model: Any, precision: Precision | None) -> Model:
    """Kept for the next copy of a callable that comes to this process: Beam makes many."""
    return load(model, precision=precision)


class Segmenter:
    """Segments everything in batches of pictures; a model is loaded once for each process.

    Made with names and numbers alone, it goes through pickle to other processes, and loads the
    model there when it is first called. `model` and `precision` are what `samjax.load` takes,
    `generator` are arguments of `SamAutomaticMaskGenerator`; mode "embeddings" gives embeddings
    instead of masks.

    Called with a batch as Ray Data has it, a dict of columns in which `image` are arrays (H, W, 3)
    uint8, or `bytes` picture files in memory, or `path` their paths, it returns the same dict with
    `annotations`, for each picture the JSON text of the list of the generator's records, with
    compressed run lengths (`embeddings`, float32 arrays, in that mode), and `error`, what went
    wrong with it or "". Raises `ValueError` for a batch without any of these columns.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        mode: str = "everything",
        precision: Precision | None = None,
        **generator: Any,
    ):
        if mode not in (MODES[0], MODES[-1]):
            raise ValueError(f"mode is {mode!r}; use {MODES[0]!r} or {MODES[-1]!r}.")
        if isinstance(model, _Model):
            raise TypeError("model is a Model; give its path or name, which each process loads.")
        self.model, self.precision = model, precision
        self.task = Task(mode, dict(generator), None, 1, False)
        self._loaded: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._loaded is None:
            with _loading:
                self._loaded = _load(self.model, self.precision)
        reads = self._read(batch)
        done: list[Result | None] = [None] * len(reads)
        errors = [read.error or "" for read in reads]
        good = [[read] for read in reads if read.error is None]
        for read, one in outcomes(self.task, self._loaded, good):
            if isinstance(one, Result):
                done[read.number] = one
            elif isinstance(one, FAILURES):
                errors[read.number] = reason(read.item.key, one)
            else:
                raise one
        added: dict[str, Any] = {"error": np.array(errors, object)}
        if self.task.mode == "everything":
            texts = ["[]" if one is None else json.dumps(one.records) for one in done]
            added["annotations"] = np.array(texts, object)
        else:
            column = np.empty(len(done), object)
            for i, result in enumerate(done):
                column[i] = None if result is None else result.embeddings["image_embeddings"]
            added["embeddings"] = column
        return {**batch, **added}

    def _read(self, batch: Mapping[str, Any]) -> list[Read]:
        name = next((name for name in ("image", "bytes", "path") if name in batch), None)
        if name is None:
            raise ValueError(
                f"the batch has the columns {', '.join(batch)}; expected image, bytes or path."
            )
        values: Sequence[Any] = batch[name]
        paths = batch.get("path", [f"picture {i}" for i in range(len(values))])
        reads = []
        for i, (value, path) in enumerate(zip(values, paths, strict=True)):
            item = Item(str(path), str(path))
            try:
                image = (
                    decode_image(bytes(value), name=item.key) if name == "bytes"
                    else read_image(np.asarray(value) if name == "image" else str(value))
                )  # fmt: skip
                reads.append(Read(i, item, image, None))
            except Exception as error:
                reads.append(Read(i, item, None, reason(item.key, error)))
        return reads
