#!/usr/bin/env bash
# Builds the image hookgate:VERSION from k8s/image/Containerfile, with whichever of docker, podman and buildah works
# here; HOOKGATE_ENGINE names one. With `--binary` only the binary that goes into it: static, and the same bytes from
# the same commit and compiler in whatever folder. HOOKGATE_REVISION says the commit where there is no git.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'image: %s\n' "$*"; }
die() {
    printf 'image: %s\n' "$*" >&2
    exit 1
}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
scripts/ensure-tools.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=${IMAGE:-hookgate:$version}
# What /v1/status and the metrics call the revision: the commit, and whether anything differs from it. A folder that is
# no clone has none, unless whoever builds says it.
# A folder of another user is looked at too: it is about to be built, after all.
in_git() { git -c "safe.directory=$(pwd -P)" "$@" 2>/dev/null; }
if [ -z "${HOOKGATE_REVISION:-}" ] && [ "$(in_git rev-parse --show-toplevel)" = "$(pwd -P)" ]; then
    HOOKGATE_REVISION=$(in_git describe --always --abbrev=40 --exclude='*' --dirty) || true
fi
export HOOKGATE_REVISION=${HOOKGATE_REVISION:-unknown}

# With a target named, build scripts and macros, which can't be static, are built for the host by themselves.
triple=$(rustc -vV | sed -n 's/^host: //p')
case $triple in
    *-linux-gnu | *-linux-musl) ;;
    *) die "this is $triple; the image needs a binary for Linux: build it there" ;;
esac
cargo_home=${CARGO_HOME:-$HOME/.cargo}
# Paths of this machine would make every folder's binary another one, and the time that mimalloc's C writes down every
# build's. No symbols: they are a fifth of it.
RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/hookgate --remap-path-prefix=$cargo_home=/cargo" \
CFLAGS="-ffile-prefix-map=$PWD=/hookgate -ffile-prefix-map=$cargo_home=/cargo" \
SOURCE_DATE_EPOCH=0 CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=target/image/build \
    cargo build --locked --release --target "$triple"
install -m 555 "target/image/build/$triple/release/hookgate" target/image/hookgate
touch -d @0 target/image/hookgate # its date is in the image, too
say "target/image/hookgate, $(stat -c %s target/image/hookgate) bytes, revision $HOOKGATE_REVISION, sha256 $(sha256sum <target/image/hookgate | cut -c 1-64)"
[ "${1:-}" != --binary ] || exit 0

works() { # engine; a docker without its daemon is none
    case $1 in
        docker | podman) "$1" info >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}
engine=${HOOKGATE_ENGINE:-}
for candidate in docker podman buildah; do
    if [ -z "$engine" ] && works "$candidate"; then engine=$candidate; fi
done
[ -n "$engine" ] || die "none of docker, podman and buildah works here: start one, or install buildah (apt-get install buildah)"

arguments=(--file k8s/image/Containerfile --build-arg "VERSION=$version" --build-arg "REVISION=$HOOKGATE_REVISION" --tag "$name" .)
# One date for everything: podman and buildah make the same image every time, docker the same layer.
case $engine in
    docker) SOURCE_DATE_EPOCH=0 DOCKER_BUILDKIT=1 docker build "${arguments[@]}" ;;
    podman) podman build --timestamp 0 "${arguments[@]}" ;;
    buildah)
        # Options for machines where a build may make no namespaces, and for images kept elsewhere.
        read -ra everywhere <<<"${HOOKGATE_BUILDAH:-}"
        read -ra building <<<"${HOOKGATE_BUD:-}"
        buildah "${everywhere[@]}" bud "${building[@]}" --timestamp 0 "${arguments[@]}"
        ;;
    *) die "HOOKGATE_ENGINE=$engine is none of docker, podman, buildah" ;;
esac
say "$name, made by $engine"
