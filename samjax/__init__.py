"""The Segment Anything family in pure JAX.

Names are imported when they are first used, so that `import samjax` and `samjax --help` take no
time. What it does at once is `xla_flags.configure`, which has to come before JAX starts.
"""

import importlib
from typing import TYPE_CHECKING, Any

from samjax import xla_flags

if TYPE_CHECKING:
    from samjax.allocator import tune_allocator
    from samjax.annotate import auto_annotate
    from samjax.automatic_mask_generator import SamAutomaticMaskGenerator
    from samjax.cache import keep_compiled_programs
    from samjax.checkpoint import Model, load, save_checkpoint
    from samjax.models import Sam, SamConfig
    from samjax.predictor import SamPredictor
    from samjax.ranking import rank_by
    from samjax.tiled_mask_generator import TiledMaskGenerator
    from samjax.ultralytics_style import SAM, FastSAM, Predictor

__all__ = [
    "SAM",
    "FastSAM",
    "Model",
    "Predictor",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamConfig",
    "SamPredictor",
    "TiledMaskGenerator",
    "auto_annotate",
    "keep_compiled_programs",
    "load",
    "rank_by",
    "save_checkpoint",
    "tune_allocator",
]
__version__ = "0.1.0"

_ROOMS = {
    "FastSAM": "ultralytics_style",
    "Model": "checkpoint",
    "Predictor": "ultralytics_style",
    "SAM": "ultralytics_style",
    "Sam": "models",
    "SamAutomaticMaskGenerator": "automatic_mask_generator",
    "SamConfig": "models",
    "SamPredictor": "predictor",
    "TiledMaskGenerator": "tiled_mask_generator",
    "auto_annotate": "annotate",
    "keep_compiled_programs": "cache",
    "load": "checkpoint",
    "rank_by": "ranking",
    "save_checkpoint": "checkpoint",
    "tune_allocator": "allocator",
}

xla_flags.configure()


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"samjax.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'samjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
