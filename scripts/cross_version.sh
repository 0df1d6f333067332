#!/usr/bin/env bash
# Usage: scripts/cross_version.sh VENV VERSION      (through `make cross-version`)
# Creates VENV-transformers-VERSION beside VENV: the same Python, torch and packages, with another transformers in front of
# them.
target=cross-version venv=$1 version=$2
side=$venv-transformers-$version
# shellcheck source=side_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/side_environment.sh"

create --without-pip
over=("$venv/bin/python" --no-deps --upgrade --target "$packages")
put "${over[@]}" "transformers==$version"
# Only these two are tied to a version of transformers; the rest comes from VENV.
mapfile -t tied < <("$side/bin/python" -c '
from importlib.metadata import requires
for line in requires("transformers"):
    if line.startswith(("tokenizers", "huggingface-hub")) and ";" not in line:
        print(line)')
put "${over[@]}" "${tied[@]}"
"$side/bin/python" -W ignore -c 'from transformers import LlavaForConditionalGeneration' >>"$log" 2>&1 ||
    fail "transformers $version does not run with the packages of $venv"
