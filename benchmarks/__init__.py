"""One file for each question; `harness.py` runs them. See README.md."""

import os

XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
"""As the user has set it; samjax, where it is imported here, adds its own."""
