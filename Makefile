# Every target does everything in a fresh clone: it sets up .venv first.
PYTHON ?= python3
VENV ?= .venv
MODEL ?=
BIN := $(VENV)/bin
INTEGRATIONS := $(VENV)-integrations
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready

.PHONY: help demo test test-fast test-lowest test-integrations lint format

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-18s %s\n' "$$name" "$$text"; done

demo: $(DEMO)  ## convert two tiny CLIPs, classify images with the pipeline, draw build/demo/demo.png
	$(BIN)/python -m examples.demo $(if $(MODEL),--model "$(MODEL)")

test: lint  ## everything, full-size parity included
	$(BIN)/python -m pytest -n 2

test-fast: lint  ## small models only
	$(BIN)/python -m pytest -n 2 -m "not slow and not exhaustive and not integration"

test-lowest: $(READY) $(VENV)/lowest  ## small models with the lowest transformers that pyproject.toml admits
	PYTHONPATH=$(abspath $(VENV)/lowest) $(BIN)/python -m pytest -n 2 -m "not slow and not exhaustive and not integration"

test-integrations: $(INTEGRATIONS)/.ready  ## with peft, torchao, onnx, datasets and others; a skip is a failure
	@# a process for each file: some of these packages are not made to share one, and it ends by a signal
	grep -rl --include="test_*.py" "mark.integration" tests | sort | xargs -P 2 -n 1 \
		$(INTEGRATIONS)/bin/python -m pytest --no-header -m integration --no-skips

lint: $(READY)  ## style, spelling, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell benchmarks conversion docs examples hf_clip model_cards tests *.md

format: $(READY)  ## repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[plot]"
	touch $@

$(READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(DEMO) $@

$(VENV)/lowest: pyproject.toml
	rm -rf $@
	$(BIN)/python -m pip install --quiet --target $@ "transformers==$$(sed -n 's/.*"transformers>=\(.*\)".*/\1/p' pyproject.toml)"
	touch $@

# a layer over .venv, which stays as it is
$(INTEGRATIONS)/.ready: $(READY)
	$(PYTHON) -m venv --clear $(INTEGRATIONS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(INTEGRATIONS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	$(INTEGRATIONS)/bin/python -m pip install --quiet --editable ".[integrations]"
	touch $@
