# Two commands for a fresh machine; each makes .venv and installs what it needs, once.
#   make say    speaks TEXT into OUT with the built-in voice
#   make test   lint, types, size limits and every test
PYTHON ?= python3
TEXT ?= Hello world. This is the sound of a small voice.
OUT ?= out.wav
# By file: tests of one file share what they export, which is most of the time.
PYTEST_FLAGS ?= -n 2 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := engines runtime calibration export
# A folder's time changes when a file comes or goes: then the links of the strict editable install are made again.
FOLDERS := $(shell find $(PACKAGES) -type d -not -name __pycache__)

.PHONY: say test lint types limits clean

say: $(VENV)/.say
	$(BIN)/voxedge say "$(TEXT)" -f "$(OUT)" --force --seed 7

test: lint types limits
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

limits: $(VENV)/.test
	$(BIN)/python .ci/limits.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

# Speaking needs numpy and ONNX Runtime, no PyTorch. Where `make test` ran before, its installation serves too.
$(VENV)/.say: pyproject.toml $(FOLDERS) | $(BIN)/python
	$(BIN)/python -m pip install -q -e ".[ort]" --config-settings editable_mode=strict
	touch $@

# Strict editable mode: mypy cannot find a package whose folders are mapped in the ordinary one.
$(VENV)/.test: pyproject.toml $(FOLDERS) | $(BIN)/python
	$(BIN)/python -m pip install -q -e ".[ort,rtx,export,dev]" --config-settings editable_mode=strict
	touch $@ $(VENV)/.say
