# Everything runs in .venv, which is made on first use and again when pyproject.toml or
# constraints.txt change. PYTHON=... chooses the interpreter it is made with.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs pictures clean

help:
	@echo "make demo   train a small language model, find the documents behind its spikes (2 min)"
	@echo "make test   run the tests"
	@echo "make check  lint, format and type checks"
	@echo "make bench  measure the overhead"
	@echo "make docs   build the pages in docs/, into docs/_build/html"
	@echo "make pictures  make the pictures in docs/ anew (PICTURES='spike mlflow': only some)"
	@echo "make clean  remove .venv, caches and builds (runs stay)"

demo: $(READY)
	$(BIN)/gradtrace demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

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
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
