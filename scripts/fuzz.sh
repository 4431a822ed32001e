#!/usr/bin/env bash
# Fuzzes every target for SECONDS seconds, on stable Rust, with coverage as the guide: libFuzzer, which comes as source
# in the crate libfuzzer-sys, and the compiler's own instrumentation. What is new stays in target/fuzz/corpus/; what is
# wrong stays in target/fuzz/found/, and belongs into fuzz/seeds/ (and a test) when it is mended.
#
#   scripts/fuzz.sh [TARGET...]        FUZZ_SECONDS=60 by default; RUNS=N instead for a number of executions
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-60}
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(batch signature configuration http)

scripts/ensure-tools.sh fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, these flags are for the program only and not for what runs while it is built.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
build=(cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/fuzz/build --target "$host")
for target in "${targets[@]}"; do build+=(--bin "$target"); done
"${build[@]}"

failed=()
for target in "${targets[@]}"; do
    corpus=target/fuzz/corpus/$target
    found=target/fuzz/found/$target
    mkdir -p "$corpus" "$found"
    limit=(-max_total_time="$seconds")
    [ -z "${RUNS:-}" ] || limit=(-runs="$RUNS")
    # Of a dictionary libFuzzer takes whole words; an input may be long, but most shall be short.
    words=()
    [ ! -e "fuzz/$target.dict" ] || words=(-dict="fuzz/$target.dict")
    log=target/fuzz/$target.log
    printf 'fuzz: %s\n' "$target"
    if "target/fuzz/build/$host/release/$target" "${limit[@]}" "${words[@]}" -max_len=4096 -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$found/" "$corpus" "fuzz/seeds/$target" >"$log" 2>&1; then
        sed -n 's/^stat::number_of_executed_units: */  executions: /p' "$log"
        grep 'DONE' "$log" | sed 's/^/  /'
    else
        tail -n 40 "$log"
        printf 'fuzz: %s FAILED; the input is in %s\n' "$target" "$found"
        failed+=("$target")
    fi
done
[ "${#failed[@]}" -eq 0 ] || exit 1
