#!/usr/bin/env bash
# Real Redis, real NATS and hookgate on free loopback ports: shows webhooks become events, checks what comes
# out, and goes on until Ctrl-C. With ONCE=1 it ends by itself; the exit code says whether all was right.
set -euo pipefail

hookgate=${HOOKGATE_BINARY:-target/debug/hookgate}
scratch=$(mktemp -d)
pids=()
failed=0

finish() {
    code=$?
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || title() { printf '\n%s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }
check() { # what, expected, got
    if [ "$2" = "$3" ]; then
        printf '  ok      %s\n' "$1"
    else
        printf '  FAILED  %s\n          expected %s\n          got      %s\n' "$1" "$2" "$3"
        failed=1
    fi
}
until_ok() { # what, command...
    local what=$1 end=$((SECONDS + 20))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "$what did not happen within 20 s; logs: $(tail -n 5 "$scratch"/*.log)"
        sleep 0.05
    done
}
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
alive() { kill -0 "$1" 2>/dev/null; }

# Starts a server on a free port, and on another one if somebody takes it meanwhile. Sets port and pid.
start() { # name, probe (given the port), command with PORT in it...
    local name=$1 probe=$2 end try
    shift 2
    for try in 1 2 3 4 5; do
        port=$(free_port)
        "${@//PORT/$port}" >>"$scratch/$name.log" 2>&1 &
        pid=$!
        end=$((SECONDS + 10))
        while alive "$pid" && [ "$SECONDS" -lt "$end" ]; do
            if "$probe" "$port" >/dev/null 2>&1 && alive "$pid"; then
                pids+=("$pid")
                return
            fi
            sleep 0.05
        done
        kill "$pid" 2>/dev/null || true
    done
    die "$name did not start in $try attempts: $(tail -n 5 "$scratch/$name.log")"
}
redis_answers() { [ "$(redis-cli -p "$1" ping)" = PONG ]; }
nats_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1" && read -r -t 2 line <&3 && [[ $line == INFO* ]]); }
hookgate_is_ready() { grep -q ' ready' "$scratch/hookgate.log"; }

for name in $(compgen -e HOOKGATE__ || true); do unset "$name"; done

title "Starting Redis, NATS and hookgate (everything in $scratch, gone at the end)"
mkdir "$scratch/redis" "$scratch/nats"
start redis redis_answers "${HOOKGATE_REDIS_SERVER:-redis-server}" --bind 127.0.0.1 --port PORT --dir "$scratch/redis" \
    --save '' --appendonly yes --maxmemory-policy noeviction
redis_port=$port
start nats nats_answers "${HOOKGATE_NATS_SERVER:-nats-server}" -js -sd "$scratch/nats" -a 127.0.0.1 -p PORT
nats_port=$port
export HOOKGATE__REDIS__URL="redis://127.0.0.1:$redis_port/1" HOOKGATE__NATS__URL="nats://127.0.0.1:$nats_port"
export HOOKGATE__LOG__FORMAT=text HOOKGATE__SERVER__DRAIN_DELAY=0s

# The ports may be 0: hookgate says in its log which ones it got.
HOOKGATE__SERVER__LISTEN=127.0.0.1:0 HOOKGATE__ADMIN__LISTEN=127.0.0.1:0 \
    "$hookgate" --config config/default.toml serve >"$scratch/hookgate.log" 2>&1 &
pids+=("$!")
until_ok "hookgate being ready" hookgate_is_ready
webhooks=$(sed -n 's/.*listening for webhooks.*address=\([0-9.:]*\).*/\1/p' "$scratch/hookgate.log")
probes=$(sed -n 's/.*listening for probes.*address=\([0-9.:]*\).*/\1/p' "$scratch/hookgate.log")
curl -fsS "http://$probes/readyz" >/dev/null || die "/readyz does not say 200"
"$hookgate" --config config/default.toml tail >"$scratch/events" 2>"$scratch/tail.log" &
pids+=("$!")
until_ok "the subscription" grep -q '^Subscribing on' "$scratch/tail.log"
url="http://$webhooks/vmh/webhook/beteiligte/create"
printf '  redis-server  127.0.0.1:%s   nats-server  127.0.0.1:%s   hookgate  %s\n' "$redis_port" "$nats_port" "$webhooks"

sample='[
  {"id": "entity-123", "name": "Max Mustermann", "createdAt": "2026-02-07T10:00:00Z"},
  {"id": "entity-456", "name": "Maria Schmidt"}
]'
post() { curl -sS -X POST "$url" -H 'Content-Type: application/json' -d "$1"; }

title "A webhook with two new entities"
first=$(post "$sample")
echo "  $first"
title "The same webhook again: both are pending, nothing is published"
second=$(post "$sample")
echo "  $second"
title "A third entity"
third=$(post '[{"id": "entity-789"}]')
echo "  $third"

title "redis-cli -n 1 SMEMBERS vmh:beteiligte:create_pending"
redis-cli -p "$redis_port" -n 1 SMEMBERS vmh:beteiligte:create_pending | sed 's/^/  /'

three_events() { [ "$(grep -c '^\[#' "$scratch/events")" -ge 3 ]; }
until_ok "the arrival of three events" three_events
title "hookgate tail (or: nats sub 'vmh.>')"
sed 's/^/  /' "$scratch/events"

title "hookgate's log"
grep -E 'empfangen|gefunden|hinzugefügt|emittiert' "$scratch/hookgate.log" | sed -E 's/^[^ ]+ +/  /; s/ route=.*//'

title "Checks"
answer() { printf '{"status":"received","action":"create","new_ids_count":%s,"total_ids_in_batch":%s}' "$1" "$2"; }
check "both entities of the first webhook are new" "$(answer 2 2)" "$first"
check "none of the second one is" "$(answer 0 2)" "$second"
check "the third entity is new" "$(answer 1 1)" "$third"
check "three ids are pending" "3" "$(redis-cli -p "$redis_port" -n 1 SCARD vmh:beteiligte:create_pending)"
check "one event an id was published" "entity-123 entity-456 entity-789 " \
    "$(sed -n 's/.*"entity_id":"\([^"]*\)".*/\1/p' "$scratch/events" | sort | tr '\n' ' ')"

if [ "${ONCE:-}" = 1 ] || [ "$failed" = 1 ]; then
    exit "$failed"
fi

# Ctrl-C is how it ends from here on.
trap "exit 0" INT
title "Go on in another terminal; events appear here. Ctrl-C ends everything."
cat <<EOT
  curl -X POST $url -H 'Content-Type: application/json' -d '[{"id": "test-123", "name": "Test"}]'
  redis-cli -p $redis_port -n 1 SMEMBERS vmh:beteiligte:create_pending
  redis-cli -p $redis_port -n 1 SREM vmh:beteiligte:create_pending test-123
  HOOKGATE__NATS__URL=nats://127.0.0.1:$nats_port $hookgate tail

EOT
tail -n 0 -f "$scratch/events" &
pids+=("$!")
wait "$!"
