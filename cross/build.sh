#!/usr/bin/env bash
# The release binary for a package. Prints its path.
#
#   cross/build.sh amd64|arm64|armhf
#
# With the target's standard library installed (rustup target add …) the usual compiler is taken, otherwise Debian's
# (toolchain.sh). FEATURES="--no-default-features" leaves MongoDB out: half of the binary.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/lib.sh

describe "${1:?amd64, arm64 or armhf}"
own=$(dpkg --print-architecture)
name=${target//-/_}
options=(--release --locked --target "$target")
if [ "$arch" = "$own" ]; then
    need build-essential
else
    need "gcc-${gnu//_/-}" "libc6-dev-$arch-cross" debian-archive-keyring
    export "CARGO_TARGET_$(tr "[:lower:]" "[:upper:]" <<< "$name")_LINKER=$gnu-gcc"
    if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
        RUSTC=$(cross/toolchain.sh "$arch")
        export RUSTC
        # Its own folder, or each change of the compiler would build everything again.
        options+=(--target-dir target/cross)
    fi
fi
# No folder of the machine that built it is in the binary, so that the same sources make the same bytes elsewhere.
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$home=/cargo --remap-path-prefix=$PWD=/rollcall"
export "CFLAGS_$name=-ffile-prefix-map=$home=/cargo -ffile-prefix-map=$PWD=/rollcall"
# No time is in the binary; with this variable, cargo builds all C code anew, and what uses it, after each commit and
# each time that this script is called by another one.
unset SOURCE_DATE_EPOCH
# shellcheck disable=SC2086 # several words
${CARGO:-cargo} build "${options[@]}" ${FEATURES:-} >&2
folder=target
[ -z "${RUSTC:-}" ] || folder=target/cross
echo "$folder/$target/release/rollcall"
