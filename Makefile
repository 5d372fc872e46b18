# `make demo` and `make test` are all a newcomer needs: each sets up what it uses, once.

PYTHON ?= $(shell for candidate in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$candidate && break; done)
BIN := .venv/bin
WORKERS ?= 2
JS := vitlens/widgets/js

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast chromium lint format types widgets widgets-check bench everyday clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv/ready  ## Explain a sample image, offline: figures and numbers in out/demo
	$(BIN)/vitlens demo --out out/demo

# conftest.py says which tests share a worker, and in which order they start.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

test: .venv/ready chromium  ## Run all tests (WORKERS=2 at once)
	$(PYTEST)

test-fast: .venv/ready  ## Run the tests that are quick and need no browser
	$(PYTEST) -m 'not slow and not browser'

# Widgets are tested in Chromium. Without it those tests are skipped, and pytest says so.
chromium:
	@test -n "$$CHROMIUM" \
	|| { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	|| { test "$$(id -u)" = 0 && apt-get update -qq \
	&& apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
	|| echo "There is no Chromium: the widgets will not be tested in a browser."

lint: .venv/ready  ## Check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready  ## Correct the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/ready  ## Check the types
	$(BIN)/mypy

widgets: $(JS)/node_modules/ready  ## Build the widgets' browser code (needs Node.js)
	cd $(JS) && npm run --silent types && npm run --silent build

widgets-check: $(JS)/node_modules/ready
	cd $(JS) && npm run --silent types && npm run --silent check

bench: .venv/ready  ## Time the engines and the atlas, and the diagram in Chromium
	$(BIN)/python -m tests.benchmarks.engines
	$(BIN)/python -m tests.benchmarks.atlas
	$(BIN)/python -m tests.benchmarks.diagram

everyday: .venv/ready-recipe  ## Rebuild the bundled model from public data (hours)
	$(BIN)/python -m recipes.everyday

clean:  ## Remove the environment, caches and outputs
	rm -rf .venv build dist out .pytest_cache .mypy_cache .ruff_cache $(JS)/node_modules
	find vitlens recipes tests -name __pycache__ -prune -exec rm -rf {} +

# Stamp files: set-up runs again only when the requirements change.
.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "vitlens needs Python 3.11 or later; set PYTHON=..."; exit 1; }
	@echo "Setting up .venv, once; PyTorch may take some minutes to download."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

$(JS)/node_modules/ready: $(JS)/package-lock.json
	cd $(JS) && npm ci --silent
	@touch $@

.venv/ready-recipe: .venv/ready
	$(BIN)/python -m pip install --editable '.[dev,recipe]'
	@touch $@
