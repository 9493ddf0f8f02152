#!/usr/bin/env bash
# A Rust compiler that builds for arm64 or armhf, from Debian's own packages, for machines on which rustup can fetch no
# further target: unpacked below .cache/cross, nothing is installed. Prints the path of the compiler.
#
#   cross/toolchain.sh arm64|armhf
#
# Debian 12 (bookworm) only: its security suite keeps a Rust new enough for its browsers, with the standard library for
# every architecture. What it makes needs glibc 2.34 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/lib.sh

describe "${1:?arm64 or armhf}"
folder=$PWD/.cache/cross/rust-$arch
if [ ! -x "$folder/rustc" ]; then
    echo "cross: fetching Debian's Rust for $arch …" >&2
    own=$(dpkg --print-architecture)
    rm -rf "$folder.half"
    unpack_debs "$folder.half" bookworm-security \
        "rustc-web:$own" "libstd-rust-web-*:$own" "libllvm*:$own" "libstd-rust-web-dev:$own" "libstd-rust-web-dev:$arch" >&2
    # The compiler finds its own libraries beside it, wherever the folder lies.
    cat > "$folder.half/rustc" <<'SH'
#!/bin/sh
root=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)/usr
export LD_LIBRARY_PATH="$(echo "$root"/lib/*-linux-gnu)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$root/bin/rustc" "$@"
SH
    chmod +x "$folder.half/rustc"
    "$folder.half/rustc" --version >&2
    mv "$folder.half" "$folder"
fi
echo "$folder/rustc"
