#!/usr/bin/env bash
# Real Redis, real NATS and hookgate on free loopback ports: shows webhooks become events, checks what comes
# out, and goes on until Ctrl-C. With ONCE=1 it ends by itself; the exit code says whether all was right.
# shellcheck disable=SC2317 # functions that are called by name
set -euo pipefail
cd "$(dirname "$0")/.."

hookgate=${HOOKGATE_BINARY:-${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-target}}/debug/hookgate}
redis_server=${HOOKGATE_REDIS_SERVER:-redis-server}
nats_server=${HOOKGATE_NATS_SERVER:-nats-server}
pending=vmh:beteiligte:create_pending
config=(--config config/default.toml)

# Debian keeps servers where an ordinary user's PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# What the caller has set for a hookgate or a Redis of their own does not concern these.
while read -r name; do unset "$name"; done < <(compgen -e HOOKGATE__)
unset REDISCLI_AUTH

# ---- Starting and stopping ----

scratch=''
pids=() # of what runs, oldest first

finish() {
    local code=$? i
    trap '' INT TERM HUP
    trap - EXIT
    # Youngest first: hookgate settles what it has in hand while its stores are still there.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do stop "${pids[i]}"; done
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
scratch=$(mktemp -d)

alive() { kill -0 "$1" 2>/dev/null; }
stop() { # pid; SIGTERM, and SIGKILL for who is not gone 10 s later
    local end=$((SECONDS + 10))
    kill "$1" 2>/dev/null || true
    while alive "$1" && [ "$SECONDS" -lt "$end" ]; do sleep 0.02; done
    if alive "$1"; then kill -KILL "$1" 2>/dev/null || true; fi
    wait "$1" 2>/dev/null || true
}
# Runs a command beside this script. A session of its own keeps the terminal's Ctrl-C from it, so that
# `finish` decides on the order; and it dies with this script, even if that is killed.
launch() { # log file, command...; with `output` set, only its stderr goes to the log
    : >"$1"
    setsid setpriv --pdeathsig KILL "${@:2}" >>"${output:-$1}" 2>>"$1" </dev/null &
    pid=$!
    pids+=("$pid")
}

if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; else bold='' plain=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
indent() { sed "s/^/${1:-  }/"; }
die() {
    local log
    printf '\ndemo: %s\n' "$*" >&2
    for log in "$scratch"/*.log; do
        [ -s "$log" ] || continue
        printf -- '--- the end of %s\n' "${log##*/}" >&2
        tail -n 15 "$log" >&2
    done
    exit 1
}
# Whether the command succeeds before the process ends and before 20 s are over.
within_deadline() { # pid, command...
    local end=$((SECONDS + 20))
    until "${@:2}" >/dev/null 2>&1; do
        alive "$1" && [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}
# Starts a server on a free port; on another one if somebody else takes it meanwhile. Only the server's own
# log tells whether the port is its own: an answer on it might come from that somebody.
start_on_free_port() { # name, line of its log that says it listens, function that launches it on $port
    local attempt
    for attempt in 1 2 3 4 5; do
        port=$(free_port)
        "$3"
        if within_deadline "$pid" grep -q "$2" "$scratch/$1.log" && alive "$pid"; then return; fi
        stop "$pid"
        unset 'pids[-1]'
        grep -qi 'address already in use' "$scratch/$1.log" || break
        echo "  port $port was taken meanwhile; trying another for $1"
    done
    die "$1 did not start (attempt $attempt)"
}
redis_on_port() {
    launch "$scratch/redis.log" "$redis_server" --bind 127.0.0.1 --port "$port" \
        --dir "$scratch/redis" --save '' --appendonly yes --maxmemory-policy noeviction
}
nats_on_port() {
    launch "$scratch/nats.log" "$nats_server" -js -sd "$scratch/nats" -a 127.0.0.1 -p "$port"
}

# ---- Looking and checking ----

failed=0
check() { # what, expected, got
    if [ "$2" = "$3" ]; then
        printf '  ok      %s\n' "$1"
    else
        printf '  FAILED  %s\n          expected  %s\n          got       %s\n' "$1" "$2" "$3"
        failed=1
    fi
}
http() { curl -q -sS --noproxy '*' --max-time 15 "$@"; }
address_of() { # webhooks or probes; hookgate's log says which port it was given
    sed -n "s/.*listening for $1.*address=\([0-9.:]*\).*/\1/p" "$scratch/hookgate.log"
}
ready() { http -f "http://$(address_of probes)/readyz"; }
redis() { redis-cli -p "$redis_port" -n 1 "$@"; }
answer() { printf '{"status":"received","action":"create","new_ids_count":%s,"total_ids_in_batch":%s}' "$1" "$2"; }
published() { # ids in all, as the subscriber and the log have it
    [ "$(grep -c '"entity_id"' "$scratch/events")" -ge "$1" ] &&
        [ "$(grep -c 'Create-Event emittiert' "$scratch/hookgate.log")" -ge "$1" ]
}

shown_events=0 shown_log=0
# Posts a body, and shows what comes of it: the answer, hookgate's own lines, the events.
webhook() { # body, new ids, ids in the batch, events seen in all after it
    local body=$1 got lines
    indent '  > ' <<<"$body"
    got=$(http -X POST "$url" -H 'Content-Type: application/json' -d "$body") || got="no answer"
    echo "  < $got"
    check "the answer" "$(answer "$2" "$3")" "$got"

    within_deadline "$tail_pid" published "$4" || true
    echo "  hookgate's log:"
    lines=$(grep -E 'empfangen|gefunden|hinzugefügt|emittiert' "$scratch/hookgate.log" || true)
    tail -n +$((shown_log + 1)) <<<"$lines" | sed -E 's/^[^ ]+ +/    /; s/ route=.*//'
    shown_log=$(wc -l <<<"$lines")
    lines=$(grep '"entity_id"' "$scratch/events" || true)
    if [ "$(grep -c . <<<"$lines")" -gt "$shown_events" ]; then
        echo "  hookgate tail:"
        tail -n +$((shown_events + 1)) <<<"$lines" | indent '    '
        shown_events=$(wc -l <<<"$lines")
    else
        echo "  hookgate tail: no new event"
    fi
}

# ---- The demo ----

title "Starting Redis, NATS and hookgate, with their data in $scratch (removed at the end)"
mkdir "$scratch/redis" "$scratch/nats"
start_on_free_port redis 'Ready to accept connections' redis_on_port
redis_port=$port
start_on_free_port nats 'Server is ready' nats_on_port
nats_port=$port

export HOOKGATE__REDIS__URL="redis://127.0.0.1:$redis_port/1" HOOKGATE__NATS__URL="nats://127.0.0.1:$nats_port"
export HOOKGATE__LOG__FORMAT=text HOOKGATE__SERVER__DRAIN_DELAY=0s
# Port 0: the system gives a free one, and hookgate says in its log which.
export HOOKGATE__SERVER__LISTEN=127.0.0.1:0 HOOKGATE__ADMIN__LISTEN=127.0.0.1:0
launch "$scratch/hookgate.log" "$hookgate" "${config[@]}" serve
within_deadline "$pid" ready || die "hookgate did not become ready"
output=$scratch/events launch "$scratch/tail.log" "$hookgate" "${config[@]}" tail
tail_pid=$pid
within_deadline "$pid" grep -q '^Subscribing on' "$scratch/tail.log" || die "hookgate tail did not subscribe"

host=$(address_of webhooks)
url="http://$host/vmh/webhook/beteiligte/create"
printf '  redis-server  127.0.0.1:%s\n  nats-server   127.0.0.1:%s\n' "$redis_port" "$nats_port"
printf '  hookgate      %s, status page http://%s/\n' "$host" "$(address_of probes)"

sample='[
  {"id": "entity-123", "name": "Max Mustermann", "createdAt": "2026-02-07T10:00:00Z"},
  {"id": "entity-456", "name": "Maria Schmidt"}
]'
title "1. A webhook with two new entities"
webhook "$sample" 2 2 2
title "2. The same again, as EspoCRM may send it: both ids are pending, so there is no second event"
webhook "$sample" 0 2 2
title "3. A third entity"
webhook '[{"id": "entity-789"}]' 1 1 3

lines=0
for line in "VMH Webhook Beteiligte Create empfangen" "Create Entity ID gefunden: entity-123" \
    "2 neue IDs zur Create-Sync-Queue hinzugefügt" "Create-Event emittiert für ID: entity-123"; do
    if grep -qF "$line" "$scratch/hookgate.log"; then lines=$((lines + 1)); fi
done
check "all four kinds of log lines" 4 "$lines"

title "4. What is pending, until a consumer has processed it: redis-cli -n 1 SMEMBERS $pending"
members=$(redis SMEMBERS "$pending" | sort)
indent <<<"$members"
three=$'entity-123\nentity-456\nentity-789'
check "three ids are pending" "${three//$'\n'/ }" "${members//$'\n'/ }"

title "5. The events in full, as hookgate tail (or: nats sub 'vmh.>') has printed them"
indent <"$scratch/events"
seen=$(sed -n 's/.*"entity_id":"\([^"]*\)".*/\1/p' "$scratch/events" | sort)
check "exactly one event an id" "${three//$'\n'/ }" "${seen//$'\n'/ }"

if [ "$failed" = 1 ]; then die "not all was right: see FAILED above"; fi
title "All checks passed."
if [ "${ONCE:-}" = 1 ]; then exit 0; fi

title "Go on in another terminal, in this folder; events appear here. Ctrl-C ends everything."
cat <<EOT
  curl -X POST $url -H 'Content-Type: application/json' -d '[{"id": "test-123", "name": "Test"}]'
  redis-cli -p $redis_port -n 1 SMEMBERS $pending
  redis-cli -p $redis_port -n 1 SREM $pending test-123
  HOOKGATE__NATS__URL=nats://127.0.0.1:$nats_port $hookgate tail

EOT
# From here on Ctrl-C is the right way to end.
trap 'exit 0' INT
servers=("${pids[@]}")
setsid setpriv --pdeathsig KILL tail -n "+$(($(wc -l <"$scratch/events") + 1))" -f "$scratch/events" </dev/null &
pid=$!
pids+=("$pid")
wait -n "${servers[@]}" "$pid" || true
die "one of the processes ended by itself"
