"""Every choice of a training run that shapes the compiled step."""

import dataclasses
from typing import Any, Literal, get_args

IouMasks = Literal["all", "chosen"]
Decay = Literal["step", "cosine", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults are the paper's (Segment Anything, appendix A) except where a line says otherwise.

    Lengths are in pixels of the model's input. Raises `ValueError` for values without a meaning.
    """

    trained: str | tuple[str, ...] = "all"
    """A name in `samjax.train.parameters.PARTS`, or prefixes of dotted parameter names."""
    lora_rank: int = 4
    lora_alpha: float = 4.0
    """Used where `trained` names LoRA; the paper has none."""

    first_point_probability: float = 0.5
    num_points: int = 8
    refine_within: int = 1
    """Iterations without a new point at random places among those with one."""
    refine_at_end: int = 1
    box_noise: float = 0.1
    """Standard deviation of a box coordinate, relative to the box's side along that axis."""
    box_noise_limit: float = 20.0

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    edge_weight: float = 0.0
    """Of `edge_loss`, which makes outlines smooth and grounds whole. Not in the paper."""
    outline_weight: float = 0.0
    """Of `outline_loss`, which counts the pixels near the outline alone. Not in the paper."""
    iou_weight: float = 1.0
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    iou_masks: IouMasks = "all"
    """Which of an ambiguous prompt's masks train the IoU head: all three, or the best alone."""

    learning_rate: float = 8e-4
    warmup_steps: int = 250
    total_steps: int = 90_000
    decay: Decay = "step"
    decay_at: tuple[float, ...] = (60_000 / 90_000, 86_666 / 90_000)
    """Where "step" divides the rate by ten, as parts of `total_steps`."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.1
    layer_decay: float = 0.8
    """The rate's factor from each block of a ViT to the one before it; 1 turns it off."""
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()
    """Further factors by prefix of a dotted name; of several that fit the longest counts."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 turns it off. Not in the paper."""
    accumulate: int = 1
    """Parts into which a batch is cut, whose gradients are added up before the one update."""
    ema_decay: float = 0.0
    """Of the exponential moving average of what is trained; 0 keeps none. Not in the paper."""

    def __post_init__(self):
        counts = (self.num_points, self.refine_within, self.refine_at_end)
        _check(min(counts) >= 0, "num_points, refine_within and refine_at_end", ">= 0")
        _check(0 <= self.first_point_probability <= 1, "first_point_probability", "in [0, 1]")
        _check(self.accumulate >= 1 and self.lora_rank >= 1, "accumulate and lora_rank", ">= 1")
        _check(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")
        _check(self.total_steps >= 1 and self.warmup_steps >= 0, "total_steps", ">= 1")
        _check(0 < self.layer_decay <= 1, "layer_decay", "in (0, 1]")
        _check(self.clip_norm >= 0, "clip_norm", ">= 0")
        _check(self.iou_masks in get_args(IouMasks), "iou_masks", f"of {get_args(IouMasks)}")
        _check(self.decay in get_args(Decay), "decay", f"of {get_args(Decay)}")

    @property
    def iterations(self) -> int:
        """Times that the decoder runs on every object in a step."""
        return 1 + self.num_points + self.refine_within + self.refine_at_end

    @property
    def num_tokens(self) -> int:
        """T: two for the first prompt (box corners, or a point and NOT_A_POINT), then points."""
        return 2 + self.num_points

    def replace(self, **changes: Any) -> "TrainConfig":
        return dataclasses.replace(self, **changes)


def _check(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} has to be {wanted}.")
