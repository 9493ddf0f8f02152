# What the scripts of this folder share; sourced with the project's folder as working directory.
# shellcheck shell=bash

die() { echo "cross: $*" >&2; exit 1; }

# The name of an architecture, Debian's or that of `uname -m` → Debian's, Rust's target, that of the GNU tools, `uname -m`.
describe() { # arm64|amd64|armhf
    case $1 in
        amd64 | x86_64) arch=amd64 target=x86_64-unknown-linux-gnu gnu=x86_64-linux-gnu machine=x86_64 ;;
        arm64 | aarch64) arch=arm64 target=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu machine=aarch64 ;;
        armhf | armv7l) arch=armhf target=armv7-unknown-linux-gnueabihf gnu=arm-linux-gnueabihf machine=armv7l ;;
        *) die "no package for '$1': there is amd64, arm64 and armhf" ;;
    esac
}

# Installs Debian packages that are missing, where that is allowed; otherwise says the command.
need() {
    local package missing=()
    command -v dpkg-query >/dev/null || die "this needs Debian's tools (dpkg-deb, apt): use a Debian or Ubuntu machine or container"
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" = 0 ] || die "please install first: sudo apt install ${missing[*]}"
    echo "cross: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Fetches packages of one suite of Debian, for any architecture, and unpacks them: nothing is installed, and apt's own
# settings stay as they are. The archive is the one that this machine is set up with; apt checks the signatures as usual.
# A name that ends in * stands for those packages of the suite that the first package depends on.
unpack_debs() { # destination, suite as apt names it (bookworm-security), package:architecture…
    local destination=$1 suite=$2 own keys=/usr/share/keyrings/debian-archive-keyring.gpg uri apt at=0 arch name names=()
    shift 2
    [ -s $keys ] || die "the keys of Debian's archive are missing: apt install debian-archive-keyring"
    own=$(dpkg --print-architecture)
    uri=$(archive_of "$suite")
    apt=$(mktemp -d)
    mkdir -p "$destination" "$apt"/{lists/partial,archives/partial}
    echo "deb [signed-by=$keys] $uri $suite main" > "$apt/sources.list"
    local options=(-qq -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists="$apt/lists" -o Dir::Cache::Archives="$apt/archives" -o Dir::State::status=/dev/null
        -o APT::Architecture="$own" -o APT::Sandbox::User="$(id -un)")
    for arch in $(printf '%s\n' "$own" "${@##*:}" | sort -u); do
        options+=(-o "APT::Architectures::$((at++))=$arch")
    done
    apt-get "${options[@]}" update
    for name in "$@"; do
        case $name in
            *'*'*) mapfile -t -O ${#names[@]} names < <(apt-cache "${options[@]}" depends --recurse "$1" |
                grep -xE "${name%%\**}[0-9.]+" | sort -u | sed "s/\$/:${name##*:}/") ;;
            *) names+=("$name") ;;
        esac
    done
    (cd "$apt/archives" && apt-get "${options[@]}" download "${names[@]}")
    for name in "$apt"/archives/*.deb; do dpkg-deb -x "$name" "$destination"; done
    rm -rf "$apt"
}

# The address from which this machine takes a suite, or one of the same archive.
archive_of() { # suite
    local listed
    listed=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages')
    awk -v suite="$1" '$2 == suite { print $1; found = 1; exit } END { exit !found }' <<< "$listed" && return
    # Backports lie beside the suite that they belong to.
    awk -v suite="${1%-backports}" '$2 == suite { print $1; found = 1; exit } END { exit !found }' <<< "$listed" && return
    die "apt knows no archive with '$1' here"
}
