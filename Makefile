# Everything here sets itself up: it needs make and Python 3.11 or newer, nothing else.
#
#   make quickstart   find the ten classes of the dataset inside the package
#   make test         lint, types, short tests        make test-all   every test
#   make format       format and fix what can be      make hooks      have Git do so at each commit
#   make docs         the documents, docs/_build/html make clean      remove what was made here
#
# The short tests with other packages, each in an environment of its own, without the pins:
#
#   make test-oldest  the lower bounds of setup.cfg   make test-newest  the newest there are
#   make test-package wheel and source distribution, in empty environments
#
# Another interpreter: make PYTHON=python3.12. By hand, `make venv` is
#
#   python3 -m venv .venv
#   .venv/bin/pip install -r requirements-dev.txt
#   .venv/bin/pip install --no-deps --no-build-isolation --editable .

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What the tests need beside the package itself.
EXTRAS := arrays,baselines,gcs,images,test
# Empty files that say which set of packages is installed; older than a list of packages, they are
# made again.
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
DOCUMENTS := $(VENV)/.installed-docs
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL)
# A process for each core, up to where memory rather than time would run short. The tests of a file
# stay together, for they share runs and compiled programs, in the order of tests/conftest.py.
PYTEST := -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
SHORT := -m "not slow" --hypothesis-profile=fixed

.DELETE_ON_ERROR:
.PHONY: help venv quickstart test test-all test-oldest test-newest test-package lint types format hooks docs clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

venv: $(DEVELOPMENT)

quickstart: $(RUNTIME)
	$(BIN)/python -m hume_jax.main --config=configs/quickstart.py

# As `hume_jax.compiling` has it for a search: these many small programs compile in less than half
# the time. The tests of `test-all` have what users have.
test test-oldest: export XLA_FLAGS ?= --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=2
# Later releases of XLA than that of the pins have no such emitters, and end at a name they do not know.
test-newest: export XLA_FLAGS ?= --xla_backend_optimization_level=2
test: lint types
	$(BIN)/python $(PYTEST) $(SHORT)

test-all: lint types $(DOCUMENTS)
	$(BIN)/python $(PYTEST)

# Old packages warn of newer ones that they meet, and no longer change.
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python $(PYTEST) $(SHORT) -W ignore::DeprecationWarning -W ignore::FutureWarning

test-newest: $(VENV)-newest/.installed
	$(VENV)-newest/bin/python $(PYTEST) $(SHORT)

test-package: $(DEVELOPMENT)
	$(BIN)/python -m pytest tests/test_packaging.py

lint: $(DEVELOPMENT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEVELOPMENT)
	$(BIN)/mypy

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

hooks: $(DEVELOPMENT)
	$(BIN)/pre-commit install

# A warning is an error, and so is a reference within the package that leads nowhere.
docs: $(DOCUMENTS)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find hume_jax configs experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): requirements.txt setup.cfg
	@command -v $(PYTHON) > /dev/null || { \
	  echo "error: no $(PYTHON) found; name a Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is too old, Python 3.11 or newer is needed: make PYTHON=..." >&2; \
	  exit 1; }
	@echo "installing the pinned requirements into $(VENV) (once, about two minutes)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --requirement requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)-oldest/.installed: setup.cfg .ci/lower_bounds.py
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(PYTHON) .ci/lower_bounds.py > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python $(INSTALL) --constraint $(VENV)-oldest/constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

# What is newest by the day it is made; `make clean` forgets it.
$(VENV)-newest/.installed: setup.cfg
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python $(INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	@echo "installing the tools for lint, types and tests into $(VENV)" >&2
	@$(PIP) --requirement requirements-dev.txt
	@touch $@

$(DOCUMENTS): requirements-docs.txt $(DEVELOPMENT)
	@echo "installing what builds the documents into $(VENV)" >&2
	@$(PIP) --requirement requirements-docs.txt
	@touch $@
