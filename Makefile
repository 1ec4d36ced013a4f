# Everything a newcomer needs: `make run` and `make test`. Each creates .venv on first use.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-kernels test-ray test-lowest lint bench picture plans mutants fuzz trust trust-share clean

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
	rm -rf $(VENV) .venv-kernels .venv-lowest out .pytest_cache .mypy_cache .ruff_cache .hypothesis

bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py --json benchmarks/baseline.json --readme

picture: $(INSTALLED)
	$(BIN)/python reports/picture.py

plans: $(INSTALLED)
	$(BIN)/python reports/plans.py

mutants: $(INSTALLED)
	$(BIN)/python tests/mutants/run.py

# Files that are wrong in every way, handed to everything that reads files.
FUZZ_CASES ?= 200000
fuzz: $(INSTALLED)
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m fuzz.run --cases $(FUZZ_CASES)

# What was tried to make the simulator wrong, crash or lose work: reports/trust.md. `trust-share`: ten minutes of it.
trust: $(INSTALLED)
	$(BIN)/python reports/trust.py

trust-share: $(INSTALLED)
	$(BIN)/python reports/trust.py --share

# The tests with the lowest versions of all dependencies that pyproject.toml allows.
test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest -n 2

.venv-lowest/.installed: pyproject.toml
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
		| sed 's/>=/==/' > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c .venv-lowest/lowest.txt
	touch $@
