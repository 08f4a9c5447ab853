# Slimrank's targets: what a person types and what CI runs. `make help` lists them.
#
#   PYTHON           the interpreter for the virtual environments (3.11 or newer)
#   TORCH_INDEX_URL  a package index to take torch alone from, e.g. one with CPU-only builds
#   ARGS             handed on to pytest, the demo, the service or the load test
#   WORKERS          processes that share the tests (2); 0: this one, as --pdb needs it
#   ONCE=1           `make demo` stops after the answer
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX_URL ?=
ARGS ?=
WORKERS ?= 2

VENV := .venv
SERVE_VENV := .venv-serve
PY := $(VENV)/bin/python
# setuptools warns at length of packages that lie beside each other, as these do on purpose.
QUIETLY := PYTHONWARNINGS=ignore
PIP := $(QUIETLY) $(PY) -m pip --disable-pip-version-check
SERVE_PY := $(SERVE_VENV)/bin/python
RUN := $(VENV)/.run-stamp
DEV := $(VENV)/.dev-stamp
SERVE := $(SERVE_VENV)/.serve-stamp
LOOPS := setup.py service/_kernels.c service/_ids.h service/_reading.h
PINS := pyproject.toml constraints/dev.txt $(LOOPS)
BUILD := build

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

# --- what people run -------------------------------------------------------------------------

.PHONY: demo
demo: $(RUN)  ## MovieLens 100k: train, slim, publish, serve, ask, compare (ONCE=1 stops there)
	$(PY) -m loadtest.demo $(if $(ONCE),--once) $(ARGS)

.PHONY: serve
serve: $(RUN)  ## serve what the store holds (settings: SLIMRANK_*, docs/operations.md)
	$(PY) -m service $(ARGS)

.PHONY: loadtest
loadtest: $(RUN)  ## dense, slim and int8 behind the same service: times by arrival rate, knee, plots
	$(PY) -m loadtest.compare $(ARGS)

BUNDLES := $(BUILD)/peers/bundles

.PHONY: bench
bench: $(RUN)  ## where a ranking call's time goes: part by part, and over HTTP beside its floor
	test -f $(BUNDLES)/done || $(PY) -m benchmarks.peers.bundles $(BUNDLES)
	test -d $(BUNDLES)/store/sessions || $(PY) -m compress run benchmarks/sessions.toml \
	    -o runs=$(BUNDLES)/runs -o publish.store=$(BUNDLES)/store
	$(PY) -m benchmarks.rank_parts $(BUNDLES)/store criteo-shape@int8 sessions@coded
	$(PY) -m benchmarks.rank_http $(BUNDLES)/store criteo-shape@int8 sessions@coded \
	    --stock criteo-shape@dense --plain $(BUNDLES)/plain.onnx $(ARGS)

.PHONY: bench-peers
bench-peers: $(RUN)  ## other Python servers beside the service, on one core each: table, JSON, plot
	$(PY) -m benchmarks.peers $(ARGS)

.PHONY: docker-smoke
docker-smoke:  ## build the images, compose up, ask /rank, show Redis in use, compose down
	docker/smoke.sh

# --- what guards a change --------------------------------------------------------------------

# A file's tests share fixtures that take seconds, so they stay in one process; and each process
# keeps to one thread, where torch and numpy would take all cores for matrices of ten rows.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

.PHONY: test
test: $(DEV)  ## the fast tests
	$(PYTEST) -m "not slow and not e2e" $(ARGS)

.PHONY: check
check: lint test-all  ## lint, types, import contracts and every test

.PHONY: test-all
test-all: $(DEV)
	$(PYTEST) $(ARGS)

.PHONY: e2e
e2e: $(DEV)  ## the tests that train, publish and serve
	$(PY) -m pytest -m e2e $(ARGS)

.PHONY: lint
lint: $(DEV)  ## ruff, format, mypy --strict, import contracts, spelling
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	git ls-files -z | xargs -0 $(VENV)/bin/codespell

# A ranker of made-up clicks, trained in seconds, and found again by the second target that serves it.
SMOKE := $(BUILD)/smoke

.PHONY: smoke
smoke: $(DEV)
	$(PY) -m compress run compress/configs/synthetic.toml -o 'seeds=[1]' -o runs=$(SMOKE)/runs -o publish.store=$(SMOKE)/store

.PHONY: serve-only
serve-only: smoke $(SERVE)  ## serve a bundle from an environment without torch, onnx and polars
	$(SERVE_PY) -m pytest tests/serve_only --published-store=$(SMOKE)/store $(ARGS)

.PHONY: loadtest-gate
loadtest-gate: smoke  ## seconds of load on dense and slim: fails on a failed request or a slower slim
	rm -rf $(BUILD)/gate
	$(PY) -m loadtest.compare --store $(SMOKE)/store --users 4 --rates 50 --rounds 3 --warmup 0.5 \
	  --duration 1.5 --min-ratio 0.8 --out $(BUILD)/gate

.PHONY: compress-job
compress-job: $(RUN)  ## run the config in the environment variable CONFIG into build/job; gated by its [gate]
	$(PY) -m compress run "$${CONFIG:?name a TOML file}" -o publish.store=$(BUILD)/job/store
	$(PY) -m model_store --store $(BUILD)/job/store list

# --- environments ----------------------------------------------------------------------------

# One recipe for both environments: names what is missing, where venv's own message would not.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Slimrank needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(1)
	@touch $@
endef

$(VENV)/.made:
	$(call make_venv,$(VENV))

$(SERVE_VENV)/.made:
	$(call make_venv,$(SERVE_VENV))

# torch apart and without its dependencies, so that the index named for it serves nothing else.
define install_torch
	$(if $(TORCH_INDEX_URL),$(PIP) install --no-deps --index-url $(TORCH_INDEX_URL) -c constraints/dev.txt torch)
endef

$(RUN): $(PINS) | $(VENV)/.made
	$(install_torch)
	$(PIP) install -q -c constraints/dev.txt -e '.[serve,compress,loadtest]'
	@touch $@

$(DEV): $(PINS) | $(VENV)/.made
	$(install_torch)
	$(PIP) install -q -c constraints/dev.txt -e '.[serve,compress,loadtest,ray,dev]'
	@touch $(RUN) $@

$(SERVE): pyproject.toml constraints/serve.txt constraints/dev.txt $(LOOPS) | $(SERVE_VENV)/.made
	$(QUIETLY) $(SERVE_PY) -m pip --disable-pip-version-check install -q -c constraints/serve.txt -e '.[serve]'
	$(SERVE_PY) -m pip --disable-pip-version-check install -q -c constraints/dev.txt pytest
	@touch $@

# Names and versions only: no addresses, no paths, no local build tags (torch's "+cpu").
FREEZE := -m pip freeze --exclude-editable --disable-pip-version-check | sed -nE 's/^([A-Za-z0-9._-]+==[^+;[:space:]]+).*/\1/p' | LC_ALL=C sort -f

.PHONY: constraints
constraints: $(VENV)/.made  ## take the newest versions that fit and pin them in constraints/
	$(PIP) install -q --upgrade --upgrade-strategy eager 'torch==2.13.0' -e '.[serve,compress,loadtest,ray,dev]'
	$(PY) $(FREEZE) > constraints/dev.txt
	rm -rf $(BUILD)/pins && $(PYTHON) -m venv $(BUILD)/pins
	$(QUIETLY) $(BUILD)/pins/bin/python -m pip --disable-pip-version-check install -q -c constraints/dev.txt -e '.[serve]'
	$(BUILD)/pins/bin/python $(FREEZE) > constraints/serve.txt
	rm -rf $(BUILD)/pins

.PHONY: clean
clean:  ## remove what runs and tests leave; keeps the virtual environments and downloads
	rm -rf $(BUILD) runs store reports .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
