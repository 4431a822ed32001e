#!/usr/bin/env bash
# What is in hookgate: `scripts/audit.sh deny` checks licences, sources and crates (deny.toml, without a network once
# the crates are here); without an argument also known vulnerabilities (needs the RustSec database from GitHub, or a
# mirror of it that git's `url.<mirror>.insteadOf` names), a binary that carries the list of its crates, and that list
# as CycloneDX. Tools go into target/tools, pinned; building them takes minutes, once.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

scripts/ensure-tools.sh
tools=$PWD/target/tools/cargo
tool() { # name, version, why
    [ "$(cat "$tools/$1.version" 2>/dev/null)" = "$2" ] && [ -x "$tools/bin/$1" ] && return
    echo "audit: building $1 $2: $3"
    cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" --version "$2" "$1"
    echo "$2" >"$tools/$1.version"
}
PATH=$tools/bin:$PATH

tool cargo-deny 0.20.2 "licences, sources, crates and advisories"
for folder in . fuzz bench; do
    cargo deny --locked --manifest-path "$folder/Cargo.toml" --log-level error --config "$PWD/deny.toml" check licenses bans sources --hide-inclusion-graph
    echo "ok      licences, crates and sources of $folder/Cargo.lock"
done
[ "${1:-}" != deny ] || exit 0

mkdir -p target/audit
failed=0
for folder in . fuzz bench; do
    if cargo deny --locked --manifest-path "$folder/Cargo.toml" --log-level error --config "$PWD/deny.toml" check advisories >target/audit/advisories.txt 2>&1; then
        echo "ok      no known vulnerability in $folder/Cargo.lock"
        continue
    fi
    failed=1
    if grep -qiE 'fetch|failed to (load|acquire|clone)|network|resolve' target/audit/advisories.txt &&
        ! grep -qE '^error\[(vulnerability|unsound|yanked|notice)' target/audit/advisories.txt; then
        echo "FAILED  advisories: the RustSec database could not be fetched, so nothing is known of vulnerabilities:"
    else
        echo "FAILED  advisories of $folder/Cargo.lock:"
    fi
    sed 's/^/        /' target/audit/advisories.txt | head -n 60
done

tool cargo-auditable 0.7.7 "builds a binary that carries the list of its crates"
cargo auditable build --locked --release --target-dir target/audit/build
install -m 755 target/audit/build/release/hookgate target/audit/hookgate
grep -q '\.dep-v0' target/audit/hookgate || { echo "FAILED  the binary carries no list"; exit 1; }
echo "ok      target/audit/hookgate carries the list of its crates"

tool cargo-cyclonedx 0.5.9 "writes the list as CycloneDX"
cargo cyclonedx --format json --spec-version 1.5 --override-filename hookgate.cdx --quiet
mv hookgate.cdx.json target/audit/hookgate.cdx.json
grep -q '"bomFormat": *"CycloneDX"' target/audit/hookgate.cdx.json && grep -q 'async-nats' target/audit/hookgate.cdx.json
echo "ok      target/audit/hookgate.cdx.json ($(grep -c '"purl": *"pkg:cargo' target/audit/hookgate.cdx.json) crates)"
exit "$failed"
