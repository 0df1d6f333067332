# make setup | quickstart | test | cross-version | lint | format | clean
# PYTHON=/path/to/python3 chooses the interpreter for .venv; ARGS="…" is handed to what quickstart and test start.

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Versions of transformers, beside the installed one, that must load what neva exports.
OTHERS := $(addprefix $(VENV)-transformers-,4.45.2 4.57.6)

.PHONY: setup quickstart test cross-version lint format clean
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

# Exported folders in other versions of transformers, each in an environment beside .venv that shares its torch.
cross-version: $(OTHERS:%=%/installed)
	NEVA_OTHER_PYTHONS="$$(printf '%s/bin/python:' $(abspath $(OTHERS)))" $(BIN)/python -m pytest tests/convert/test_cross_version.py

$(VENV)-transformers-%/installed: scripts/cross_version.sh $(INSTALLED)
	bash scripts/cross_version.sh $(VENV) $*
	touch $@

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) $(OTHERS) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
