# The commands of this project: `make help`. Nothing is kept in this tree; what is built lies in
# ${XDG_CACHE_HOME:-~/.cache}/medianest-operator, under a name that holds its content.
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/medianest-operator
VENV := $(CACHE)/venv-$(shell sha256sum requirements-dev.lock | cut -c1-12)
PYTHON := $(VENV)/bin/python
DEMO_CLUSTER := demo
# What to give to pytest, for instance: make e2e ARGS='-k failover -x'
ARGS :=

# A Go that `make` had to fetch goes before the machine's, which was too old then.
export PATH := $(VENV)/bin:$(CACHE)/go/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/operator:$(CURDIR)/tests:$(CURDIR)/tools
# Some machines' environment forbids it: then each of some thousand processes compiles the standard library again.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CACHE)/pycache
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
PYTEST := $(PYTHON) -m pytest -o cache_dir=$(CACHE)/pytest

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

##### The two commands

.PHONY: demo demo-down kubeconfig
demo: $(VENV)/ready ## A MediaNestDatabase becomes Ready on a real Kubernetes, before your eyes.
	@$(PYTHON) tests/demo.py up

demo-down: $(VENV)/ready ## Remove all that `make demo` made; what was built stays in the cache.
	@$(PYTHON) tests/demo.py down

kubeconfig: $(VENV)/ready ## Print the path of the demo's kubeconfig (make -s kubeconfig).
	@$(PYTHON) tests/demo.py kubeconfig

.PHONY: test
test: $(VENV)/ready ## Everything: lint, generated files, unit, integration, e2e on a real Kubernetes.
	@$(PYTHON) tests/suite.py

##### One by one

.PHONY: lint generated unit integration e2e soak bench
lint: $(VENV)/ready ## ruff, its formatter, mypy --strict.
	@$(PYTHON) tests/suite.py lint

generated: $(VENV)/ready ## Whether the generated files are what their sources make.
	@$(PYTHON) tests/suite.py generated

unit: $(VENV)/ready ## Tests of pure code; seconds.
	@$(PYTEST) tests/unit $(ARGS)

integration: $(VENV)/ready ## Tests on a PostgreSQL 15 that they start themselves.
	@$(PYTHON) tests/prepare.py integration
	@$(PYTEST) tests/integration $(ARGS)

e2e: $(VENV)/ready ## Tests on a real Kubernetes; MEDIANEST_KEEP=1 leaves it running.
	@$(PYTHON) tests/prepare.py e2e
	@$(PYTEST) tests/e2e $(ARGS)

soak: $(VENV)/ready ## The tests with random moments, many times over; hours.
	@$(PYTHON) tests/prepare.py integration
	@$(PYTHON) tests/prepare.py e2e
	@MEDIANEST_SOAK=1 $(PYTEST) tests/integration/test_migration_kills.py $(ARGS)
	@MEDIANEST_SOAK=1 $(PYTEST) tests/integration/test_migration_differential.py -n 2 $(ARGS); ended=$$?; \
	 $(PYTHON) -m integration.differential sum; exit $$ended
	@MEDIANEST_SOAK=1 $(PYTEST) tests/integration/test_loop.py -k overloaded $(ARGS)
	@MEDIANEST_SOAK=1 $(PYTEST) tests/integration/test_api_faults.py $(ARGS)
	@MEDIANEST_SOAK=1 $(PYTEST) tests/e2e -k "killed" $(ARGS)

bench: $(VENV)/ready ## The benchmarks, as a table.
	@$(PYTHON) tests/prepare.py e2e
	@$(PYTHON) benchmarks/run.py $(ARGS)

##### What is made

.PHONY: manifests images lock
manifests: $(VENV)/ready ## Write the generated files: crds/, manifests/, the chart's definition, docs/reference.md.
	@$(PYTHON) tools/render.py
	@$(PYTHON) tools/reference.py

images: $(VENV)/ready ## Build both images, unless nothing in them changed.
	@$(PYTHON) tests/prepare.py images

lock: $(VENV)/ready ## Write the lock files anew from pyproject.toml, at the newest versions that it allows.
	@sh tools/lock.sh

##### The machine

.PHONY: shell clean-cache
shell: $(VENV)/ready ## A shell with the tools on its PATH and KUBECONFIG set to the demo's cluster.
	@KUBECONFIG=$$($(PYTHON) tests/demo.py kubeconfig) $${SHELL:-/bin/sh} || true

clean-cache: ## Remove all local clusters and everything that was built or downloaded.
	@if [ -x $(PYTHON) ] && [ "$$(id -u)" = 0 ]; then $(PYTHON) -m cluster down --all; fi
	rm -rf $(CACHE)

$(VENV)/ready:
	@sh tools/venv.sh $(VENV) requirements-dev.lock
