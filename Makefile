# Quickstart: `make compare` runs the default comparison, `make test` the tests.
# Both create the environment in .venv and update it when pyproject.toml changes.

PYTHON ?= python3
# `compare` needs the package alone; the other targets add the development tools to it.
PACKAGE := .venv/.installed
DEVELOPMENT := .venv/.installed-dev

# In up to four processes with one thread each, as most of a test is Python.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: compare test slow check docs

compare: $(PACKAGE)
	.venv/bin/analog-grasp compare

test: $(DEVELOPMENT)
	$(PYTEST) -m "not slow"

slow: $(DEVELOPMENT)
	$(PYTEST) -m "slow and not long"

check: $(DEVELOPMENT)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(MAKE) test

docs: $(DEVELOPMENT)
	.venv/bin/zensical build --strict

$(PACKAGE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
		{ echo "$(PYTHON) is older than Python 3.12, which analog-grasp requires: choose another, as in make PYTHON=python3.12 $(MAKECMDGOALS)." >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

$(DEVELOPMENT): $(PACKAGE)
	.venv/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@
