#!/usr/bin/env bash
# Usage: scripts/cross_version.sh VENV VERSION      (through `make cross-version`)
# Creates VENV-transformers-VERSION beside VENV: the same Python, torch and packages, with another transformers in front of
# them. pip's output goes to a log; what goes wrong is said in one sentence.
set -uo pipefail

venv=$1 version=$2
side=$venv-transformers-$version
log=$side/install.log

fail() {
    tail -n 5 "$log" >&2 2>/dev/null
    echo "make cross-version: $1 (log: $log)." >&2
    exit 1
}

packages_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

put() {
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        --no-deps --upgrade --target "$packages" "$@" >>"$log" 2>&1 || fail "pip could not install $*"
}

rm -rf "$side"
"$venv/bin/python" -m venv --without-pip "$side" || fail "$venv/bin/python could not create $side"
packages=$(packages_of "$side/bin/python")
packages_of "$venv/bin/python" >"$packages/rest.pth"
put "transformers==$version"
# Only these two are tied to a version of transformers; the rest comes from VENV.
mapfile -t tied < <("$side/bin/python" -c '
from importlib.metadata import requires
for line in requires("transformers"):
    if line.startswith(("tokenizers", "huggingface-hub")) and ";" not in line:
        print(line)')
put "${tied[@]}"
"$side/bin/python" -W ignore -c 'from transformers import LlavaForConditionalGeneration' >>"$log" 2>&1 ||
    fail "transformers $version does not run with the packages of $venv"
