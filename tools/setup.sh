#!/usr/bin/env bash
# Makes the virtual environment that `make` runs in: `tools/setup.sh DIRECTORY`.
# Installs the system packages it lacks where apt is at hand and we are root, else names them.
set -euo pipefail

venv=$1

fail() {
    echo "gradtrace: $*" >&2
    exit 1
}

recent_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if recent_enough "$name"; then
            echo "$name"
            return
        fi
    done
    return 1
}

apt_install() {
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 1
    echo "gradtrace: installing $*"
    # An out-of-date package list is tried as it is before it is given up.
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! python=$(find_python); then
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
    apt_install python3 python3-venv || true
    python=$(find_python) || fail "Python 3.11 or newer is missing: install it, or name it with PYTHON=..."
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv" || apt_install python3-venv ||
        fail "Python's venv module is missing: install python$version-venv"
fi

# torch.compile builds C++ against Python's headers; the tests that need it are skipped without.
if ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    apt_install g++ libc6-dev || echo "gradtrace: no C++ compiler, so torch.compile is not tested" >&2
fi
if ! "$python" -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' \
    2>/dev/null; then
    apt_install python3-dev || echo "gradtrace: no Python.h, so torch.compile is not tested" >&2
fi

# Exporters and alerts are tested against the real servers; those tests are skipped without, but not
# in CI.
missing=""
for package in prometheus prometheus-alertmanager prometheus-pushgateway; do
    command -v "$package" >/dev/null || missing="$missing $package"
done
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list of words
    apt_install $missing || echo "gradtrace: no$missing, so exporters are not tested against them" >&2
fi

if ! recent_enough "$venv/bin/python"; then
    "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
"${pip[@]}" setuptools
"${pip[@]}" --no-build-isolation --editable '.[dev]'
echo "gradtrace: $venv is ready ($("$venv/bin/python" --version))"
