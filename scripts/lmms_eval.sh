#!/usr/bin/env bash
# Usage: scripts/lmms_eval.sh VENV VERSION      (through `make lmms-eval`)
# Creates VENV-lmms-eval beside VENV: lmms-eval and what it declares, in front of the packages of VENV, whose torch and
# transformers it shares.
target=lmms-eval venv=$1 version=$2
side=$venv-lmms-eval
# shellcheck source=side_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/side_environment.sh"

create
put "$side/bin/python" --no-deps "lmms-eval==$version"
# Left out: torch and transformers, which are VENV's; torchvision, and what brings it or a torch for CUDA; linters, trackers,
# and what only some models or benchmarks of videos and proofs ask for.
"$side/bin/python" -c '
from importlib.metadata import requires
print(*(line for line in requires("lmms-eval") if "extra ==" not in line), sep="\n")' |
    grep -viE '^(torch|torchvision|timm|transformers|transformers-stream-generator|sentence_transformers|peft|wandb|ruff|pre-commit|pybind11|av|yt-dlp|qwen-vl-utils|latex2sympy2)([^a-z_-]|$)' \
        >"$side/requirements.txt"
torch=$("$venv/bin/python" -c 'import torch; print(torch.__version__.split("+")[0])')
transformers=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("transformers"))')
printf '%s\n' "torch==$torch" "transformers==$transformers" >"$side/constraints.txt"
# The kit reaches into filelock, which has changed inside since version 4.
echo "filelock<4" >>"$side/requirements.txt"
put "$side/bin/python" --constraint "$side/constraints.txt" --requirement "$side/requirements.txt"
