# The commands of the README. VENV and DEMO can be set: make test VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
PORT ?= 3000
BIN = $(VENV)/bin

.PHONY: help install demo ui test check format clean

help:  ## Say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/'

install: $(VENV)/.installed  ## Make the virtual environment with everything in it

$(VENV)/.installed: pyproject.toml
	@echo "making $(VENV) and installing into it: some minutes, about 2 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: install  ## The whole path on the embedded corpus: what was chosen and why
	$(BIN)/curate demo --folder $(DEMO)

ui: install ## The Dagster UI on the demo's instance
	@test -f $(DEMO)/curation.yaml || { echo "no demo yet: run make demo first"; exit 1; }
	$(BIN)/curate ui --config $(DEMO)/curation.yaml --port $(PORT)

# A file at a time in each of two processes, with one thread each.
test: install  ## The test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: install  ## Formatting, lint, import rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: install  ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the virtual environment, the demo and caches
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis
