# Two commands to try it: `make demo` and `make test`. Each sets itself up from a clean clone; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 3
MINUTES ?= 20
SEED ?= 1
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .tollgate/peers
export PYTHONDONTWRITEBYTECODE ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test check format docs bench bench-full bench-peers bench-scale simulate mutants storm fault-matrix nightly test-stripe lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Tollgate needs Python 3.11 or newer; set PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## 100,000 events from a gateway's log to Stripe usage, with two kill -9 on the way (KEEP=1 stays up)
	$(BIN)/tollgate demo $(if $(KEEP),--keep) $(DEMO_ARGS)

test: $(STAMP) ## every test but the nightly ones; REQUIRE_REAL=1 makes an absent Kafka a failure
	$(BIN)/python -m pytest -m "not nightly" -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

check: $(STAMP) ## ruff, mypy, import contracts, generated documents up to date, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m docs.generate --check
	$(BIN)/typos

format: $(STAMP) ## format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## write the generated documents
	$(BIN)/python -m docs.generate

bench: $(STAMP) ## the speed table, on real Kafka and PostgreSQL, counts asserted in the same run
	$(BIN)/python -m benchmarks

bench-full: $(STAMP) ## the curves: the fold's cost over meters, accounts, events a record, duplicates, and up to 300 million ids seen
	$(BIN)/python -m benchmarks.curves $(BENCH_ARGS)

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

bench-peers: $(STAMP) $(PEERS)/.installed ## Tollgate's meter beside Faust, Quix Streams, Kafka Streams and a hand-written loop, a SIGKILL each
	$(BIN)/python -m benchmarks.peers $(PEERS_ARGS)

bench-scale: $(STAMP) ## what an event costs as partitions and workers grow: 8, 24, 96 partitions through 1 and 2 meters
	$(BIN)/python -m benchmarks.scale

storm: $(STAMP) ## faults on real processes for MINUTES, from SEED: lost and doubled must be 0 (RECORD=1 keeps it for docs/proof.md)
	$(BIN)/python -m tests.storm --minutes $(MINUTES) --seed $(SEED) $(if $(RECORD),--report docs/recorded/storm.json) $(STORM_ARGS)

fault-matrix: $(STAMP) ## run every test that docs/fault-matrix.md names, and record the results for it
	REQUIRE_REAL=1 $(BIN)/python -m tests.fault_matrix

simulate: $(STAMP) ## SEEDS=200 runs of the whole installation in virtual time under faults; RUN=n runs seed n again
	$(BIN)/python -m tests.simulation $(if $(RUN),--seed $(RUN),--seeds $(or $(SEEDS),200)) $(SIMULATE_ARGS)

mutants: $(STAMP) ## plant 130 bugs, one at a time: each must be caught (MUTANTS_ARGS=--ci: the eight worst)
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

nightly: $(STAMP) ## the long runs: 2,000,000 events through a kill storm, deep property tests
	REQUIRE_REAL=1 $(BIN)/python -m pytest -m nightly -s $(PYTEST_ARGS)
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest tests/property -n $(WORKERS) --timeout 7200 $(PYTEST_ARGS)

test-stripe: $(STAMP) ## the stand-in's contract suite against Stripe's own test mode: STRIPE_API_KEY=sk_test_...
	@test -n "$$STRIPE_API_KEY" || { echo "set STRIPE_API_KEY=sk_test_... first"; exit 2; }
	$(BIN)/python -m pytest tests/contract/stripe $(PYTEST_ARGS)

lock: $(STAMP) ## resolve requirements.lock again
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --all-extras pyproject.toml -o requirements.lock

clean: ## remove what the targets made, but for the virtual environment
	rm -rf .tollgate .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
