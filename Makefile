# Every target needs nothing but Python 3.11+ and pip: it makes .venv and installs the tested set of versions.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo recipe test lint types wheel check clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# Four prompts through the embedded model: demo.mp4 and its contact sheet demo.png.
demo: $(BIN)/.installed
	$(BIN)/arl2 generate "a red circle moves right on navy" "a green square moves up on white" \
	  "a blue triangle bounces on beige" "a yellow circle moves left behind a wall on black" \
	  --seed 2 --output demo.mp4 --sheet demo.png

# The embedded hybrid models from their teacher, into runs/recipe: clips, two stages of training, export. Settings are
# environment variables that recipes/shapes.sh names: make recipe MODELS=all PROCESSES=2
recipe: $(BIN)/.installed
	PYTHON=$(BIN)/python recipes/shapes.sh

test: $(BIN)/.installed
	$(BIN)/python -m pytest -q

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

wheel: $(BIN)/.installed
	$(BIN)/python -m build --wheel --outdir dist .

check: lint types test wheel

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
