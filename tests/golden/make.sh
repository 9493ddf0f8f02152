#!/bin/sh
# Makes tests/golden/golden.json again, after the networks of models/ have changed:
#   tests/golden/make.sh [PHOTOGRAPHS_DIR]      (default ../shared/faces-open)
set -eu
# ONNX Runtime 1.32 reports each process to its maker unless told not to before it is loaded.
export ORT_DISABLE_TELEMETRY=1
cd "$(dirname "$0")/../.."
venv=.cache/reference/venv
[ -x $venv/bin/python ] || ${PYTHON:-python3} -m venv $venv
cmp -s benches/requirements.txt $venv/installed || {
    $venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --requirement benches/requirements.txt
    cp benches/requirements.txt $venv/installed
}
$venv/bin/python -B tests/golden/make.py "${1:-../shared/faces-open}"
