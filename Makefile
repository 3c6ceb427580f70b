# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files of tests that run at a time.
AT_A_TIME ?= 2
PYTEST := $(BIN)/python -m pytest -n $(AT_A_TIME) --dist loadfile
# Not compiled, which takes as long as all the rest: Python does it for what is imported.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: help demo test test-slow test-all torture lint docs format clean

help:
	@echo "make demo       the whole workflow on images that come with samtl: embed, fit two heads, print their scores"
	@echo "make test       the fast tests: no network, no weights, no GPU"
	@echo "make test-slow  the slow tests"
	@echo "make torture    kill passes and fail disks at every system call; takes hours"
	@echo "make lint       ruff and mypy --strict"
	@echo "make docs       build the documentation into build/site"
	@echo "make format     reformat the sources with ruff"
	@echo "make clean      remove the environment and caches; stores and runs stay"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "samtl needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "making $(VENV) failed; on Debian: apt install python3-venv" >&2; exit 2; }
# The pip that comes with Python 3.11 takes three times as long to find what fits.
	@$(INSTALL) --upgrade pip

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev,docs]'
	@touch $(VENV)/installed $@

demo: $(VENV)/installed
	$(BIN)/samtl demo

test: $(VENV)/installed-dev
	$(PYTEST)

# In the order of names: by number of tests, files with few long tests would come last.
test-slow: $(VENV)/installed-dev
	$(PYTEST) --no-loadscope-reorder -m slow

test-all: $(VENV)/installed-dev
	$(PYTEST) -m "slow or not slow"

torture: $(VENV)/installed-dev
	SAMTL_TORTURE=1 $(PYTEST) -o faulthandler_timeout=0 -m "slow or not slow" tests/test_torture_*.py tests/test_encoders_attention.py tests/test_sweep_api.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
