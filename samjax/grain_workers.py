"""What grain's worker processes need that grain leaves to others."""

import os
import threading
import time

from absl import flags


def let_grain_read_its_flags() -> None:
    """grain's worker processes look at absl's flags, which only an absl program has parsed."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def end_with_parent(index: int, number: int) -> None:
    """A `worker_init_fn`: a worker whose parent is killed would stay for ever, waiting to be
    asked."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="samjax-parent", daemon=True).start()
