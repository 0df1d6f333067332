#!/usr/bin/env bash
# Usage: scripts/setup.sh VENV_DIR      (through `make setup`; PYTHON=… chooses the interpreter)
# Creates a virtual environment and installs neva into it. What goes wrong is said in one sentence; pip's output goes to a log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$1
log=$venv/install.log

fail() {
    echo "make setup: $1" >&2
    exit 1
}

# Keep in step with python_requires in setup.cfg.
supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; }

version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "which does not run"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        supported "$candidate" && { echo "$candidate"; return; }
    done
    candidate=${PYTHON:-python3}
    fail "neva needs Python 3.10 to 3.13, found $candidate ($(version "$candidate")): install one, or name it with 'make setup PYTHON=/path/to/python3.11'."
}

explain_failure() {
    if grep -qE 'No space left on device' "$log"; then
        fail "the disk of $PWD or of the temporary folder is full: free about 6 GB and call make again (log: $log)."
    elif grep -qE "No such file or directory: '[^']*(cc|\+\+|clang)'|command '[^']*(cc|\+\+|clang)' failed|Unknown compiler" "$log"; then
        fail "a package has no ready-made wheel for this platform and no compiler is there to build it: install one (Debian, Ubuntu: apt install g++ python3-dev) and call make again (log: $log)."
    elif grep -qE "(NewConnection|ConnectTimeout|NameResolution|SSL|Proxy)Error|Read timed out|Connection (refused|reset)|Network is unreachable" "$log"; then
        fail "the package index could not be reached: check the network, or set PIP_INDEX_URL to a mirror, and call make again (log: $log)."
    fi
    tail -n 15 "$log" >&2
    fail "pip failed, its last lines are above (log: $log)."
}

# An environment of an interpreter that is gone or unsupported cannot be repaired by pip.
if [ -e "$venv" ] && ! supported "$venv/bin/python"; then
    rm -rf "$venv"
fi
if [ ! -e "$venv" ]; then
    python=$(find_python) || exit 1
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python ($(version "$python")) comes without its venv module: install it (Debian, Ubuntu: apt install python3-venv) and call make again."
    "$python" -m venv "$venv" || fail "$python could not create $PWD/$venv."
fi

echo "Installing neva into $venv with Python $(version "$venv/bin/python"): minutes and gigabytes the first time (log: $log)"
started=$SECONDS
"$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
    --editable '.[dev,quickstart,serve]' >"$log" 2>&1 || explain_failure
echo "Installed in $((SECONDS - started)) s."
