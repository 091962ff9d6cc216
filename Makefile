# make demo   install into .venv and run the demo on the embedded data
# make test   install into .venv and run the tests, two at once
# make test-all   the same with the long sweeps (processes that are killed, many rounds)
# make test PYTHON=python3.12   the same on another Python
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")
VENV := .venv-$(VERSION)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# one thread each, also after numba has set the number: torch's threads wait for each other where a core is taken
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint docs tutorials clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/scalloy demo

test: $(VENV)/.installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed
	SCALLOY_SWEEPS=1 $(PYTEST)

lint: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

docs: $(VENV)/.installed
	$(PIP) -e ".[docs]"
	$(VENV)/bin/sphinx-build -W --keep-going -b html docs docs/_build/html

tutorials: $(VENV)/.installed
	$(PIP) -e ".[docs,multimodal]"
	$(VENV)/bin/python scripts/make_tutorials.py

clean:
	rm -rf .venv-* build dist docs/_build docs/generated docs/tutorials
