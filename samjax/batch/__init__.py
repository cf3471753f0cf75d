"""Large collections of pictures on all devices of any number of hosts."""

from samjax.batch.job import Summary, run
from samjax.batch.segmenter import Segmenter

__all__ = ["Segmenter", "Summary", "run"]
