"""Foreign checkpoints to samjax and back. The only place that may import torch, and only when it
reads or writes a torch file."""

from samjax.convert.state_dict import from_state_dict, to_state_dict

__all__ = ["from_state_dict", "to_state_dict"]
