#!/bin/sh
# Leopard's idefics2_llama3/model_convertor.sh (Idefics2 on Pai-Megatron-Patch) on neva: its flags; --help lists them.
# --print-only (or NEVA_PRINT_ONLY=1) prints the neva command and stops; PYTHON names the interpreter.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "${PYTHON:-python}" -m neva.launchers.idefics2 idefics2_llama3/model_convertor.sh "$@"
