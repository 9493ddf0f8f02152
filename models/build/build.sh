#!/bin/sh
# Makes the networks of models/ again, from published packages, and compares every digest with manifest.toml.
#   models/build/build.sh                all: int8 networks and fp32 twins
#   models/build/build.sh --fp32-only    the fp32 twins only, into models/fp32/
# Other options are those of build.py. Needs python3 (3.11 or newer, with pip and venv), npm, and the registries.
set -eu
# ONNX Runtime 1.32 reports each process to its maker unless told not to before it is loaded.
export ORT_DISABLE_TELEMETRY=1
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
${PYTHON:-python3} -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
    --requirement "$here/requirements.txt"
"$tools/bin/python" -B "$here/build.py" "$@"
