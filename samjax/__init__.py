"""The Segment Anything family in pure JAX."""

from samjax import xla_flags
from samjax.automatic_mask_generator import SamAutomaticMaskGenerator
from samjax.checkpoint import Model, load, save_checkpoint
from samjax.models import Sam, SamConfig
from samjax.predictor import SamPredictor

__all__ = [
    "Model",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamConfig",
    "SamPredictor",
    "load",
    "save_checkpoint",
]
__version__ = "0.1.0"

xla_flags.configure()
