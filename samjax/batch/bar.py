"""One progress line for all processes."""

import contextlib
import threading
from collections.abc import Iterator

from tqdm import tqdm

from samjax.batch.hosts import Signs


@contextlib.contextmanager
def bar(total: int, earlier: int, signs: Signs, *, shown: bool) -> Iterator[None]:
    """Shows `earlier` and what all processes have done since, of `total` pictures, while the block
    runs."""
    line = tqdm(total=total, initial=earlier, unit="picture", delay=2, disable=not shown)
    stop = threading.Event()

    def refresh() -> None:
        counts = {**signs.all(), signs.host.rank: signs.counts}.values()
        line.n = min(total, earlier + sum(one.pictures for one in counts))
        line.set_postfix(
            masks=sum(one.masks for one in counts), errors=sum(one.errors for one in counts),
            refresh=False,
        )  # fmt: skip
        line.refresh()

    def show() -> None:
        while not stop.wait(1.0):
            refresh()

    thread = threading.Thread(target=show, name="samjax-bar", daemon=True)
    with line:
        if shown:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if shown:
                thread.join()
                refresh()
