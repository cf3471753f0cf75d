"""Training: the simulated prompts, losses, optimizer and the one compiled step.

Names are imported from their files, so that a run without training needs no optax.
"""
