# Every target does its own set-up: a virtual environment in .venv with the exact versions of constraints/.
# Needed beforehand: Python 3.11 or newer with venv, git, make. Nothing is fetched but packages from the index that
# pip is configured for, and nothing at all once `make setup` has run.

PYTHON ?= python3
ARGS   ?=
N      ?= 20000
SEED   ?= 0
JOBS   ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
PIP    := $(PY) -m pip --disable-pip-version-check --no-input
STAMP  := $(VENV)/.installed
PROTOS_VENV  := .venv-protos
PROTOS_STAMP := $(PROTOS_VENV)/.installed
PEERS_VENV   := .venv-peers
PEERS_STAMP  := $(PEERS_VENV)/.installed
MODELS_VENV  := .venv-models
MODELS_STAMP := $(MODELS_VENV)/.installed
BROWSER_STAMP := $(VENV)/.browser
SCHEMA := dp/schemas/secagg-report-2.schema.json
PACKAGES := secagg dp protocol ffm
# Whole files to each process: many tests wait for clocks and sockets, so two take little more than half the time of one. In
# their own order: by number of tests, as xdist would have it, the longest of all come last and alone.
PYTEST := $(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
LOCK := pip compile -q --generate-hashes --no-deps --no-annotate --no-header --universal --python-version 3.11

# No model hub, no telemetry, whatever the caller's environment says.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export PYTHONNOUSERSITE := 1
# An environment of the caller's must not leak into ours.
unexport PYTHONPATH
unexport PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup browser-setup schema schema-check demo test test-slow test-full lint format proto-check protos vectors vectors-check constraints lock wheel clean models bench tables peers-setup simulate fuzz

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## virtual environment, pinned dependencies, example weights and data

$(STAMP): pyproject.toml constraints/dev.txt constraints/dev.lock constraints/examples.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) found, Python 3.11 or newer expected; do: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: no virtual environment could be made; do: install the venv module (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	$(PIP) install -q --require-hashes --no-deps -r constraints/dev.lock
	$(PIP) install -q -c constraints/dev.txt "$$(grep '^torch==' constraints/dev.txt)"
	$(PIP) install -q --require-hashes --no-deps -r constraints/examples.lock
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## five hospitals fine-tune one model; ARGS="--model minilm" for the larger one
	$(BIN)/secagg demo hospital $(ARGS)

test: $(STAMP) ## all tests but those marked slow
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP) ## the slow tests, but those that take hours; CI runs a part of them
	$(PYTEST) -m "slow and not hours" $(ARGS)

test-full: $(STAMP) $(BROWSER_STAMP) ## all tests
	$(PYTEST) $(ARGS)

# Chromium itself comes from the system; where it is missing, the tests of the report's page are skipped and say so.
$(BROWSER_STAMP): constraints/browser.txt constraints/browser.lock $(STAMP)
	$(PIP) install -q --require-hashes --no-deps -r constraints/browser.lock
	@touch $@

browser-setup: $(BROWSER_STAMP) ## driver and axe for the tests of the report's page in Chromium
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "error: no Chromium found on the PATH; do: install it (Debian, Ubuntu: apt-get install chromium)" >&2; exit 1; }

lint: $(STAMP) proto-check vectors-check schema-check ## style, types, layering, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the source as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# gRPC's code generator has dependencies of its own, so it lives in an environment of its own. Only messages are
# generated; the service is written by hand in protocol/rpc, the one place that imports grpc.
$(PROTOS_STAMP): constraints/protos.txt
	@test -x $(PROTOS_VENV)/bin/python || $(PYTHON) -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python -m pip --disable-pip-version-check --no-input install -q -r constraints/protos.txt
	@touch $@

protoc = mkdir -p $(1) && $(PROTOS_VENV)/bin/python -m grpc_tools.protoc -I protos \
	--python_out=$(1) --pyi_out=$(1) $(wildcard protos/*.proto)

protos: $(PROTOS_STAMP) ## regenerate protocol/_pb from protos/
	$(call protoc,protocol/_pb)

proto-check: $(PROTOS_STAMP)
	rm -rf build/_pb && $(call protoc,build/_pb)
	diff -r -x __init__.py -x __pycache__ build/_pb protocol/_pb

vectors: $(STAMP) ## regenerate tests/vectors/*.json
	$(PY) tests/vectors/generate.py tests/vectors

vectors-check: $(STAMP)
	rm -rf build/vectors && mkdir -p build/vectors && $(PY) tests/vectors/generate.py build/vectors
	@for made in build/vectors/*.json; do diff "$$made" tests/vectors/ || exit 1; done
	@for kept in tests/vectors/*.json; do test -e "build/vectors/$${kept##*/}" || { \
	  echo "error: $$kept is not made by tests/vectors/generate.py; do: delete it or generate it" >&2; exit 1; }; done

schema: $(STAMP) ## regenerate the report's JSON Schema from dp/report_schema.py
	@mkdir -p build
	$(PY) -m dp.report_schema > build/report.schema.json && mv build/report.schema.json $(SCHEMA)

schema-check: $(STAMP)
	@mkdir -p build && $(PY) -m dp.report_schema > build/report.schema.json
	diff build/report.schema.json $(SCHEMA)

constraints: $(STAMP) ## write the versions of .venv to constraints/dev.txt
	@head -n 1 constraints/dev.txt > constraints/dev.new
	@$(PIP) freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | \
	  grep -v -i -x -F -f constraints/examples.txt -f constraints/browser.txt >> constraints/dev.new
	@mv constraints/dev.new constraints/dev.txt

# torch is left out: its build differs by machine.
lock: ## write constraints/*.lock, with hashes, from the lists beside them
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install -q 'uv>=0.8'; }
	grep -v '^torch==' constraints/dev.txt > .venv-lock/dev.txt
	cd .venv-lock && bin/uv $(LOCK) dev.txt -o ../constraints/dev.lock
	cd .venv-lock && bin/uv $(LOCK) ../constraints/examples.txt -o ../constraints/examples.lock
	cd .venv-lock && bin/uv $(LOCK) ../constraints/browser.txt -o ../constraints/browser.lock

# Flower has dependencies of its own, so it lives in an environment of its own.
$(PEERS_STAMP): constraints/peers.txt
	@test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check --no-input install -q -r constraints/peers.txt
	@touch $@

peers-setup: $(PEERS_STAMP) ## the environment of benchmarks/peers.py

bench: $(STAMP) $(PEERS_STAMP) ## every benchmark, about half an hour, to benchmarks/results; ARGS="--quick" for small sizes
	$(PY) -m benchmarks $(ARGS)

TABLES ?= finetune adapters prompt prompt-lm pretrain continual
tables: $(STAMP) ## evaluation of every task over three seeds, hours on two cores, to benchmarks/results
	@for task in $(TABLES); do $(BIN)/secagg evaluate --task $$task --out benchmarks/results $(ARGS) || exit 1; done

simulate: $(STAMP) ## N seeded schedules of whole federations; a release runs N=1000000
	$(PY) -m tests.simulation $(N) --seed $(SEED) --processes $$(nproc)

fuzz: $(STAMP) ## N executions of every fuzzer; ARGS="--seed 7 --processes 4 --only codec"
	$(PY) -m tests.fuzz $(N) $(ARGS)

# Z3 lives in an environment of its own; Spin and a C compiler come from the system.
$(MODELS_STAMP): constraints/models.txt
	@test -x $(MODELS_VENV)/bin/python || $(PYTHON) -m venv $(MODELS_VENV)
	$(MODELS_VENV)/bin/python -m pip --disable-pip-version-check --no-input install -q -r constraints/models.txt
	@touch $@

models: $(MODELS_STAMP) ## counting arguments, attempt and ledger in Z3 and Spin, with broken variants that must fail
	$(MODELS_VENV)/bin/python models/run.py

wheel: $(STAMP) ## build dist/*.whl
	$(PIP) wheel -q --no-deps -w dist .

clean: ## everything that make has made
	rm -rf $(VENV) $(PROTOS_VENV) $(MODELS_VENV) .venv-lock $(PEERS_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache
	find $(PACKAGES) tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
