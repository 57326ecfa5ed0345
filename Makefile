# Two commands: `make compare` shows what the project does, `make test` whether it works.
# Both make their own environment in .venv, and again when the requirements change.

# Threads that wait leave their core to those that work; on a shared machine this decides the pace.
export OMP_WAIT_POLICY := passive

PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: compare test

compare: $(INSTALLED)
	.venv/bin/analog-grasp compare

test: $(INSTALLED)
	.venv/bin/python -m pytest -m "not slow"

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
		{ echo "$(PYTHON) is older than Python 3.12, which analog-grasp needs: name another, as in make PYTHON=python3.12 $(MAKECMDGOALS)." >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@
