# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets; `make demo` and `make test` set up everything they need on a fresh Debian 12 as root.

.DEFAULT_GOAL := help
VENV := .venv
PYTHON := $(VENV)/bin/python

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(VENV)/ready: pyproject.toml packaging/setup
	packaging/setup $(VENV)

setup: $(VENV)/ready ## install Debian packages and the virtual environment

demo: setup ## the whole walk on a throwaway ostree host; KEEP=1 leaves it running
	KEEP=$(KEEP) $(PYTHON) -m demo

lint: setup ## ruff, mypy, import-linter
	$(VENV)/bin/ruff format --check daemon tests demo
	$(VENV)/bin/ruff check daemon tests demo
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: setup ## all tests
	$(PYTHON) -m pytest

bench: setup ## ratios against bootc's way, written to build/bench.json
	$(PYTHON) -m tests.bench

.PHONY: help setup demo lint test bench
