.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

.venv/base: pyproject.toml
	@$(PYTHON) -m venv .venv || { echo "python3 has no venv module: install it (Debian: apt install python3-venv)"; exit 3; }
	$(PY) -m pip install -q -e . && ($(CC) --version >/dev/null 2>&1 || $(PY) -m pip install -q -e '.[cpu]')
	@touch $@

.venv/test: .venv/base
	$(PY) -m pip install -q -e '.[test]' && touch $@

.PHONY: demo
demo: .venv/base  ## optimize a real program on this CPU beside NumPy, emit the sm_90 kernels for it
	$(PY) examples/demo.py

.PHONY: test
test: .venv/test  ## tests that need no GPU
	$(PY) -m pytest -q -m "not device"

.PHONY: check
check: lint types imports test  ## everything that needs no GPU

.PHONY: lint
lint: .venv/test  ## ruff, formatting included
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: types
types: .venv/test  ## mypy, strict
	$(PY) -m mypy

.PHONY: imports
imports: .venv/test  ## imports run one way
	PYTHONPATH=. .venv/bin/lint-imports --no-cache

.PHONY: test-device
test-device: .venv/test  ## tests that need a CUDA device
	$(PY) -m pytest -q -m device

.PHONY: format
format: .venv/test  ## format the tree
	$(PY) -m ruff check --fix-only . && $(PY) -m ruff format .

.PHONY: bench
bench: .venv/base  ## the board for the device at hand beside its baselines; writes bench/results/<device>.json
	$(PY) -m eqsat bench --out bench/results

.PHONY: tables
tables: .venv/base  ## README tables from bench/results
	$(PY) bench/tables.py

.PHONY: plots
plots: .venv/test  ## the README's plots from bench/results
	$(PY) bench/plots.py

.PHONY: sweeps
sweeps: .venv/base  ## one kind of kernel over many shapes; writes bench/results/<device>-sweep-<kind>.json
	for s in gemm attention memory; do $(PY) -m eqsat bench sweep $$s --budget 10s --modes eager --out bench/results || exit; done

.PHONY: discovery
discovery: .venv/base  ## the discovery suite: programs, plans chosen by model; writes bench/results/discovery.json
	$(PY) -m eqsat bench discovery --json bench/results/discovery.json

.PHONY: speed
speed: .venv/base  ## what the search itself costs; writes bench/results/search.txt
	$(PY) bench/search_speed.py --write

.PHONY: first
first: .venv/base  ## run the README's first example here and keep its output
	$(PY) bench/tables.py --run

.PHONY: receipts
receipts: .venv/base  ## optimize every example for this CPU and keep its receipt
	for e in $(notdir $(wildcard examples/receipts/*)); do \
	  $(PY) -m eqsat optimize examples/$$e.py --target cpu --emit receipt --out examples/receipts/$$e || exit; done

.PHONY: evidence
evidence: .venv/test  ## prove and test every built-in rule anew; writes rules/evidence.json
	$(PY) -m eqsat rules check --shipped --write

.PHONY: wheel
wheel: .venv/test  ## sdist and wheel
	$(PY) -m pip install -q build && $(PY) -m build
