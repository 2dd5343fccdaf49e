# Each target is complete by itself on a fresh clone: it makes `.venv` first, with the pinned packages.
# PYTHON=/path/to/python chooses the interpreter; any from 3.11 on will do.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo keywords test check bench figures peers clean

help:
	@echo 'make demo    compress two real networks on real data and run one on a fleet of twenty devices; in demo-out/'
	@echo 'make keywords  train, prune and compress a keyword spotter under a budget; keywords-out/'
	@echo 'make test    lint, types, import direction and every test: what CI runs'
	@echo 'make check   the same without the tests that run whole pipelines'
	@echo 'make bench   every hot path beside a fixed reference: what moved since the results were stored; 5 minutes'
	@echo 'make figures the long measurements in benchmarks/ that need no peers'
	@echo 'make peers   accuracy, size, latency and cost beside other quantizers, each in an environment of its own'
	@echo 'make clean   remove what these targets made'

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo --out demo-out

keywords: $(INSTALLED)
	$(BIN)/python -m examples.keywords --out keywords-out

test: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

check: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check -m 'not slow'

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.guard

figures: $(INSTALLED)
	$(BIN)/python -m benchmarks.resnet20_cifar10
	$(BIN)/python -m benchmarks.without_data
	$(BIN)/python -m benchmarks.whole_command

peers: $(INSTALLED)
	$(BIN)/python -m benchmarks.peers

clean:
	rm -rf $(VENV) demo-out keywords-out .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks

# The stamp is newer than the files that decide what is installed, so a second run installs nothing.
$(INSTALLED): pyproject.toml runtime/pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'edgekit needs Python 3.11 or newer: install it, or give PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ./runtime -e '.[all,dev]'
	@touch $@
