# Every target needs nothing but Python 3.11+ and pip: it makes .venv and installs the tested set of versions.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
PIP_OPTIONS ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt

.PHONY: demo recipe test lint types wheel check clean

$(RUNTIME): pyproject.toml constraints.txt
	@echo "Installing PyTorch and what arl2 needs to run into .venv: a few minutes, mostly downloading; 1.2 GB of disk with"
	@echo "a CPU build of PyTorch, several GB more with the CUDA build that pip takes on Linux: pytorch.org says how to"
	@echo "choose the CPU build, then run this again"
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

# Development tools beside it, and what training reads clips with.
$(DEV): $(RUNTIME)
	@echo "Adding development tools to .venv: about 0.5 GB"
	$(INSTALL) -e ".[dev]"
	touch $@

# Four prompts through the embedded model: demo.mp4 and its contact sheet demo.png.
demo: $(RUNTIME)
	@echo "Generating four videos of 81 video frames: less than a minute on two cores"
	$(BIN)/arl2 generate "a red circle moves right on navy" "a green square moves up on white" \
	  "a blue triangle bounces on beige" "a yellow circle moves left behind a wall on black" \
	  --seed 11 --output demo.mp4 --sheet demo.png --overwrite

# The embedded hybrid models from their teacher, into runs/recipe: clips, two stages of training, DMD, export. Settings are
# environment variables that recipes/shapes.sh names: make recipe MODELS=all PROCESSES=2
recipe: $(DEV)
	PYTHON=$(BIN)/python recipes/shapes.sh

test: $(DEV)
	$(BIN)/python -m pytest -q

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

wheel: $(DEV)
	$(BIN)/python -m build --wheel --outdir dist .

check: lint types test wheel

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
