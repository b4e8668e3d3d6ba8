# The verbs of the project, the same for people and for CI. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
COMPARE = $(BIN)/python bench/compare.py
NATIVE := pyproject.toml constraints.txt CMakeLists.txt $(wildcard core/* core/kernels/*)

.PHONY: ask test dev lint fix bench bench-all sanitize fuzz clean

ask: $(VENV)/.base  ## answer a question from the example text
	$(BIN)/thinbert ask "Who built the Eiffel Tower?" examples/eiffel-tower.md

# Tests run side by side, one thread each: threads of torch and BLAS that spin while they wait would hold each other up.
test: $(VENV)/.test lint  ## lint, types, tests
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

dev: $(VENV)/.test  ## everything for working on thinbert, in .venv
	@echo "ready: source $(BIN)/activate"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.test  ## what can be mended by a tool
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench  ## the engine beside its peers, under 20 minutes; with THINBERT_DATA also on SQuAD
	$(COMPARE) --models base-1x4-80 --out bench/results/base-1x4-80.json
	$(COMPARE) --models base-dense base-unstructured-90 base-4x4-80 base-32x32-68 minilm-dense minilm-1x4-80 \
		--engines "OpenVINO int8" --out bench/results/patterns.json
	$(COMPARE) --models large-hybrid-84 --engines "OpenVINO int8" --tokens 384 --out bench/results/large-hybrid.json
	test -z "$$THINBERT_DATA" || $(BIN)/python bench/squad.py "$$THINBERT_DATA/squad-dev-v1.1.json.xz" --questions 400 \
		--out bench/results/squad.json
	$(BIN)/python tools/result_tables.py

bench-all: bench  ## and batches of 32, 6 layers, BERT-large, kernels, the curve of time against tokens
	$(COMPARE) --models base-dense base-1x4-80 --engines "OpenVINO int8" "ONNX Runtime int8" --batch 32 --tokens 128 --rounds 2 \
		--out bench/results/batch-32.json
	$(COMPARE) --models distil-1x4-80 distil-unstructured-90 large-1x4-80 --engines "OpenVINO int8" --tokens 128 384 \
		--rounds 4 --out bench/results/sizes.json
	$(BIN)/python bench/kernels.py --out bench/results/kernels.json
	$(BIN)/python bench/curve.py --out bench/results/curve.json --figure docs/curve.svg
	$(BIN)/python tools/result_tables.py

# Built aside and put before the editable install, whose import hook a plain path does not bring along. pytest runs
# without capture, which would swallow a report.
sanitize: $(VENV)/.test  ## the engine's tests under address and undefined-behaviour sanitizers
	rm -rf build/sanitize
	$(PIP) --no-deps --target build/sanitize --config-settings=cmake.define.THINBERT_SANITIZE=ON .
	ASAN_OPTIONS=detect_leaks=0 PYTHONDONTWRITEBYTECODE=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	PYTHONPATH="build/sanitize:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	$(PYTHON) -m pytest -s tests/test_engine.py tests/test_pack.py

fuzz: $(VENV)/.test  ## broken model folders for a minute
	$(BIN)/python tools/fuzz.py --seconds 60

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python $(NATIVE)
	$(PIP) --editable . --constraint constraints.txt
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --editable '.[test,bench]' --constraint constraints.txt
	touch $@

# what the tests compare against is a superset of the base install
$(VENV)/.test: $(BIN)/python $(NATIVE)
	$(PIP) --editable '.[test]' --constraint constraints.txt
	touch $@ $(VENV)/.base
