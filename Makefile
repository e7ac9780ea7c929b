# All there is to remember: demo  test  check  bench  docs
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench docs clean

demo: $(READY)  ## train, convert, calibrate, distil and export a small network; one table and one page
	$(BIN)/separable demo --out runs/demo --overwrite

test: check  ## lint, types and the whole suite with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --durations=10

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## the claims measured again but those of long trainings; benchmarks/README.md names each and its data
	for claim in readings recipes convert; do $(BIN)/python benchmarks/$$claim.py || exit 1; done

docs: $(READY)  ## every code block and example of the documentation, run
	$(BIN)/python -m pytest tests/test_docs.py

# First everything that is needed (torch among it), then the package again beside the torch that it will run with.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,recipes,deploy]'
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
