# What a user or a contributor runs. It needs Python 3.11 or newer and make; everything else goes into a
# virtual environment, with the exact versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests

export MATPLOTLIBRC := $(CURDIR)/matplotlibrc

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINNED := --constraint constraints.txt --build-constraint constraints.txt

# What each target needs: extras and dependency groups of pyproject.toml.
demo-needs := --editable .
test-needs := --editable . --group test
lint-needs := --editable . --group test --group lint
docs-needs := --editable . --group docs
notebooks-needs := --editable . --group notebooks
bench-needs := --editable . --group bench

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint docs notebooks bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## learn a density, use it as a prior in NUTS, draw outputs/quickstart.png
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.test ## run the tests but the slow ones (TESTS=tests/data a part of them, TESTS="tests -m slow" those)
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.lint ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs ## build the site into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.notebooks ## run the tutorials and the gallery anew, two at a time, and keep their outputs and pictures
	{ echo 'python examples/gallery.py'; printf 'jupyter-execute --inplace --timeout=1200 %s\n' docs/tutorials/*.ipynb | sort -r; } | xargs -P 2 -I {} sh -c '$(BIN)/{}'

bench: $(VENV)/.bench ## measure every figure of the README and the docs
	$(BIN)/python benchmarks/time.py
	$(BIN)/python benchmarks/exact.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/posteriors.py
	$(BIN)/python benchmarks/speed.py
	taskset -c 0 $(BIN)/python benchmarks/nuts.py
	$(BIN)/python benchmarks/solvers.py
	$(BIN)/python benchmarks/divergence.py
	$(BIN)/python benchmarks/likelihoods.py
	$(BIN)/python benchmarks/reparam.py
	$(BIN)/python benchmarks/guides.py
	$(BIN)/python benchmarks/diagnose.py
	$(BIN)/python benchmarks/trust.py
	$(BIN)/python benchmarks/cells.py
	$(BIN)/python benchmarks/choices.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/bad_input.py

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-* site .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file for each target; it is older than what it depends on only when something must be installed.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --upgrade --constraint constraints.txt pip
	$(PIP) install $(PINNED) $($*-needs)
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowdensity needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Fix: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
