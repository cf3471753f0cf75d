# Sets up a virtual environment of its own; needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := .venv-demo

.PHONY: test test-all parity lint format bench demo clean

test: $(INSTALLED)  ## everything that runs in minutes
	$(BIN)/python -m pytest -q

test-all: $(INSTALLED)  ## with full-size models and long runs
	$(BIN)/python -m pytest -q -m "slow or not slow"

parity: $(INSTALLED)  ## the README's table of differences from the reference
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/models/test_parity.py \
		tests/test_predictor.py tests/test_automatic_mask_generator.py \
		tests/test_mobile_sam_parity.py

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

demo: $(DEMO)/.installed  ## a picture with the package alone: everything, a click and a box
	$(DEMO)/bin/samjax everything docs/dogs.jpg --points-per-side 16 \
		--output demo/everything --overwrite
	$(DEMO)/bin/samjax predict docs/dogs.jpg --point 690 370 --output demo/click --overwrite
	$(DEMO)/bin/samjax predict docs/dogs.jpg --box 452 186 606 582 --output demo/box --overwrite
	@ls demo/*/dogs/overlay.png demo/*/coco.json

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install -q --disable-pip-version-check -e .
	touch $@

clean:
	rm -rf .venv $(DEMO) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
