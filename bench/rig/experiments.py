"""What is measured beside the loads: cost over pending ids, overload, start."""
import itertools

from .measure import Load, send, warm_up, wrong_with
from .processes import RigError
from .stores import Stores
from .systems import System

# Events of a burst: few against the smallest set, so that it stays as small as it says.
BURST = 1000
# Requests of the original's algorithm at each size: it reads the whole set for each of them.
BEARABLE = {1_000: 200, 100_000: 10, 1_000_000: 2}
# Who spends CPU.
SPENT = ("proxy", "redis", "nats")
# More than server.max_in_flight, so that there is an excess to refuse.
CONNECTIONS_OVER_LIMIT = 2048


def pending_costs(paths, sizes, rounds, bursts, say):
    """CPU of proxy and Redis an event, with so many ids pending; hookgate and the original on the same set."""
    stores, rows = Stores(paths.work, "pending"), []
    hookgate = System("hookgate", paths, stores)
    original = System("python-original", paths, stores)
    for system in (hookgate, original):
        warm_up(paths, system, 0.3)
    hookgate.settle()
    stores.forget()
    for size in sizes:
        stores.fill(size)
    say("pending: the sets are made")
    for turn in range(rounds):
        for load in (Load(64, 1), Load(16, 50)):
            for size, total in _in_turns(paths, hookgate, load, sizes, bursts).items():
                rows.append({"pending": size, "round": turn, **total})
            for size in sizes:
                if size in BEARABLE and (turn == 0 or size < 1_000_000):
                    requests = min(BEARABLE[size], BURST // load.batch)
                    with stores.pending(size):
                        burst = _burst(paths, original, load, requests * load.batch)
                    rows.append({"pending": size, "round": turn, **_an_event(burst)})
        say(f"pending: round {turn + 1} done")
    original.stop()
    hookgate.stop()
    stores.stop()
    return rows


def _in_turns(paths, system, load, sizes, bursts):
    """The same few events again and again, each time with another set, so that each meets the machine in all its moods."""
    totals = {}
    for _ in range(bursts):
        for size in sizes:
            with system.stores.pending(size):
                burst = _burst(paths, system, load, BURST)
            before = totals.get(size)
            totals[size] = burst if before is None else {
                **burst, "void": before["void"] or burst["void"],
                **{field: before[field] + burst[field] for field in ("events", *SPENT)}}
    return {size: _an_event(total) for size, total in totals.items()}


def _burst(paths, system, load, events):
    """Sends so many, and takes them out again: the set is as it was before. CPU seconds."""
    load = load._replace(connections=min(load.connections, events // load.batch))
    messages, before = system.stores.messages(), system.cpu()
    nonce, counts = send(paths, system, load, 30, requests=events // load.batch)
    system.settle()
    after = system.cpu()
    void = wrong_with(counts, system.stores.messages() - messages)
    system.stores.release(nonce, counts["fresh_sent"])
    return {"system": system.name, **load._asdict(), "events": counts["fresh_sent"], "void": void,
            **{part: after[part] - before[part] for part in SPENT}}


def _an_event(burst):
    """The same with CPU µs an event."""
    return {**{field: value for field, value in burst.items() if field not in SPENT},
            **{f"{part}_us_per_event": burst[part] / burst["events"] * 1e6 for part in SPENT}}


def overload(paths, name, batch, seconds, turn):
    """The peak, then three times as much: falling due whether or not earlier requests are answered."""
    system = System(name, paths)
    stores = name != "floor"
    warm_up(paths, system, seconds / 6)
    peak = 0.0
    for connections in (64, 256):
        _, counts = send(paths, system, Load(connections, batch), seconds / 2)
        peak = max(peak, counts["counted"] / counts["counted_over_s"])
    if stores:
        system.settle()
        system.stores.forget()
    load = Load(CONNECTIONS_OVER_LIMIT, batch)
    _, counts = send(paths, system, load, seconds, rate=3 * peak, settle=seconds / 4)
    if stores:
        system.settle()
    messages = system.stores.messages() if stores else counts["fresh_accepted"]
    system.stop()
    none = {"count": 0, "p50_us": 0, "p99_us": 0, "max_us": 0}
    done, refused = (counts["statuses"].get(status, none) for status in ("200", "503"))
    others = set(counts["statuses"]) - {"200", "503"}
    void = None
    if not counts["fresh_accepted"] <= messages <= counts["fresh_sent"]:
        void = (f"{counts['fresh_accepted']} ids accepted of {counts['fresh_sent']} sent, {messages} events in the "
                "stream")
    elif others or counts["dead"]:
        void = f"answers of other kinds: {sorted(others)}, connections that could not be made again: {counts['dead']}"
    return {
        "system": name, "batch": batch, "round": turn, "void": void, "peak_per_s": peak, "offered_per_s": 3 * peak,
        "sent_per_s": counts["requests"] / seconds, "accepted_per_s": counts["counted"] / counts["counted_over_s"],
        "unsent": counts["unsent"], "unanswered": counts["unanswered"] + counts["broken"], "accepted": done, "refused": refused,
        "load_busy": counts["cpu_s"] / counts["took_s"],
    }


def starts(paths, times):
    """Milliseconds from the start of hookgate to its first 200: with empty stores, and `times` again after that."""
    stores, took = Stores(paths.work, "start"), []
    for _ in range(times + 1):
        system = System("hookgate", paths, stores)
        took.append(system.start_ms)
        system.stop()
        if system.process.child.returncode != 0:
            raise RigError(f"hookgate ended with {system.process.child.returncode}:\n{system.process.tail()}")
    stores.stop()
    return took[0], took[1:]
