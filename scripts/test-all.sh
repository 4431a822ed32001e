#!/usr/bin/env bash
# What needs more than Rust, Redis and NATS: every executable tests/PART/run, in alphabetical order. Each installs its
# tools, starts and ends its own servers, prints a line a check, and fails if one does. Arguments name parts to run
# alone: scripts/test-all.sh k8s
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

parts=("$@")
if [ "${#parts[@]}" -eq 0 ]; then
    for run in tests/*/run; do parts+=("$(basename "$(dirname "$run")")"); done
fi
passed=0 failed=()
for part in "${parts[@]}"; do
    run=tests/$part/run began=$SECONDS
    printf '\n-- %s\n' "$part"
    # A part that lost its mode would else be left out, and nobody would notice.
    if [ ! -x "$run" ]; then
        printf -- '-- %s: FAILED: %s is not there or not executable\n' "$part" "$run"
        failed+=("$part")
    elif "$run"; then
        printf -- '-- %s: ok, %d s\n' "$part" "$((SECONDS - began))"
        passed=$((passed + 1))
    else
        printf -- '-- %s: FAILED after %d s\n' "$part" "$((SECONDS - began))"
        failed+=("$part")
    fi
done
[ "${#failed[@]}" -eq 0 ] || printf '\nfailed: %s; one alone: make test-all ONLY=PART\n' "${failed[*]}"
printf '\n%d passed, %d failed\n' "$passed" "${#failed[@]}"
[ "${#failed[@]}" -eq 0 ]
