# What a person does with a clone. Everything lives in .venv and goes with `make clean`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-versions test-wheel wheel dist chaos lint format bench scale picture fuzz clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 17

run: $(VENV)/ready ## the demo application: http://127.0.0.1:8000 (more with ARGS="-w 4")
	@exec $(BIN)/penstock run $(ARGS)

test: $(VENV)/ready ## every test (some of them with ARGS="-k config")
	$(BIN)/python -m pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

chaos: SECONDS ?= 600
SEED ?= random
chaos: $(VENV)/ready ## everything that can go wrong, for as long as you like (SECONDS=3600)
	$(BIN)/python -m pytest tests/chaos --chaos-seconds=$(SECONDS) --chaos-seed=$(SEED) $(ARGS)

wheel: $(VENV)/ready ## dist/*.whl with the data path in C, which costs less CPU (needs gcc; two minutes)
	rm -rf dist
	HATCH_BUILD_HOOKS_ENABLE=1 PIP_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

dist: $(VENV)/ready ## dist/*: sdist, pure wheel, a compiled one for each Python that is here; ARGS=3.13: this one
	@$(BIN)/python release/dist.py $(ARGS)

test-versions: $(VENV)/ready ## the packages' tests, with every other Python from 3.11 on that is here (QUICK=--quick: some)
	@$(BIN)/python release/versions.py $(QUICK) $(ARGS)

test-wheel: wheel ## what is relayed, passed on and broken, with that wheel
	$(BIN)/python -m zipfile -e dist/penstock_lb-*.whl dist/compiled
	PYTHONPATH=dist/compiled $(BIN)/penstock --version | grep -F '(compiled'
	PYTHONPATH=$(CURDIR)/dist/compiled $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --chaos-seconds=10 \
		$(addprefix tests/live/,http/test_http.py balancing/test_policies.py tcp/test_tcp.py listeners/test_schemes.py) \
		tests/chaos/test_storms.py \
		-k 'not shared and not reuseport' $(ARGS)

lint: $(VENV)/ready ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready ## as lint wants it
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/ready ## nanoseconds of the hot path (compare with ARGS="--baseline FILE")
	$(BIN)/python bench/micro.py $(ARGS)

scale: $(VENV)/ready ## a request's cost with 1,000 upstreams, 200 services, 18,000 clients (needs wrk, nginx)
	PATH="$$PATH:/usr/sbin" $(BIN)/python bench/scale.py $(ARGS)

# The picture of README.md and the rows of the table beside it, with their date, machine and build. Needs a quiet
# machine with gcc, wrk, nginx and chromium. The last lines of stdout replace those of README.md.
COMPILED := PYTHONPATH=$(CURDIR)/dist/compiled PATH="$$PATH:/usr/sbin"
picture: wheel ## measure docs/compare.png anew with that wheel, and print README's table; all: dist/compare.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check gunicorn uvicorn-worker
	$(BIN)/python -m zipfile -e dist/penstock_lb-*.whl dist/compiled
	$(COMPILED) $(BIN)/penstock --version | grep -F '(compiled'
	$(COMPILED) $(BIN)/penstock compare --peer nginx+uvicorn,gunicorn --verify \
		--json dist/compare.json --html dist/compare.html $(ARGS)
	@$(COMPILED) $(BIN)/python bench/picture.py dist/compare.json dist/compare.html docs/compare.png

fuzz: SECONDS ?= 60
fuzz: $(VENV)/ready ## look for bytes that are read in two ways (for SECONDS=60; 0: until Ctrl-C)
	@SECONDS=$(SECONDS) $(BIN)/python -m tests.fuzz.campaign

clean: ## remove everything that was made here
	rm -rf $(VENV) .venv-versions dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: a package that is no longer named must not stay importable.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "penstock needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
