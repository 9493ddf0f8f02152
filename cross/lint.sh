#!/usr/bin/env bash
# Debian's own checker over every package in target/deb. Errors and warnings fail; what is overridden has its reason in
# cross/debian/lintian-overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/lib.sh

need lintian
lintian --allow-root --fail-on error,warning --tag-display-limit 0 target/deb/*.deb
