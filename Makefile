# Two commands: `make reproduce` and `make test`. Each creates .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA_ROOT ?=
WEIGHTS ?= auto
WORKERS ?= 2
# whoever is done takes tests from another's end; tests of one file stay together until then
SIDE_BY_SIDE = -n $(WORKERS) --dist worksteal
LOCK ?= requirements.lock
# LOCK= installs the newest versions that requirements.txt allows
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(LOCK),-c $(LOCK))

.PHONY: reproduce test test-all test-gpu speed lint demo lock clean

reproduce: $(VENV)/.run  ## demo tables; with DATA_ROOT=DIR [WEIGHTS=DIR] every paper's tables on that data
	PYTHON=$(BIN)/python DATA_ROOT="$(DATA_ROOT)" WEIGHTS="$(WEIGHTS)" benchmarks/reproduce_all.sh

demo: $(VENV)/.run
	$(BIN)/python run_benchmark.py demo

test: $(VENV)/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" --timeout 600 $(SIDE_BY_SIDE)

test-gpu: $(VENV)/.dev  ## what a GPU must show before its numbers count; ends with a verdict and gpu_verdict.json
	$(BIN)/python -m tests.gpu

test-all: $(VENV)/.dev lint  ## also the slow tests; timings on a GPU are for `make test-gpu`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" --timeout 3600 $(SIDE_BY_SIDE)

speed: $(VENV)/.run  ## the tables of results/measured/speed.md anew, on an idle machine: DATA_ROOT=DIR [WEIGHTS=DIR]
	$(BIN)/python -m benchmarks.speed --data-root "$(DATA_ROOT)" --weights "$(WEIGHTS)"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo

lock: $(VENV)/.dev  ## exact versions anew, for Python 3.11 and later on every platform
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-emit-index-url \
	  --custom-compile-command "make lock" requirements-dev.txt -o requirements.lock

$(VENV)/.run: requirements.txt $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt requirements-cluster.txt requirements.txt $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements-dev.txt
	touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) results/runs results/tables results/report results/figures results/maps results/cache results/scratch results/configs results/warnings.log
