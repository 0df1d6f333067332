#!/usr/bin/env bash
# Usage: scripts/vlmevalkit.sh VENV CHECKOUT      (through `make vlmevalkit KIT=CHECKOUT`)
# Creates VENV-vlmevalkit beside VENV: what the checkout of VLMEvalKit asks for, in front of the packages of VENV, whose torch
# and transformers it shares. The checkout is not changed.
target=vlmevalkit venv=$1 checkout=$2
side=$venv-vlmevalkit
# shellcheck source=side_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/side_environment.sh"

[ -f "$checkout/run.py" ] && [ -f "$checkout/requirements.txt" ] || {
    echo "make vlmevalkit: no checkout of VLMEvalKit at '$checkout': clone it (git clone https://github.com/open-compass/VLMEvalKit) and give its folder, 'make vlmevalkit KIT=../VLMEvalKit'." >&2
    exit 1
}

create

# Left out: torch and transformers, which are VENV's; and what scores made pictures and video, runs other models or opens pages.
grep -viE '^(torch|torchvision|torchmetrics|transformers|cd-fvd|lpips|openai-clip|timm|sentence_transformers|bert_score|gradio|google-genai|litellm|ipdb|polygon3)([^a-z_-]|$)' \
    "$checkout/requirements.txt" >"$side/requirements.txt"
torch=$("$venv/bin/python" -c 'import torch; print(torch.__version__.split("+")[0])')
echo "torch==$torch" >"$side/constraints.txt"
# rouge_score and ipdb are imported by the kit's benchmarks wherever it starts.
put "$side/bin/python" --constraint "$side/constraints.txt" --requirement "$side/requirements.txt" rouge_score ipdb
# Its minor version is tied to torch's: 2.13 goes with 0.28. Its own requirement would replace the torch of a CPU.
minor=${torch#*.}
put "$side/bin/python" --no-deps "torchvision==0.$((${minor%%.*} + 15)).*"
