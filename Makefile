# Everything a developer types. `make demo` and `make test` need nothing but Python 3.10+ and make:
# each makes its own virtual environment first, and is quick the second time.

VENV ?= .venv
ARGS ?=
SECONDS ?= 600
START ?= 0
KILLS ?= 3000
STRIDE ?= 1
SEED ?= 0
# As many processes as there are cores; one where the tests' own words are asked for.
JOBS ?= $(if $(findstring -s,$(ARGS)),0,auto)
ROUND ?= $(shell date +%s)

# The newest Python from 3.10 on that can make a virtual environment; PYTHON=... overrides the choice.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do \
	$$p -c 'import ensurepip, sqlite3, ssl, sys, venv; sys.exit(sys.version_info < (3, 10))' \
	>/dev/null 2>&1 && { command -v $$p; break; }; done)

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test coverage test-page test-adapters check-adapters test-package docs check soak crash faults fuzz contract lint format bench bench-report bench-scaling bench-apply build lowest clean screens

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r name text; do \
		printf '  make %-14s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.demo ## see a conversation survive: no server, a second device, a server that dies
	$(BIN)/python examples/offline_first.py $(ARGS)

test: $(VENV)/.dev ## run the tests; ARGS='-k journal -x' goes to pytest; JOBS=0: in one process
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

coverage: $(VENV)/.dev ## run the tests and show which lines and branches none reaches; pages in build/coverage
	rm -rf build/coverage
	mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -n $(JOBS) --dist worksteal $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet --fail-under=0
	$(BIN)/python -m coverage report

test-page: $(VENV)/.dev ## run the page's tests in a headless Chromium (packages chromium, chromium-driver)
	$(BIN)/python -m pytest -m page tests/page $(ARGS)

test-adapters: .venv-adapters/.dev ## run the adapters' tests with the real frameworks (Python 3.11+)
	.venv-adapters/bin/python -m pytest tests/adapters $(ARGS)

test-package: $(VENV)/.package ## build wheel and source archive, look into them, try each extra; ALL=1: frameworks too
	$(BIN)/python -m pytest tests/package $(ARGS)

check-adapters: .venv-adapters/.dev ## check the adapters' types against the real frameworks
	.venv-adapters/bin/python -m mypy --python-version 3.12 cached_session/adapters examples/frameworks

docs: $(VENV)/.docs ## build the documentation into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: $(VENV)/.dev ## format, lint and types, as CI checks them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(VENV)/.dev ## simulate whole replicas, seed after seed, for SECONDS=600 from START=0
	$(BIN)/python -m tests.simulation.run --seconds $(SECONDS) --start $(START) $(ARGS)

crash: $(VENV)/.dev ## kill writing processes, KILLS=3000 of them, and look for what is lost; SEED=0
	$(BIN)/python -m tests.crash.campaign --kills $(KILLS) --seed $(SEED)

faults: $(VENV)/.dev ## fail every file operation (needs cc), statement and byte of a log; STRIDE=1
	$(BIN)/python -m tests.faults.files --stride $(STRIDE) --seed $(SEED)
	STRIDE=$(STRIDE) $(BIN)/python -m pytest -q -s tests/faults/test_nth_statement.py \
		tests/faults/test_torn_log.py

fuzz: $(VENV)/.dev ## generate fresh examples, round after round, for SECONDS=600; ROUND=... again
	@end=$$(($$(date +%s) + $(SECONDS))); round=$(ROUND); while [ $$(date +%s) -lt $$end ]; do \
		echo "round $$round"; $(BIN)/python -m pytest -x -q -n $(JOBS) -m hypothesis \
		--timeout=3600 --hypothesis-profile=fresh --hypothesis-seed=$$round $(ARGS) || exit 1; \
		round=$$((round + 1)); done

contract: $(VENV)/.dev ## ask a Dakera server what replication relies on: URL=http://host:3000 KEY=...
	CONTRACT_URL="$(URL)" CONTRACT_KEY="$(KEY)" $(BIN)/python -m pytest -s tests/contract $(ARGS)

lint: $(VENV)/.dev ## lint, and fix what can be fixed safely
	$(BIN)/ruff check --fix .

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## measure beside what else there is; ARGS='--quick --only calls --json out.json'
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-report: $(VENV)/.bench ## measure, draw docs/plots, write the figures of docs/performance.md
	$(BIN)/python benchmarks/bench.py --json build/bench.json $(ARGS)
	$(BIN)/python benchmarks/report.py --add build/bench.json

bench-scaling: $(VENV)/.bench ## simulate 100,000 devices on 3, 10 and 30 nodes, with the figures of bench-report
	$(BIN)/python benchmarks/fleet_report.py $(ARGS)

bench-apply: $(VENV)/.dev ## measure what operations from elsewhere cost, without the network
	$(BIN)/python benchmarks/apply_cost.py $(ARGS)

screens: $(VENV)/.dev ## take the pictures of the documentation from the real commands and the real page
	$(BIN)/python docs/screens.py
	SCREENS=docs/images $(BIN)/python -m pytest -q -m page tests/page -k meet

build: $(VENV)/.dev ## build the wheel and the source archive into dist/
	rm -rf dist
	$(BIN)/python -m build

# Old packages warn of the new ones below them: those warnings are not ours.
lowest: .venv-lowest/.dev ## run the tests on the lowest versions of the dependencies that we promise
	.venv-lowest/bin/python -m pytest -n $(JOBS) --dist worksteal -W default $(ARGS)

clean: ## remove what was made, environments included
	rm -rf .venv .venv-* build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is a directory with a stamp for each set of extras that was installed into it.

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.10 or newer with the venv module was found. Install one, or say which:" >&2; \
		echo "    make PYTHON=/path/to/python3" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[agents,cli,devserver]'
	@touch $@

$(VENV)/.dev: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.package: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,dev-package]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $@

# The frameworks need a newer Python than the library, and other versions of what the agents need.
.venv-adapters/.dev: pyproject.toml tests/adapters/constraints.txt
	$(PYTHON) -m venv .venv-adapters
	.venv-adapters/bin/python -m pip install --quiet -c tests/adapters/constraints.txt -e '.[dev-adapters]'
	@touch $@

.venv-lowest/.dev: pyproject.toml .ci/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -c .ci/lowest.txt -e '.[dev]'
	@touch $@

