#!/usr/bin/env bash
# Installs from Debian's packages what hookgate's commands need and this machine lacks, says what and why,
# and leaves nothing running. HOOKGATE_REDIS_SERVER and HOOKGATE_NATS_SERVER may name other binaries.
set -euo pipefail

say() { printf 'tools: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then
    say "cargo is in $HOME/.cargo/bin, which is not in PATH; add it"
    exit 1
fi
if ! have cargo; then
    say "cargo is missing: install Rust 1.89 or newer (rustup, see https://www.rust-lang.org/tools/install) and try again"
    exit 1
fi

packages=()
want() { # package, why
    say "$1 is missing: $2"
    packages+=("$1")
}
have "${HOOKGATE_REDIS_SERVER:-redis-server}" || want redis-server "the pending SETs live in it"
have redis-cli || want redis-tools "redis-cli shows the pending SET in the demo"
have "${HOOKGATE_NATS_SERVER:-nats-server}" || want nats-server "events are published to it"
have curl || want curl "it sends the webhooks of the demo"
have cc || { want gcc "Rust links with it"; want libc6-dev "Rust links with it"; }
have setpriv || want util-linux "setpriv ends the servers of a test that dies"
[ "${#packages[@]}" -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! have sudo; then
        say "install them as root: apt-get install ${packages[*]}"
        exit 1
    fi
    as_root=(sudo)
fi
if ! have apt-get; then
    say "this is no Debian: install ${packages[*]} in this system's own way and try again"
    exit 1
fi

# Debian starts a server as soon as it is installed. This policy says no; it goes again with this script.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod +x "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
say "installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND="$DEBIAN_FRONTEND" apt-get -qq install -y --no-install-recommends "${packages[@]}" >/dev/null
# Nor shall they start with the machine, unless somebody wants them to.
if have systemctl && [ -d /run/systemd/system ]; then
    for package in "${packages[@]}"; do
        case "$package" in
            redis-server | nats-server) "${as_root[@]}" systemctl disable --now --quiet "$package" || true ;;
        esac
    done
fi
say "done"
