# make demo   raw text to a trained, exported, answering model on a CPU (installs no torch)
# make test   lint, types and the default test suite (installs the development extra)
#
# PYTHON       interpreter to use (3.11 or 3.12); naming one gives it a virtual environment of its own
# TORCH_INDEX  optional package index that has CPU builds of torch, for `make test`

PYTHON ?= python3
TORCH_INDEX ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYVER := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
VENV ?= $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(PYVER))
BIN := $(VENV)/bin
CONSTRAINTS := $(wildcard constraints-$(PYVER).txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(addprefix -c ,$(CONSTRAINTS))

.PHONY: demo test lint clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

demo: $(VENV)/.run-installed
	$(BIN)/lclm pipeline configs/demo.yaml

test: $(VENV)/.dev-installed
	$(MAKE) --no-print-directory lint VENV=$(VENV)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lclm_jax needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: requirements.txt pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed
	$(PIP) $(addprefix --extra-index-url ,$(TORCH_INDEX)) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv-py* .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build src/*.egg-info
