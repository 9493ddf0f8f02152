#!/usr/bin/env bash
# Runs the tests, then says which were skipped and why (`make test`). Arguments choose tests: --test NAME, --lib, ...
#
# A test that needs what not every machine has stands in a module `needs_NAME`, and `has_NAME` below
# finds out whether it is there. This script skips the tests whose need is missing; without it they
# fail and say what they need.
#
#   FACES_OPEN   the folder of the photographs of many people (default: ../shared/faces-open)
#   VIDEO_OPEN   the folder of the clips of people (default: ../shared/video-open)
#   FIELD_CASES  the folder of inputs of bug reports (default: ../shared/field-cases)
#   ONLY         needs, with blanks between them: only tests that have one of them run. Not set: all.
#   MAY_SKIP     the needs that may be missing, with blanks between them; if another one is missing,
#                no test runs and the script fails. Not set: any may be missing. Empty: none may.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

NEEDS=(photographs field_cases clips ffmpeg fp32 libreoffice mounts root)
hint_photographs() { echo "photographs of many people: set FACES_OPEN to the folder of faces-open"; }
hint_field_cases() { echo "inputs of bug reports: set FIELD_CASES to the folder of field-cases"; }
hint_clips() { echo "clips of people: set VIDEO_OPEN to the folder of video-open, and install ffmpeg"; }
hint_ffmpeg() { echo "ffmpeg: apt install ffmpeg"; }
hint_fp32() { echo "the fp32 twins of the networks: run make fp32 (needs npm)"; }
hint_libreoffice() { echo "LibreOffice: apt install libreoffice-calc-nogui"; }
hint_mounts() {
    echo "a file system of their own: run them as root, or allow user namespaces to your user" \
        "(sysctl kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns)"
}
hint_root() { echo "ext4 on a loop device: run them as root, a container with --privileged; needs e2fsprogs"; }

has_photographs() { [ -f "${FACES_OPEN:-../shared/faces-open}/identify.csv" ]; }
has_clips() { has_ffmpeg && [ -f "${VIDEO_OPEN:-../shared/video-open}/index.csv" ]; }
has_ffmpeg() { command -v ffmpeg >/dev/null; }
has_field_cases() { [ -f "${FIELD_CASES:-../shared/field-cases}/face.jpg" ]; }
has_fp32() { [ -f models/fp32/fr_feature.onnx ]; }
has_libreoffice() { command -v soffice >/dev/null; }
# As tests/support/volume.rs mounts: ext4 as root, else memory in a user namespace.
has_mounts() {
    if [ "$(id -u)" = 0 ]; then has_root; else
        unshare --mount --propagation private --user --map-root-user \
            mount -t tmpfs tmpfs "$scratch" 2>"$scratch/why"
    fi
}
has_root() {
    # shellcheck disable=SC2016 # the inner shell has its own arguments
    [ "$(id -u)" = 0 ] && unshare --mount --propagation private sh -ec '
        truncate -s 8M "$1/image"
        mkfs.ext4 -q -F "$1/image"
        mkdir -p "$1/volume"
        mount -o loop "$1/image" "$1/volume"
        test -w /sys/fs/ext4' sh "$scratch" >"$scratch/why" 2>&1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
missing=()
for need in "${NEEDS[@]}"; do
    "has_$need" || missing+=("$need")
done
for need in "${missing[@]}"; do
    [[ -z "${MAY_SKIP+set}" || " $MAY_SKIP " = *" $need "* ]] && continue
    echo "tests/run.sh: nothing ran: these tests may not be skipped (MAY_SKIP='$MAY_SKIP')," \
        "and they need $("hint_$need")" >&2
    exit 1
done

cargo=${CARGO:-cargo}
status=0
if command -v cargo-nextest >/dev/null; then
    filter='all()'
    [ -z "${ONLY:-}" ] || filter="test(/(^|::)needs_(${ONLY// /|})::/)"
    for need in "${missing[@]}"; do filter+=" & not test(/(^|::)needs_$need::/)"; done
    "$cargo" nextest run --no-fail-fast -E "$filter" "$@" || status=$?
    names() { "$cargo" nextest list --cargo-quiet --message-format oneline "$@"; }
else
    filters=()
    for need in ${ONLY:-}; do filters+=("needs_$need::"); done
    for need in "${missing[@]}"; do filters+=(--skip "needs_$need::"); done
    "$cargo" test --no-fail-fast "$@" -- "${filters[@]}" || status=$?
    names() { "$cargo" test --quiet "$@" -- --list | grep ': test$'; }
fi

# A test with two needs counts once, with the first that is missing.
if [ ${#missing[@]} -gt 0 ]; then
    names "$@" 2>/dev/null >"$scratch/names" || true
    for need in "${missing[@]}"; do
        skipped=$(grep -c "needs_$need::" "$scratch/names" || true)
        sed -i "/needs_$need::/d" "$scratch/names"
        [ "$skipped" = 0 ] || echo "skipped $skipped test(s) that need $("hint_$need")"
    done
fi
exit $status
