# `make demo` and `make test` do everything in a fresh clone: they set up .venv first.
PYTHON ?= python3
VENV ?= .venv
MODEL ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-lowest lint format

demo: $(READY)  ## convert two tiny CLIPs, classify images with the pipeline, draw build/demo/demo.png
	$(BIN)/python -m examples.demo $(if $(MODEL),--model "$(MODEL)")

test: lint  ## everything, full-size parity included
	$(BIN)/python -m pytest -n 2

test-fast: lint  ## small models only
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-lowest: $(READY) $(VENV)/lowest  ## small models with the lowest transformers that pyproject.toml admits
	PYTHONPATH=$(abspath $(VENV)/lowest) $(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/lowest: pyproject.toml
	rm -rf $@
	$(BIN)/python -m pip install --quiet --target $@ "transformers==$$(sed -n 's/.*"transformers>=\(.*\)".*/\1/p' pyproject.toml)"
	touch $@
