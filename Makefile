# Each target does its own set-up: on a fresh machine `make demo` and `make test` need nothing before them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow check format browser clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)  ## Train a generator on 24 subjects until it is caught memorizing; leaves relict_demo/report.html.
	$(BIN)/relict-lightning demo

test: $(READY) browser  ## Run the tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(READY) browser  ## Run the tests that take minutes.
	$(BIN)/python -m pytest -m slow --timeout 1800

check: $(READY)  ## Lint, format, types, import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The report is tested in a real browser. Where it can be neither found nor installed, those tests are skipped.
browser:
	@command -v chromium >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	|| echo "chromium is not installed: the browser tests will be skipped"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache relict_demo
