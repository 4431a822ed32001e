"""The targets, and whether they hold in these results. `python -m rig.targets FILE [--strict]` reads written ones."""
import json
import sys
from typing import NamedTuple, Optional

from .measure import Load
from .summary import of, pending_costs, ratio, replica_costs, spread, sums
from .systems import OTHERS

MIB = 2**20


class Target(NamedTuple):
    """One line."""

    what: str
    wanted: str
    measured: str
    holds: Optional[bool]              # None: not measured
    stretch: bool = False


def most(what, limit, got, stretch=None, digits=2, unit=""):
    """At most so much."""
    return _bound(what, "at most", limit, got, stretch, digits, unit, lambda value, bound: value <= bound)


def least(what, limit, got, stretch=None, digits=2, unit=""):
    """At least so much."""
    return _bound(what, "at least", limit, got, stretch, digits, unit, lambda value, bound: value >= bound)


def _bound(what, word, limit, got, stretch, digits, unit, holds):
    rows = [(limit, False)] + ([(stretch, True)] if stretch else [])
    return [Target(what, f"{word} {bound:g}{unit}", got.text(digits, unit) if got else "not measured",
                   holds(got.median, bound) if got else None, ambitious) for bound, ambitious in rows]


def check(results):
    """All targets."""
    rows = []
    for batch, limit in ((1, 1.2), (50, 1.12)):
        rows += most(f"CPU of the proxy a request, no journal, over bare's, c=64, batch {batch}", limit,
                     ratio(results, "hookgate-plain", "bare", Load(64, batch), "proxy_us"), unit="x")
    rows += most("p99, no journal, over bare's, c=64, batch 50", 2,
                 ratio(results, "hookgate-plain", "bare", Load(64, 50), "p99_us"), unit="x")
    for what, parts, limit in (("of the proxy", ("proxy_us",), 1.1), ("of Redis", ("redis_us",), 1.6),
                               ("of NATS", ("nats_us",), 1.03), ("of all three", ("proxy_us", "redis_us", "nats_us"), 1.15)):
        rows += most(f"CPU {what} a request with the journal over without, c=64, batch 50", limit,
                     sums(results, "hookgate", "hookgate-plain", Load(64, 50), parts), unit="x")
    for other, batch, limit in (("python", 1, 12), ("python", 50, 6), ("node", 1, 3), ("node", 50, 4)):
        rows += least(f"requests/s over honest {other.capitalize()}'s, c=64, batch {batch}", limit,
                      ratio(results, "hookgate", f"{other}-honest", Load(64, batch), "requests_per_s"), unit="x")
    rows += [row for load in _loads(results) for row in _latency(results, load)]
    rows += _pending(results)
    for batch, limit in ((1, 1.0), (50, 3.0)):
        got = of(results, "hookgate", Load(1, batch), "p50_us")
        rows += most(f"one sender, one request at a time: p50, batch {batch}", limit,
                     got and spread([value / 1000 for value in got]), unit=" ms")
    memory = [cell["rss_mib"] for cell in results["cells"] if cell["system"] == "hookgate" and cell["connections"] == 256]
    rows += most("most memory resident at c=256", 40, spread(memory) and spread([max(memory)]), digits=1, unit=" MiB")
    for what, took in (("stores up", results["starts_ms"]), (
            "stores up and empty (the stream is made)",
            [turn["hookgate"] for turn in results["first_answers_ms"] if "hookgate" in turn])):
        rows += most(f"start to first 200, {what}", 150, spread(took), digits=0, unit=" ms")
    rows += most("release binary", 12, spread([results["binary_bytes"] / MIB]), unit=" MiB")
    for batch in (1, 50):
        rows += _overload(results, batch)
    for batch in (1, 50):
        for count in (2, 4, 8):
            rows += most(f"CPU an event of {count} processes over one's, batch {batch}", 1.15,
                         replica_costs(results, batch, count), unit="x")
    measured = sum(len(results.get(part, ())) for part in ("cells", "pending", "overload", "replicas"))
    void = len(void_runs(results))
    rows.append(Target("every accepted event is in the stream", "0 void runs", f"{void} of {measured}",
                       void == 0 if measured else None))
    return rows


def _loads(results):
    seen = {Load(cell["connections"], cell["batch"], cell["duplicates"]) for cell in results["cells"]}
    return sorted(seen, key=lambda load: (load.duplicates, load.batch, load.connections))


def _latency(results, load):
    ours = of(results, "hookgate", load, "p99_us")
    theirs = {name: got for name in OTHERS if (got := of(results, name, load, "p99_us"))}
    if not ours or not theirs:
        return []
    best = min(theirs, key=lambda name: theirs[name].median)
    what = f"p99 below all others', c={load.connections}, batch {load.batch}{', 50 % duplicates' * load.duplicates}"
    return [Target(what, f"below {theirs[best].median / 1000:,.2f} ms ({best})", f"{ours.median / 1000:,.2f} ms",
                   ours.median < theirs[best].median)]


def _pending(results):
    rows = []
    for batch in (1, 50):
        small, large = (pending_costs(results, "hookgate", batch, size) for size in (1_000, 5_000_000))
        got = spread([large[turn] / small[turn] for turn in sorted(small.keys() & large.keys())])
        rows += most(f"CPU of proxy and Redis an event, 5 M pending over 1 k, batch {batch}", 1.4, got, unit="x")
    return rows


def _overload(results, batch):
    good = [run for run in results["overload"] if run["batch"] == batch and not run["void"]]
    runs, floor = ([run for run in good if run["system"] == name] for name in ("hookgate", "floor"))
    what = f"overload at 3x the peak, batch {batch}: "
    # Latencies of answers; what was never answered is worse than any.
    slowest = [max(run["accepted"]["max_us"], run["refused"]["max_us"]) / 1e6 for run in runs]
    unanswered = sum(run["unanswered"] for run in runs)
    kept = {name: {run["round"]: run["accepted_per_s"] / run["peak_per_s"] for run in some}
            for name, some in (("hookgate", runs), ("floor", floor))}
    if batch == 1:
        # Clients, server and stores share two cores: the floor says what so many connections cost them all.
        throughput = least(what + "throughput over the peak, over the floor's quotient", 0.95,
                           spread([kept["hookgate"][turn] / kept["floor"][turn] for turn in kept["hookgate"].keys() & kept["floor"].keys()]),
                           unit="x")
    else:
        throughput = least(what + "throughput over the peak", 0.9, spread(list(kept["hookgate"].values())), unit="x")
    if runs:
        # The generator shares the cores: it may not get as many requests out as fall due.
        sent = spread([run["sent_per_s"] / run["peak_per_s"] for run in runs])
        throughput = [row._replace(measured=f"{row.measured}, at {sent.text(1, 'x')} sent") for row in throughput]
    return [
        *throughput,
        *least(what + "refused with 503, or held back with no connection free (else there was no excess)", 1,
               spread([run["refused"]["count"] + run["unsent"] for run in runs]), digits=0),
        *most(what + "p99 of the 503s", 1, spread([run["refused"]["p99_us"] / 1e6 for run in runs]), unit=" s"),
        *most(what + "slowest answer of all", 8, spread(slowest), unit=" s"),
        *most(what + "requests without an answer", 0, spread([unanswered]) if runs else None, digits=0),
    ]


def void_runs(results):
    """Runs that lost something or were disturbed."""
    return [row for part in ("cells", "pending", "overload", "replicas") for row in results.get(part, ()) if row["void"]]


def lines(rows):
    """A line a target."""
    words = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}
    width = max(len(row.what) for row in rows) + 10
    shown = []
    for row in rows:
        what = row.what + (" (stretch)" if row.stretch else "")
        shown.append(f"{words[row.holds]:14} {what:{width}}  {row.wanted:32}  {row.measured}")
    counted = {word: sum(row.holds is key for row in rows) for key, word in words.items()}
    return "\n".join([*shown, ", ".join(f"{count} {word}" for word, count in counted.items())])


def main():
    """Check a file of results."""
    words = [word for word in sys.argv[1:] if word != "--strict"]
    with open(words[0], encoding="utf-8") as file:
        rows = check(json.load(file))
    print(lines(rows))
    return 1 if "--strict" in sys.argv and any(row.holds is False and not row.stretch for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
