# Nothing but Python and a package index is needed: `make env` builds .venv, every other target uses it.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# With it every process would compile the libraries anew, which are installed without being compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast test-slow test-long check bench format lock clean

help:
	@echo "make env        create $(VENV) with the pinned packages"
	@echo "make demo       run the embedded study, offline, to its report"
	@echo "make check      static checks: format, lint, types, import floors, spelling"
	@echo "make test       static checks and the tests that need no accelerator"
	@echo "make test-fast  the unit tests alone"
	@echo "make test-slow  the slow tests alone"
	@echo "make test-long  what make test leaves out: more of its kind, 5 to 70 seconds each"
	@echo "make bench      speed and memory beside the usual tools; hours on 2 cores without bf16 instructions"
	@echo "make format     rewrite the sources in the one format"
	@echo "make lock       write constraints.txt from $(VENV)"
	@echo "make clean      remove caches and builds; keeps $(VENV) and runs/"

env: $(STAMP)

# torch goes first and alone, so that its exact pin decides which build is taken (a CPU build where the index has one).
# Modules are compiled as they are first imported: most of the 20,000 that come along never are.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: env
	$(BIN)/tuneoff demo

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

test: check
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not gpu and not golden and not long"

test-fast: env
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not gpu and not golden"

test-slow: env
	$(BIN)/pytest -n $(WORKERS) -m "slow and not gpu and not golden"

test-long: env
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "long and not gpu"

bench: env
	$(BIN)/python -m benchmarks.table

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without the local part of a version (+cpu), which other machines do not have, and without Tuneoff itself.
lock:
	$(BIN)/python -m pip freeze --exclude-editable | sed -E '/^#/d; /^tuneoff([ =@]|$$)/d; s/\+[A-Za-z0-9.]+$$//' > constraints.txt
	touch $(STAMP)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
