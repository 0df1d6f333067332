# Sourced by the scripts that create an environment beside `venv`, whose packages stand in front of those of `venv`. They set
# `target` (of make), `venv` and `side` before. pip's output goes to a log; what goes wrong is said in one sentence.
set -uo pipefail
log=$side/install.log

fail() {
    tail -n 5 "$log" >&2 2>/dev/null
    echo "make $target: $1 (log: $log)." >&2
    exit 1
}

packages_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# Arguments: of python -m venv.
create() {
    rm -rf "$side"
    "$venv/bin/python" -m venv "$@" "$side" || fail "$venv/bin/python could not create $side"
    packages=$(packages_of "$side/bin/python")
    packages_of "$venv/bin/python" >"$packages/rest.pth"
}

# Arguments: the Python whose pip it is, and those of pip install.
put() {
    "$1" -m pip install --no-input --disable-pip-version-check --progress-bar off "${@:2}" >>"$log" 2>&1 ||
        fail "pip could not install ${*:2}"
}
