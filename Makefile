# One virtual environment, made once: `make demo` and `make test` both set it up when it is missing or out of date.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
NATIVE := runtime/CMakeLists.txt $(wildcard runtime/native/*.* runtime/native/avx*/*.h)

.PHONY: setup demo bench test test-all lint wheels clean

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml runtime/pyproject.toml $(NATIVE)
	@echo "setting up $(VENV): a few minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --editable runtime --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/qvit run recipes/demo.toml --out runs/demo --resume

bench: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/peers.py --out --markdown

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(STAMP)
	$(BIN)/python -m pytest -m ''

wheels: $(STAMP)
	$(BIN)/python -m build --wheel --outdir dist runtime
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist runtime/build
