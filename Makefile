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

need-root:
	@[ "$$(id -u)" = 0 ] || { echo "This mounts disks and boots a system on them: run it as root." >&2; exit 1; }

demo: need-root setup ## the whole walk on a throwaway ostree host; KEEP=1 leaves it running
	KEEP=$(KEEP) $(PYTHON) -m demo

demo-shell: need-root setup ## a shell in the host that 'make demo KEEP=1' left running
	$(PYTHON) -m demo shell

demo-stop: need-root setup ## end that host and remove it
	$(PYTHON) -m demo stop

lint: setup ## ruff, mypy, import-linter
	$(VENV)/bin/ruff format --no-cache --check daemon tests demo
	$(VENV)/bin/ruff check --no-cache daemon tests demo
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

rights: need-root setup ## who may call what, measured with a real polkitd; see docs/authorisation.md
	$(PYTHON) -m pytest tests/bus/test_rights.py -s -q

# One process more than there are cores: hosts that boot mostly wait.
test: need-root setup ## all tests
	$(PYTHON) -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: need-root setup ## ratios against bootc's way, written to build/bench.json
	$(PYTHON) -m tests.bench

bootc: need-root setup ## bootc's faults, alone and with lashd: the tables of docs/bootc.md, with what their tests came to
	$(PYTHON) -m tests.host.bootc

writers: need-root setup ## lashd, podman, bootc's podman and skopeo write one store at once, 50 rounds
	$(PYTHON) -m tests.bench writers

faults: need-root setup ## faults on booted hosts, many times each, about an hour; RUNS=20 JOBS=2, see docs/faults.md
	$(PYTHON) -m tests.faults --runs $(or $(RUNS),20) --jobs $(or $(JOBS),2)

mutants: need-root setup ## each safeguard taken out in a copy: a test must turn red; JOBS=2
	$(PYTHON) -m tests.faults.mutants --jobs $(or $(JOBS),2)

fuzz: setup ## a million made-up inputs to the parsers of what others wrote, some minutes; INPUTS=1000000 SEED=1
	$(PYTHON) -m tests.fuzz --inputs $(or $(INPUTS),1000000) --seed $(or $(SEED),1)

hostile: need-root setup ## 10,000 bad calls and 200 clients that hang, on both buses and libraries; CALLS=10000
	$(PYTHON) -m tests.hostile --calls $(or $(CALLS),10000)

.PHONY: help setup need-root demo demo-shell demo-stop lint rights test bench bootc writers faults mutants fuzz hostile
