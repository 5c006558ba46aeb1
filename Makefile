# Every target sets up what it needs: a virtual environment with pinned versions in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-cluster test-browser test-hostile lint docs audit bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml cluster/constraints.txt
	@echo "Installing about 7 GB into .venv: 3 to 6 minutes with a fast connection on an idle machine."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c cluster/constraints.txt -e '.[dev,docs,embedded,vision]'
	@# pip compiles on one core, and the packages' own tests, too; some files are for other Pythons
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true
	touch $(STAMP)

demo: $(STAMP)
	@echo "The demo takes about 10 minutes on two idle cores, longer on busy ones."
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

# every hostile input in a process of its own, then the fuzzers for minutes each
test-hostile: $(STAMP)
	$(BIN)/python -m tests.hostile
	RECIPE_RAY_FUZZ=2000 $(BIN)/python -m pytest tests/test_fuzz.py --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation as a site: docs/, README.md and cluster/, with a reference made from the code
docs: $(STAMP)
	$(BIN)/python docs/site/stage.py build/docs
	$(BIN)/zensical build --strict --config-file build/docs/zensical.toml

# known holes in the pinned versions; needs the vulnerability service of PyPI, and fails without
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r cluster/constraints.txt

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build runs
