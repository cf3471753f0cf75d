"""The interface that people know from Ultralytics: `SAM`, `Predictor` and `Results`.

Written from Ultralytics' documentation. docs/ultralytics.md says what differs, and why.
"""

from samjax.ultralytics_style.model import SAM
from samjax.ultralytics_style.outcome import Boxes, Masks
from samjax.ultralytics_style.predictor import Failure, Predictor
from samjax.ultralytics_style.results import Results

__all__ = ["SAM", "Boxes", "Failure", "Masks", "Predictor", "Results"]
