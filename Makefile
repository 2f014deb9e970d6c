PYTHON ?= python3
VENV = .venv

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PIP = $(BIN)/python -m pip --disable-pip-version-check
PYTEST = $(BIN)/python -m pytest
FAST = not slow and not ray and not soak

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: help setup demo test soak check fast format lint types clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

# A virtual environment whose pip runs is kept and brought up to date; anything else is remade.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) must be Python 3.11 or newer; name another: make PYTHON=..." >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing requirements.lock into $(VENV); the first time takes some minutes"
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP) ## make .venv and install the locked packages and this one

demo: setup ## run the whole pipeline on a small drawn data set
	$(BIN)/python jobs/demo.py

# The Ray tests run one by one: two clusters on one machine would fight over its cores.
test: setup ## run every test but the long campaigns
	@status=0; \
	echo "== tests without Ray, two at a time"; \
	OMP_NUM_THREADS=1 $(PYTEST) -m "not ray and not soak" -n 2 --dist loadscope --durations=10 || status=1; \
	echo "== tests with Ray, one at a time"; \
	$(PYTEST) -m "ray and not soak" --durations=10 || status=1; \
	exit $$status

soak: setup ## run the long campaigns, one at a time
	OMP_NUM_THREADS=1 $(PYTEST) -m soak --timeout=1800 --durations=10

check: lint types fast ## lint, types and the fast tests; run before each commit

fast: setup ## run the fast tests only
	OMP_NUM_THREADS=1 $(PYTEST) -m "$(FAST)" -n 2 --dist loadscope

format: setup ## rewrite the sources in the house format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lint: setup ## check the format and the lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## check the types
	$(BIN)/mypy

clean: ## delete caches and build leftovers; keeps .venv and runs
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./.git -o -path ./runs \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
