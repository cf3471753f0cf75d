# Sets up a virtual environment of its own; needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: test test-all parity lint format bench clean

test: $(INSTALLED)  ## everything that runs in minutes
	$(BIN)/python -m pytest -q

test-all: $(INSTALLED)  ## with full-size models and long runs
	$(BIN)/python -m pytest -q -m "slow or not slow"

parity: $(INSTALLED)  ## the README's table of differences from the reference
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/models/test_parity.py \
		tests/test_predictor.py tests/test_automatic_mask_generator.py

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## the figures in the README
	$(BIN)/python -m benchmarks.image_encoder
	$(BIN)/python -m benchmarks.everything

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
