#!/usr/bin/env python3
"""What saturates first, and how to split it: computed from measured unit costs. See docs/scaling.md.

    python3 bench/scaling.py --events 5000 --pending 200000 --routes 20      what such an installation needs
    python3 bench/scaling.py --check                                         the prediction against measured loads

Unit costs come from bench/results/results.json (`make bench`) and bench/results/acks.json (bench/acks.py). They are those of the machine
named there: measure on yours.
"""
import argparse
import json
import math
import pathlib
import statistics
import sys

RESULTS = pathlib.Path(__file__).parent / "results"
# What is left of a core for the process, by experience of the loads of `--check`: the rest goes into switches and interrupts.
USABLE = 0.85
# A server that is busier than this answers late: plan below it.
BUSY = 0.7
# Bytes of Redis memory a pending id takes: the SET, and the journal (bench/journal.py).
SET_BYTES, JOURNAL_BYTES = 74, 135
# Bytes an event takes in the stream, with its headers.
STREAM_BYTES = 318
# The look through a journal (src/life/sweep.rs): ids a page, seconds for each page, rest included.
PAGE, PAGE_SECONDS = 1000, 0.29
PARTS = ("proxy", "redis", "nats")


class Costs:
    """µs of CPU a request and an event, by part."""

    def __init__(self, results, connections=64):
        self.by_part = {}
        for part in (*PARTS, "load"):
            one, fifty = (statistics.median(cell[f"{part}_us"] for cell in cells(results, connections, batch)) for batch in (1, 50))
            event = (fifty - one) / 49
            self.by_part[part] = (one - event, event)

    def request(self, part, records):
        """µs of a request with so many new records."""
        fixed, event = self.by_part[part]
        return fixed + records * event


def cells(results, connections, batch):
    """The valid runs of hookgate at a load."""
    found = [cell for cell in results["cells"] if cell["system"] == "hookgate" and not cell["void"]
             and (cell["connections"], cell["batch"], cell["duplicates"]) == (connections, batch, False)]
    if not found:
        sys.exit(f"bench/results/results.json has no run of hookgate at {connections}x{batch}: run `make bench`")
    return found


def check(results):
    """Requests a second when everything shares the cores of the machine, predicted from 64 senders, against three other loads."""
    costs, cores, good = Costs(results), int(results["machine"].split()[0]), True
    for connections, batch in ((256, 1), (16, 50), (64, 10)):
        measured = statistics.median(cell["requests_per_s"] for cell in cells(results, connections, batch))
        predicted = USABLE * cores * 1e6 / sum(costs.request(part, batch) for part in (*PARTS, "load"))
        off = predicted / measured - 1
        good &= abs(off) <= 0.2
        print(f"{connections}x{batch}: {predicted:,.0f} requests/s predicted, {measured:,.0f} measured, {off:+.0%} (at most 20 % off)")
    return good


def plan(opt, results, acks):
    """Prints what is needed."""
    costs = Costs(results)
    per_event = {part: costs.request(part, opt.records) / opt.records for part in PARTS}
    answers = opt.consumers if opt.release == "ack" else 0
    names = {"proxy": "hookgate", "redis": "Redis", "nats": "NATS"}
    for part, name in names.items():
        # A consumer's delivery and acknowledgement cost NATS, whoever releases the id.
        kind = "released" if answers else "plain"
        per_event[part] += (answers or (opt.consumers if part == "nats" else 0)) * acks[kind][name]
    busy = {part: opt.events * cost / 1e6 / USABLE for part, cost in per_event.items()}
    memory = opt.pending * (SET_BYTES + JOURNAL_BYTES * (not opt.no_journal))
    disk = opt.events * 86400 * opt.days * STREAM_BYTES
    replicas, primaries, streams = (max(1, math.ceil(busy[part] / BUSY)) for part in PARTS)
    rows = [
        ("hookgate", f"{per_event['proxy']:.1f}", f"{busy['proxy']:.2f} cores",
         f"{replicas} replicas with a core each" if replicas > 1 else "2 replicas: one may fail"),
        ("Redis", f"{per_event['redis']:.1f}", f"{busy['redis']:.2f} of one core, {size(memory)}",
         "one primary" if primaries == 1 else f"{primaries} primaries (Redis Cluster): a route's keys share a slot"),
        ("NATS", f"{per_event['nats']:.1f}", f"{busy['nats']:.2f} cores and {size(disk)} a copy, for {many(opt.days, 'day')}",
         "one stream" if streams == 1 else f"{streams} streams, led by a server each: split the subjects"),
    ]
    print(f"{opt.events:,} events/s in requests of {opt.records}, {opt.pending:,} ids pending, {many(opt.routes, 'route')}, "
          f"{many(opt.consumers, 'consumer')} of each event, release by {opt.release}\n")
    print(f"{'':10}{'CPU µs an event':>16}  {'busy':52}{'needed'}")
    for name, cost, much, needed in rows:
        print(f"{name:10}{cost:>16}  {much:52}{needed}")
    first = max(busy["redis"], busy["nats"])
    part = "Redis" if busy["redis"] == first else "NATS"
    print(f"\nFirst to saturate: {part}, at {opt.events * BUSY / first:,.0f} events/s on one {'primary' if part == 'Redis' else 'stream leader'}. hookgate itself grows by replicas.")
    if replicas > 1:
        print(f"hookgate's cost is that of a replica with 64 requests at hand. With 8 it was up to {replica_factor(results):.1f}x.")
    alone = opt.events / opt.routes * per_event["redis"] / 1e6 / USABLE
    if primaries > opt.routes or alone > BUSY:
        print(f"A route is on one primary: each of {many(opt.routes, 'route')} would keep one {alone:.2f} busy. Split an entity into several routes, by action or by tenant.")
    if primaries > 1:
        print(f"Connections to Redis: {max(2, replicas) * opt.routes:,} and more, one for each route and replica.")
    if not opt.no_journal:
        print(f"A scan of the journals of {opt.pending:,} ids takes {opt.pending / PAGE * PAGE_SECONDS / 60:,.1f} minutes, rests included: as late may a leftover be found.")


def size(count):
    """Bytes, for a reader."""
    for power, unit in ((40, "TiB"), (30, "GiB")):
        if count >= 2**power:
            return f"{count / 2**power:,.1f} {unit}"
    return f"{count / 2**20:,.0f} MiB"


def many(count, what):
    """1 route, 1,000 routes."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def replica_factor(results):
    """CPU an event of eight processes that share 64 requests over one's."""
    cost = {count: statistics.median(row["proxy_us_per_event"] for row in results["replicas"] if (row["processes"], row["batch"]) == (count, 1)) for count in (1, 8)}
    return cost[8] / cost[1]


def main():
    """The command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--events", type=int, default=1000, metavar="N", help="events a second (default 1000)")
    ap.add_argument("--records", type=int, default=10, metavar="N", help="new records of a request (default 10)")
    ap.add_argument("--pending", type=int, default=100_000, metavar="N", help="pending ids (default 100,000)")
    ap.add_argument("--routes", type=int, default=3, metavar="N", help="routes that share the load (default 3)")
    ap.add_argument("--consumers", type=int, default=1, metavar="N", help="consumers of each event (default 1)")
    ap.add_argument("--release", choices=("explicit", "ack"), default="ack", help="who releases ids (default ack)")
    ap.add_argument("--days", type=int, default=7, metavar="N", help="max_age of the stream (default 7)")
    ap.add_argument("--no-journal", action="store_true", help="journal = false")
    ap.add_argument("--check", action="store_true", help="compare the prediction with measured loads; exit 1 if it is more than 20 %% off")
    opt = ap.parse_args()
    if min(opt.events, opt.records, opt.pending, opt.routes, opt.consumers, opt.days) <= 0:
        ap.error("every number has to be above 0")
    results = json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))
    if opt.check:
        return 0 if check(results) else 1
    plan(opt, results, json.loads((RESULTS / "acks.json").read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
