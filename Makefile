# All there is to remember: demo  test  check  bench  docs  (test-native and test-arm: the kernels without torch)
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := $(VENV)/.built

.PHONY: demo test test-native test-arm check bench sweep docs clean

demo: $(BUILT)  ## train, convert, calibrate, distil and export a small network; one table and one page
	$(BIN)/separable demo --out runs/demo --overwrite

test: check test-native  ## lint, types, kernels and the whole suite with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --durations=10

test-native:  ## every kernel against loops in double precision, under sanitizers
	$(MAKE) -C csrc/tests -j2 run

test-arm:  ## the same, compiled for aarch64 and run under qemu; where that compiler and qemu are installed
	$(MAKE) -C csrc/tests -j2 run-arm

check: $(BUILT)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BUILT)  ## the claims measured again but those of long trainings; benchmarks/README.md names each and its data
	for claim in readings.py recipes.py "convert.py resnet20"; do $(BIN)/python benchmarks/$$claim || exit 1; done

sweep: $(BUILT)  ## every timm network with a depthwise convolution, accelerated and compared; its table in docs/ (long)
	$(BIN)/python tests/acceleration/sweep.py

docs: $(BUILT)  ## every code block and example of the documentation, run
	$(BIN)/python -m pytest tests/test_docs.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,recipes,deploy]'
	touch $@

# The package again beside the torch that it will run with: only there can the native library be compiled.
$(BUILT): $(READY) setup.py $(wildcard csrc/*.cpp csrc/*.h)
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
