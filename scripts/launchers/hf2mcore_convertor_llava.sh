#!/bin/sh
# Pai-Megatron-Patch's toolkits/model_checkpoints_convertor/llava/hf2mcore_convertor_llava.sh on neva: the same 8 or 9 arguments.
# --print-only (or NEVA_PRINT_ONLY=1) prints the neva command and stops; PYTHON names the interpreter.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "${PYTHON:-python}" -m neva.launchers.pai_convert "$@"
