#!/usr/bin/env bash
# Runs the program of an arm64 (or armhf) package in QEMU's user mode beside that of this machine's package, and compares:
# the same decisions, the same templates.
#
#   cross/check.sh [arm64|armhf] [FOLDER of photographs, by default the demo's]
#
# Both packages must be in target/deb (make deb ARCH=…). With models/fp32 there (make fp32), the fp32 networks are compared
# too. QEMU 10 is needed, which Debian 12 has in its backports: 7.2 crashes in ONNX Runtime. The processor is that of a
# Raspberry Pi 4, so that an instruction which that one lacks is found here.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/lib.sh

describe "${1:-arm64}"
photographs=${2:-.cache/photos}
own=$(dpkg --print-architecture)
need python3 debian-archive-keyring
[ -d "$photographs" ] || models/fetch.sh photos

newest_package() { # architecture
    local package
    # shellcheck disable=SC2012 # our own names
    package=$(ls -t target/deb/rollcall_*_"$1".deb 2>/dev/null | head -n 1)
    echo "${package:?none for $1 in target/deb: make deb ARCH=$1}"
}

case $arch in
    arm64) emulator=qemu-aarch64 processor=cortex-a72 ;;
    armhf) emulator=qemu-arm processor=cortex-a7 ;;
    *) die "nothing to emulate for $arch" ;;
esac
tools=.cache/cross/qemu
if [ ! -d $tools ]; then
    unpack_debs $tools.half bookworm-backports "qemu-user:$own"
    mv $tools.half $tools
fi
sysroot=.cache/cross/sysroot-$arch
if [ ! -d "$sysroot" ]; then
    unpack_debs "$sysroot.half" bookworm "libc6:$arch" "libgcc-s1:$arch" "libstdc++6:$arch"
    mv "$sysroot.half" "$sysroot"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for which in "$own" "$arch"; do
    package=$(newest_package "$which")
    echo "$package"
    dpkg-deb -x "$package" "$work/$which"
done

for precision in int8 fp32; do
    models=$work/$own/usr/share/rollcall/models
    if [ $precision = fp32 ]; then
        [ -d models/fp32 ] || { echo "fp32: not compared (make fp32 makes the networks)"; continue; }
        models=models
    fi
    python3 cross/compare.py --precision $precision --models "$models" --photographs "$photographs" \
        --here "$work/$own/usr/bin/rollcall" --here-library "$work/$own/usr/lib/rollcall/libonnxruntime.so" \
        --there "$tools/usr/bin/$emulator -cpu $processor -L $sysroot $work/$arch/usr/bin/rollcall" \
        --there-library "$work/$arch/usr/lib/rollcall/libonnxruntime.so"
done
