# make demo: the main job on real data.   make test: every check.   Each makes the environment .venv first where it is missing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint
.DEFAULT_GOAL := demo

# One thread for every method, so that times compare and tests that run side by side don't fight for the cores.
export OMP_NUM_THREADS := 1

demo: $(INSTALLED)
	@$(BIN)/python examples/demo.py

test: lint
	$(BIN)/pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Once for each change of these two files.
$(INSTALLED): setup.cfg constraints.txt
	@echo 'setting up .venv, once'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@
