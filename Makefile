# Every target sets up what it needs: a virtual environment with pinned versions in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-cluster test-browser lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml cluster/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c cluster/constraints.txt -e '.[dev,embedded,vision]'
	@# pip compiles on one core, and the packages' own tests, too; some files are for other Pythons
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/recipe-ray sweep experiments/quickstart.yaml --store runs/demo
	$(BIN)/recipe-ray report runs/demo

# as many processes as cores: threads within each would only wait for one another
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

# several nodes simulated on this machine, and what becomes of a sweep when parts of it die
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m cluster

# a report in a real browser, which must be on PATH (chromium, chromium-browser or google-chrome)
test-browser: $(STAMP)
	$(BIN)/python -m pytest -m browser

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv runs
