# The two commands of the README (demo, test) and the habits around them. Everything runs from .venv in this folder.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-all check format clean

demo: $(VENV)/.ready  ## the whole pipeline on built-in data, ending with the report's path
	$(PY) -m distillkit demo

test: $(VENV)/.ready  ## the tests that CI runs
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test-all: $(VENV)/.ready  ## also the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "slow or not slow"

check: $(VENV)/.ready  ## style, types and import directions
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p distillkit
	$(VENV)/bin/lint-imports

format: $(VENV)/.ready
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# torch goes first and by itself: what it brings (CPU or CUDA) is then left alone by everything after it.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_FLAGS) $(TORCH)
	$(PY) -m pip install $(PIP_FLAGS) --editable '.[demo,serve,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
