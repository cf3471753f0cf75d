"""From annotated pictures to batches for training and for validation.

The stream of examples is one for all processes: shuffled anew in each epoch, augmented by a seed
that comes from the position in the stream, then dealt out, process `i` of `n` taking every n-th
example. So no example depends on how many workers load it.
"""

import itertools
import warnings
from collections.abc import Sequence

import grain
import jax
import numpy as np

from samjax.datasets import BadRecordError, Finding, Record, Source
from samjax.grain_workers import end_with_parent, let_grain_read_its_flags
from samjax.train.embeddings import EmbeddingCache
from samjax.train.examples import (
    Example,
    ExampleSettings,
    count,
    empty_example,
    make_example,
    settings_for,
)

__all__ = ["Example", "ExampleSettings", "LoadExample", "make_loader", "settings_for"]

MAX_REPLACEMENTS = 50
"""Records in a row that may be bad; more, and something is wrong with all of them."""


class LoadExample:
    """Makes the example of a (source, index) pair, of another record where that one is bad.

    With `replace` a bad record's place is taken by one drawn from the same source; without, by an
    example that has no valid mask. Either way it is counted in `left_out`. With `embeddings` an
    example has the picture's embedding from there in place of the picture. Raises ValueError after
    `MAX_REPLACEMENTS` bad records in a row.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: ExampleSettings,
        *,
        replace: bool,
        embeddings: EmbeddingCache | None = None,
    ):
        self.sources, self.settings, self.replace = tuple(sources), settings, replace
        self.embeddings = embeddings

    def __call__(self, key: tuple[int, int], rng: np.random.Generator) -> Example:
        number, index = key
        source = self.sources[number]
        findings: list[Finding] = []
        for _ in range(MAX_REPLACEMENTS):
            try:
                record = source.read(index)
                findings += record.left_out
                other = self._other(source, rng)
                example = make_example(record, rng, self.settings, other=other)
                if self.embeddings is not None:
                    embedding = self.embeddings.read(record.path)
                    example = example._replace(image=None, image_embedding=embedding)
                return example._replace(left_out=example.left_out + count(findings))
            except BadRecordError as error:
                findings.append(Finding(error.reason, error.text))
                warnings.warn(f"left out: {error}", stacklevel=2)
                if not self.replace:
                    return empty_example(findings, self.settings)
                index = int(rng.integers(len(source)))
        raise ValueError(
            f"{MAX_REPLACEMENTS} records of {source.name} in a row cannot be used, the last one: "
            f"{findings[-1].reason}: {findings[-1].text}"
        )

    def _other(self, source: Source, rng: np.random.Generator) -> Record | None:
        augmentation = self.settings.augmentation
        if augmentation is None or not augmentation.copy_paste:
            return None
        try:
            return source.read(int(rng.integers(len(source))))
        except BadRecordError:
            return None


def make_loader(
    sources: Sequence[Source],
    settings: ExampleSettings,
    *,
    batch_size: int,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    shuffle: bool = True,
    num_epochs: int | None = None,
    replace_bad: bool = True,
    drop_remainder: bool = False,
    embeddings: EmbeddingCache | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    num_workers: int = 0,
    num_threads: int = 2,
) -> grain.IterDataset:
    """Batches of `Example`, `batch_size` of them for this process.

    Without `weights` each picture comes once in an epoch; with them, sources are mixed in these
    proportions without end, each shuffled and repeated by itself. `num_epochs` None is without end.
    `embeddings` puts kept image embeddings in the place of pictures. For validation:
    `shuffle=False, num_epochs=1, replace_bad=False`, settings without augmentation.
    `process_index` and `process_count` are JAX's unless given. `num_workers` are processes, 0 for
    `num_threads` threads of this one; neither changes what is loaded.

    The iterator's `get_state()` is a dict of numbers, for JSON; `set_state` continues after it
    with the same examples, given the same sources, settings and arguments.

    Raises ValueError for sources, weights or numbers that do not fit each other.
    """
    if not sources:
        raise ValueError("there is no source of pictures")
    if batch_size < 1:
        raise ValueError(f"batch_size has to be at least 1, not {batch_size}")
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if not 0 <= process_index < process_count:
        raise ValueError(f"there is no process {process_index} among {process_count}")
    if embeddings is not None and (settings.augmentation is not None or not replace_bad):
        raise ValueError(
            "embeddings are of pictures as they are: no augmentation, replace_bad=True"
        )
    load = LoadExample(sources, settings, replace=replace_bad, embeddings=embeddings)
    keys = _keys(sources, weights, seed=seed, shuffle=shuffle, num_epochs=num_epochs)
    batches = keys.random_map(load, seed=seed).batch(batch_size, drop_remainder=drop_remainder)
    batches = batches[process_index::process_count]
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, 1))
    loader = batches.to_iter_dataset(read)
    if num_workers:
        let_grain_read_its_flags()
        loader = loader.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=end_with_parent
        )
    return loader


def _keys(
    sources: Sequence[Source],
    weights: Sequence[float] | None,
    *,
    seed: int,
    shuffle: bool,
    num_epochs: int | None,
) -> grain.MapDataset:
    """(source, index) pairs in the order in which all processes together take them."""
    keys = [[(number, i) for i in range(len(source))] for number, source in enumerate(sources)]
    if weights is None:
        return _repeated(list(itertools.chain(*keys)), seed, shuffle, num_epochs)
    if len(weights) != len(sources) or not all(weight > 0 for weight in weights):
        raise ValueError(f"{len(sources)} sources need as many weights above 0, not {weights}")
    if num_epochs is not None:
        raise ValueError("a mixture by weights has no epochs; leave num_epochs or weights out")
    parts = [_repeated(part, seed + i, shuffle, None) for i, part in enumerate(keys)]
    return grain.MapDataset.mix(parts, weights)


def _repeated(
    keys: list[tuple[int, int]], seed: int, shuffle: bool, num_epochs: int | None
) -> grain.MapDataset:
    dataset = grain.MapDataset.source(keys)
    return (dataset.shuffle(seed=seed) if shuffle else dataset).repeat(num_epochs)
