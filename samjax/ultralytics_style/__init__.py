"""The interface that people know from Ultralytics: `SAM`, `FastSAM`, `Predictor` and
`Results`.

Written from Ultralytics' documentation. docs/ultralytics.md says what differs, and why.
"""

from samjax.ultralytics_style.fast_sam import FastSAM
from samjax.ultralytics_style.loop import Failure
from samjax.ultralytics_style.model import SAM
from samjax.ultralytics_style.outcome import Boxes, Masks
from samjax.ultralytics_style.predictor import Predictor
from samjax.ultralytics_style.results import Results

__all__ = ["SAM", "Boxes", "Failure", "FastSAM", "Masks", "Predictor", "Results"]
