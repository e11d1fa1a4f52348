# Every target does everything in a fresh clone: it sets up .venv first.
PYTHON ?= python3
VENV ?= .venv
MODEL ?=
BIN := $(VENV)/bin
INTEGRATIONS := $(VENV)-integrations
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
FAST := -n 2 -m "not slow and not exhaustive and not integration"
# what calls transformers itself, or takes models and processors of its own: other rooms reach it through these
LOWEST_TESTS := tests/model tests/openai tests/zero_shot tests/training tests/export tests/exported tests/embedding \
	tests/localization tests/parity tests/cli/test_app.py tests/cli/test_exif.py tests/cli/test_finetune.py \
	tests/cli/test_finetune_bad_input.py tests/test_examples.py tests/test_loading.py tests/test_model_cards.py
LOWEST_TORCH_TESTS := tests/model tests/zero_shot tests/openai/test_convert.py tests/test_loading.py
# the lowest version of a package that pyproject.toml admits
lowest = $(1)==$$(sed -n 's/^ *"$(1)>=\(.*\)",/\1/p' pyproject.toml)

.PHONY: help demo docs test test-fast test-lowest test-lowest-torch test-integrations lint format

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-18s %s\n' "$$name" "$$text"; done
	@printf '\n  PYTHON=python3.12  the Python to build with     VENV=dir  where to install (default .venv)\n'

demo: $(DEMO)  ## convert two tiny CLIPs, label images with them, draw build/demo/demo.png
	$(BIN)/python -m examples.demo $(if $(MODEL),--model "$(MODEL)")

docs: $(VENV)-docs/.ready  ## build the documentation site in build/docs/site, a warning is an error
	$(VENV)-docs/bin/python docs/build.py build/docs

test: lint  ## all tests, the nine architectures at full size included (half an hour)
	$(BIN)/python -m pytest -n 2

test-fast: lint  ## tests of small models only (before each commit)
	$(BIN)/python -m pytest $(FAST)

test-lowest: $(READY) $(VENV)/lowest  ## fast tests of what meets transformers, with the lowest that pyproject.toml admits
	PYTHONPATH=$(abspath $(VENV)/lowest) $(BIN)/python -m pytest $(FAST) $(LOWEST_TESTS)
	@# remote code, which older versions copied in part
	PYTHONPATH=$(abspath $(VENV)/lowest) $(BIN)/python -m pytest tests/test_remote_code.py

# beside the newest transformers: 5.10 asks for types of torch 2.7. The rooms that depend on torch's numbers, as the
# whole would take as long again
test-lowest-torch: $(READY) $(VENV)/lowest-torch  ## tests of the models with the lowest torch, which takes minutes to download
	PYTHONPATH=$(abspath $(VENV)/lowest-torch) $(BIN)/python -m pytest $(FAST) $(LOWEST_TORCH_TESTS)

test-integrations: $(INTEGRATIONS)/.ready  ## tests with peft, torchao, onnx, ray and others; a skip is a failure
	@# a process for each file: some of these packages are not made to share one, and it ends by a signal
	grep -rl --include="test_*.py" "mark.integration" tests | sort | xargs -P 2 -n 1 \
		$(INTEGRATIONS)/bin/python -m pytest --no-header -m integration --no-skips

lint: $(READY)  ## style, spelling, types, commit subjects
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell benchmarks conversion docs examples hf_clip model_cards tests *.md
	.ci/check-subjects

format: $(READY)  ## repair style where it can be repaired
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

$(VENV)-docs/.ready: docs/requirements.txt
	$(PYTHON) -m venv --clear $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/lowest: pyproject.toml
	rm -rf $@
	$(BIN)/python -m pip install --quiet --target $@ "$(call lowest,transformers)"
	touch $@

# with the libraries of CUDA: 3 minutes to fetch and unpack
$(VENV)/lowest-torch: pyproject.toml
	rm -rf $@
	$(BIN)/python -m pip install --quiet --target $@ "$(call lowest,torch)" "$(call lowest,torchvision)"
	touch $@

# a layer over .venv, which stays as it is
$(INTEGRATIONS)/.ready: $(READY)
	$(PYTHON) -m venv --clear $(INTEGRATIONS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(INTEGRATIONS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	$(INTEGRATIONS)/bin/python -m pip install --quiet --editable ".[integrations]"
	touch $@
