#!/usr/bin/env bash
# The Debian package: daemon, networks, ONNX Runtime, configuration, unit, documentation, completions.
#
#   cross/deb.sh amd64|arm64|armhf      → target/deb/rollcall_VERSION_ARCH.deb      (make deb ARCH=…)
#
# The same commit gives the same bytes, with the same compiler. Installs the Debian packages that it needs when it may, and
# otherwise says which. VERSION=… gives the package another version than Cargo.toml has; BINARY=… packs a program that was
# built otherwise (`cross`, `cargo zigbuild`).
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/lib.sh

describe "${1:?amd64, arm64 or armhf}"
command -v "${CARGO:-cargo}" >/dev/null || die "a Rust toolchain is needed (rustup)"
need dpkg binutils python3
python3 -m pip --version >/dev/null 2>&1 || need python3-pip
[ "$arch" != armhf ] || [ -n "${UNTRIED:-}" ] ||
    die "no package for armhf yet: it was never built nor run (docs/package.md, 32-bit ARM). UNTRIED=1 tries all the same"
umask 022
export LC_ALL=C TZ=UTC

cargo_version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
version=${VERSION:-$cargo_version}
# Every file is as old as the commit: no time of the build is in the package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
export SOURCE_DATE_EPOCH

models/fetch.sh runtime "$machine"
binary=${BINARY:-$(cross/build.sh "$arch")}
runtime=.cache/onnxruntime/$machine

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

put() { # mode, file, place in the package
    install -D -m "$1" "$2" "$root/$3"
}
fill() { # template, place
    mkdir -p "$(dirname "$2")"
    sed -e "s|@VERSION@|$version|g" -e "s|@ARCH@|$arch|g" "$1" > "$2"
}

# The program, and what it cannot run without.
put 755 "$binary" usr/bin/rollcall
put 644 "$runtime/libonnxruntime.so" usr/lib/rollcall/libonnxruntime.so
# That for armhf comes with its symbols, a third of its size.
[ "$arch" != armhf ] || "$gnu-strip" --strip-unneeded "$root/usr/lib/rollcall/libonnxruntime.so"
for file in models/manifest.toml models/*.onnx; do put 644 "$file" "usr/share/rollcall/$file"; done
# Twice: the second one tells the postinst whether the first is still as it came.
put 644 cross/debian/config.toml etc/rollcall/config.toml
put 644 cross/debian/config.toml usr/share/rollcall/config.toml
for file in systemd/*.service; do put 644 "$file" "lib/systemd/system/${file##*/}"; done
put 644 systemd/camera-command.conf usr/share/rollcall/systemd/camera-command.conf
put 644 systemd/sysusers.conf usr/lib/sysusers.d/rollcall.conf
put 644 systemd/tmpfiles.conf usr/lib/tmpfiles.d/rollcall.conf

# Completions are the same for every architecture: where the program cannot run here, this machine's own writes them.
speaker=$binary
"$speaker" --version >/dev/null 2>&1 || speaker=$(cross/build.sh "$(dpkg --print-architecture)")
mkdir -p "$root"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
"$speaker" completions bash > "$root/usr/share/bash-completion/completions/rollcall"
"$speaker" completions zsh > "$root/usr/share/zsh/vendor-completions/_rollcall"
"$speaker" completions fish > "$root/usr/share/fish/vendor_completions.d/rollcall.fish"

# Documentation, laid as in the sources, so that its links hold.
doc=usr/share/doc/rollcall
for file in README.md config.toml models/README.md models/NOTICE $(find docs -type f); do put 644 "$file" "$doc/$file"; done
put 644 cross/debian/copyright "$doc/copyright"
fill cross/debian/rollcall.1 "$root/usr/share/man/man1/rollcall.1"
sed "1s/(.*)/($version)/" cross/debian/changelog > "$root/$doc/changelog"
put 644 "$runtime/ThirdPartyNotices.txt" "$doc/onnxruntime-notices.txt"
# shellcheck disable=SC2086 # several words
python3 cross/licences.py "$target" ${FEATURES:-} > "$root/$doc/crates-licences.txt"
# shellcheck disable=SC2086 # several words
python3 cross/sbom.py "$version" "$target" "$runtime/libonnxruntime.so" ${FEATURES:-} > "$root/$doc/sbom.cyclonedx.json"
put 644 cross/debian/lintian-overrides usr/share/lintian/overrides/rollcall
gzip -9n "$root/$doc"/{changelog,onnxruntime-notices.txt,crates-licences.txt,sbom.cyclonedx.json} "$root/usr/share/man/man1/rollcall.1"

# The lowest versions of glibc and libstdc++ that have the symbols which program and library ask for. dpkg-shlibdeps would
# need the other architecture's libraries installed.
newest() { # prefix of a symbol version
    readelf -V "$root/usr/bin/rollcall" "$root/usr/lib/rollcall/libonnxruntime.so" |
        grep -oE "\b$1_[0-9][0-9.]*" | sed "s/^$1_//" | sort -uV | tail -n 1
}
# https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html
case $(newest GLIBCXX) in
    3.4.?|3.4.1?|3.4.2[0-2]) libstdcxx=6 ;;
    3.4.2[3-5]) libstdcxx=8 ;;
    3.4.2[6-8]) libstdcxx=9 ;;
    3.4.29) libstdcxx=11 ;;
    3.4.30) libstdcxx=12 ;;
    *) die "which libstdc++ has GLIBCXX_$(newest GLIBCXX)?" ;;
esac
depends="libc6 (>= $(newest GLIBC)), libgcc-s1 (>= 4.5), libstdc++6 (>= $libstdcxx)"

control=$root/DEBIAN
mkdir -p "$control"
for script in postinst prerm postrm; do install -m 755 "cross/debian/$script" "$control/$script"; done
(cd "$root" && find etc -type f -printf '/%p\n' | sort) > "$control/conffiles"
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) > "$control/md5sums"
maintainer="The rollcall project <rollcall@rollcall.invalid>"
[ -z "${DEBEMAIL:-}" ] || maintainer="${DEBFULLNAME:-rollcall} <$DEBEMAIL>"
size=$(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
fill cross/debian/control "$control/control"
sed -i -e "s|@DEPENDS@|$depends|" -e "s|@MAINTAINER@|$maintainer|" -e "s|@SIZE@|$size|" "$control/control"

find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p target/deb
package=target/deb/rollcall_${version}_$arch.deb
dpkg-deb --build --root-owner-group -Zxz "$root" "$package" >/dev/null
printf '%s: %s MB, installed %s MB\n' "$package" \
    "$(stat -c %s "$package" | awk '{ printf "%.1f", $1 / 1e6 }')" "$(awk -v kib="$size" 'BEGIN { printf "%.1f", kib * 1024 / 1e6 }')"
