# The commands of the README. VENV, DEMO and PORT can be set: make test VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
PORT ?= 3000
BIN = $(VENV)/bin
# Uses uv where it is installed, else pip. Set UV= to use pip.
UV ?= $(shell command -v uv)
ifeq ($(UV),)
  INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
  MAKE_VENV = $(PYTHON) -m venv $(VENV)
else
  INSTALL = $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt
  MAKE_VENV = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
endif
# Each process of the suite uses one thread.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --durations 10

.PHONY: help install demo ui test test-system check format constraints clean

help:  ## Print the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/'

install: $(VENV)/.installed  ## Install everything, for development, into .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing everything into $(VENV): some minutes, about 3 GB"
	@test -x $(BIN)/python || $(MAKE_VENV)
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.lean $@

# What the main job, the UI and the training of warm-ups need. `make install` adds the rest.
$(VENV)/.lean: pyproject.toml constraints.txt
	@echo "installing into $(VENV): some minutes, about 2 GB"
	@test -x $(BIN)/python || $(MAKE_VENV)
	$(INSTALL) -e '.[ui,train]'
	@touch $@

demo: $(VENV)/.lean  ## Run the whole pipeline on the embedded corpus and print what was selected
	$(BIN)/curate demo --folder $(DEMO)

ui: $(VENV)/.lean  ## Open the Dagster UI on the demo's instance
	@test -f $(DEMO)/curation.yaml || { echo "no demo yet: run make demo first"; exit 1; }
	$(BIN)/curate ui --config $(DEMO)/curation.yaml --port $(PORT)

test: install  ## Run the default test suite
	$(PYTEST) -n auto --maxprocesses 4 -m 'not system'

# Daemons and clusters mostly wait, so more of them than cores run at once.
test-system: install  ## Run the tests that start other systems: PostgreSQL, Slurm, Ray, browsers, benchmarks
	$(PYTEST) -n 3 -m system

check: install  ## Check format, lint, layers and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: install  ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: install  ## Write the installed versions to constraints.txt
	$(BIN)/python -m tests.constraints > constraints.txt.new && mv constraints.txt.new constraints.txt

clean:  ## Remove the virtual environment, the demo and caches
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis
