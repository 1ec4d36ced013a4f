# Everything a newcomer needs: `make run` and `make test`. Each creates .venv on first use.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-kernels test-ray lint bench picture mutants fuzz clean

run: $(INSTALLED)
	$(BIN)/roofserve run scenarios/quickstart.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

test-ray: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	$(BIN)/python -m pytest tests/cluster

# GPU kernels in Triton's interpreter on the CPU: torch is large, so it has an environment of its own.
test-kernels: .venv-kernels/.installed
	TRITON_INTERPRET=1 .venv-kernels/bin/python -m pytest -n 2 tests/kernels

.venv-kernels/.installed: pyproject.toml
	test -x .venv-kernels/bin/python || $(PYTHON) -m venv .venv-kernels
	.venv-kernels/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[gpu,test]'
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-kernels out .pytest_cache .mypy_cache .ruff_cache .hypothesis

bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py --json benchmarks/baseline.json --readme

picture: $(INSTALLED)
	$(BIN)/python reports/picture.py

mutants: $(INSTALLED)
	$(BIN)/python tests/mutants/run.py

# Files that are wrong in every way, handed to everything that reads files.
FUZZ_CASES ?= 200000
fuzz: $(INSTALLED)
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m fuzz.run --cases $(FUZZ_CASES)
