"""One file for each question; `harness.py` runs them. See README.md."""
