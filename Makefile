# Everything runs in .venv, which is made on first use and again when pyproject.toml or
# constraints.txt change. PYTHON=... chooses the interpreter it is made with.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process for each core, each of which takes whole files: their tests share what they set up.
# PYTEST_ARGS="-n 0" runs in one process, where `--pdb` and `-s` are of use.
SPREAD := -n auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test quick coverage bare matrix check bench docs pictures clean

help:
	@echo "make demo   train a small language model, find the documents behind its spikes (2 min)"
	@echo "make test   run the tests"
	@echo "make check  lint, format and type checks"
	@echo "make bench  measure the overhead"
	@echo "make docs   build the pages in docs/, into docs/_build/html"
	@echo "make clean  remove .venv, .matrix, caches and builds (runs stay)"
	@echo
	@echo "make quick     run the tests but for those marked slow, on all cores"
	@echo "make coverage  run the tests and measure which lines and branches they reach"
	@echo "make bare      run the quick tests with nothing optional installed"
	@echo "make matrix    the same on each Python at hand; MATRIX_TORCH=\"2.6.0 2.13.0\" on each torch"
	@echo "make pictures  make the pictures in docs/ anew (PICTURES='spike mlflow': only some)"

demo: $(READY)
	$(BIN)/gradtrace demo

test: $(READY)
	$(BIN)/python -m pytest $(SPREAD) $(PYTEST_ARGS)

quick: $(READY)
	$(BIN)/python -m pytest $(SPREAD) -m "not slow" $(PYTEST_ARGS)

coverage:
	$(MAKE) test PYTEST_ARGS="--cov --cov-report=term:skip-covered $(PYTEST_ARGS)"

bare: $(READY)
	PYTEST_ARGS="$(PYTEST_ARGS)" $(BIN)/python tools/matrix.py --this

matrix: $(READY)
	PYTEST_ARGS="$(PYTEST_ARGS)" $(BIN)/python tools/matrix.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.overhead $(BENCH_ARGS)

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

pictures: $(READY)
	$(BIN)/python tools/pictures.py $(PICTURES)

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@bash tools/setup.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) .matrix build dist docs/_build *.egg-info .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
