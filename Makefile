# Sets up a virtual environment of its own; needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH := .venv/.installed-bench
DEMO := .venv-demo
PARALLEL := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: test test-all parity lint format bench demo clean

test: $(INSTALLED)  ## everything that runs in minutes
	$(PARALLEL) --quick
	$(PARALLEL) -m "optimized and not slow"

test-all: $(INSTALLED)  ## with full-size models and long runs
	$(BIN)/python -m pytest -q -m "slow or not slow"

parity: $(INSTALLED)  ## the README's table of differences from the reference
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/models/test_parity.py \
		tests/test_predictor.py tests/test_automatic_mask_generator.py \
		tests/test_mobile_sam_parity.py 'tests/models/test_hq.py::test_at_full_size[vit_t]'

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)  ## the figures in the README, and the peers: about an hour, and 10 GB the first time
	$(BIN)/python -m benchmarks.image_encoder --contenders all
	$(BIN)/python -m benchmarks.one_click --contenders all
	$(BIN)/python -m benchmarks.everything
	$(BIN)/python -m benchmarks.everything docs/dogs.jpg --model nano
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.scaling

demo: $(DEMO)/.installed  ## a picture with the package alone: everything, a click and a box
	$(DEMO)/bin/samjax everything docs/dogs.jpg --output demo/everything --overwrite
	$(DEMO)/bin/samjax predict docs/dogs.jpg --point 690 370 --output demo/click --overwrite
	$(DEMO)/bin/samjax predict docs/dogs.jpg --box 452 186 606 582 --output demo/box --overwrite
	@ls demo/*/dogs/overlay.png demo/*/coco.json

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

$(BENCH): $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	touch $@

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install -q --disable-pip-version-check -e .
	touch $@

clean:
	rm -rf .venv $(DEMO) benchmarks/.environments demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
