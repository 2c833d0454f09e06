#!/usr/bin/env bash
# Builds .venv from uv.lock on a machine that has only Python 3.11+ and PyPI, so that
# `make detection` works in a fresh clone. Does nothing when .venv already matches the files below.
# Exit status: 0 ready, 4 the environment cannot be built (one line says why).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly root=$PWD
readonly stamp=.venv/.normbench-setup
readonly uv_requirements=packaging/uv-requirements.txt

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 4
}

# What .venv was built from. The folder is part of it: an environment does not survive a move.
fingerprint() {
    cat pyproject.toml uv.lock packaging/pure-python-build/*.* | cksum
    printf '%s\n' "$root"
}

# The newest Python that every locked package has wheels for, else python3 if it is newer.
find_python() {
    local name
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        # Run it: a version manager leaves names on PATH that start nothing.
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH; install one (for example 'apt install python3.11 python3.11-venv') and try again"
}

# Whether this uv starts and accepts [tool.uv] required-version; needs no network.
suits() {
    "$1" export --quiet --frozen --only-group detection >/dev/null 2>&1
}

# Prints the path of a uv: the one on PATH, or our own, installed from the hashes in $uv_requirements.
find_uv() {
    local python=$1
    if command -v uv >/dev/null && suits uv; then
        command -v uv
        return
    fi
    if [ ! -x .uv/bin/uv ] || ! suits .uv/bin/uv; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "the package python3-venv is missing for $python; install it ('apt install python3-venv') or install uv, and try again"
        # Built aside and renamed, so that an interrupted or a concurrent set-up leaves no half a uv.
        mkdir -p .uv/bin
        build=$(mktemp -d .uv/build.XXXXXX)
        trap 'rm -rf "$build"' EXIT
        "$python" -m venv "$build" >&2 || fail "'$python -m venv' failed (see above)"
        "$build/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            --only-binary :all: --require-hashes --requirement "$uv_requirements" >&2 ||
            fail "pip could not install uv (see above); check the connection to PyPI, or install uv"
        mv -f "$build/bin/uv" .uv/bin/uv
    fi
    printf '%s\n' "$root/.uv/bin/uv"
}

# Free space (in GB) and file system of a folder, or of its nearest existing parent.
disk() {
    local folder=$1
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    df -Pk "$folder" | awk 'NR == 2 { print int($4 * 1.024e-6), $1, $6 }'
}

require_space() {
    local folder=$1 needed=$2 free
    read -r free _ < <(disk "$folder")
    [ "$free" -ge "$needed" ] ||
        fail "$folder has $free GB free and $needed GB are needed: free some space and try again"
}

# Says what the installation costs before it starts, and refuses if a disk is too small.
announce() {
    local cache=$1 where=$2 download size
    if [ "$(uname -s)" = Linux ]; then
        # Measured with torch 2.15: PyPI's Linux wheels need CUDA's libraries even on a CPU.
        download=3.1 size=6
    else
        download=0.3 size=2 # an estimate from uv.lock; not measured
    fi
    if [ "$where" = together ]; then
        require_space "$root/.venv" $((size + 1))
        printf 'setup: downloads up to %s GB and takes %s GB of disk, which .venv shares with the cache %s\n' \
            "$download" "$size" "$cache" >&2
    else
        require_space "$root/.venv" "$size"
        require_space "$cache" $((size + 1))
        printf 'setup: downloads up to %s GB and takes %s GB of disk in .venv and as much in the cache %s\n' \
            "$download" "$size" "$cache" >&2
    fi
}

main() {
    if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(fingerprint)" = "$(<"$stamp")" ]; then
        return
    fi
    if [ -f "$stamp" ] && [ "$(tail -n 1 "$stamp")" != "$root" ]; then
        rm -rf .venv # moved or copied here: its scripts name the old folder
    fi
    local python uv
    python=$(find_python) || exit
    uv=$(find_uv "$python") || exit

    # Only this project's environment, with a Python that is already here.
    unset VIRTUAL_ENV
    export UV_PROJECT_ENVIRONMENT=$root/.venv UV_PYTHON_DOWNLOADS=never
    [ -x .venv/bin/python ] || export UV_PYTHON=${UV_PYTHON:-$python}

    local cache cache_disk venv_disk where=together
    cache=$("$uv" cache dir)
    cache_disk=$(disk "$cache") venv_disk=$(disk "$root/.venv")
    if [ "${cache_disk#* }" != "${venv_disk#* }" ]; then
        where=apart
        # uv cannot link across file systems; without this it warns and copies all the same.
        export UV_LINK_MODE=${UV_LINK_MODE:-copy}
    fi
    if [ ! -f "$stamp" ] && "$uv" sync --locked --dry-run 2>&1 | grep -q 'Would download'; then
        announce "$cache" "$where"
    fi

    rm -f "$stamp"
    if [ -t 2 ]; then
        "$uv" sync --locked
    else
        # No progress bars here: keep the lines on downloads, drop the list of 90 packages.
        "$uv" sync --locked 2>&1 | { grep -v '^ [-+~] ' || true; } >&2
    fi || fail "'uv sync' failed (see above)"
    fingerprint >"$stamp"
}

main
