# make setup | quickstart | test | lint | format | clean
# PYTHON=/path/to/python3 chooses the interpreter for .venv; ARGS="…" is handed to what quickstart and test start.

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: setup quickstart test lint format clean
.SILENT:

setup: $(INSTALLED)
	echo "neva is installed in $(VENV): run '. $(BIN)/activate' once in a shell, then 'neva --help'."

# A stamp, so that only a change of what is to be installed installs again.
$(INSTALLED): setup.cfg scripts/setup.sh
	PYTHON="$(PYTHON)" bash scripts/setup.sh $(VENV)
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python scripts/quickstart.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
