"""The results as a page of Markdown."""
from .measure import Load
from .summary import of, pending_cost, ratio, spread
from .systems import NAMES


def page(results, targets):
    """All of it."""
    plan, versions = results["plan"], results["versions"]
    parts = [
        "# Results of `make bench`\n",
        f"{results['date']}, commit {results['commit']}, on {results['machine']} that client, servers and stores share. "
        f"Redis {versions['redis'].removeprefix('v=')} {'with' if results['aof'] else 'without'} append-only file, "
        f"{versions['nats']}, Python {versions['python']}, Node {versions['node']}, {versions['rust']}. "
        f"{results['rounds']} rounds of {plan['seconds']:g} s (others: {plan['seconds_of_others']:g} s); median, and in "
        "brackets the least and the most of the rounds. How it is measured: [bench/README.md](../README.md).\n",
    ]
    if plan["quick"]:
        parts.append("**A quick run: it shows that everything works; its figures are noise.**\n")
    parts += ["## Targets\n", _targets(targets)]
    for batch in (1, 50):
        cpu, requests, ours, plain = (ratio(results, *pair, Load(64, batch), field) for pair, field in (
            (("bare", "floor"), "proxy_us"), (("bare", "floor"), "requests_per_s"), (("hookgate", "bare"), "proxy_us"),
            (("hookgate-plain", "bare"), "proxy_us")))
        if cpu and ours and plain:
            parts.append(f"At c=64, batch {batch}, claim, publish and settling alone (bare) take {cpu.text(2, 'x')} of the "
                         f"floor's CPU and leave {requests.text(2, 'x')} of its requests/s; hookgate takes "
                         f"{ours.text(2, 'x')} of bare's CPU, without a journal {plain.text(2, 'x')}.\n")
    if results["cells"]:
        parts += ["## Loads\n", *_loads(results)]
    if results["pending"]:
        parts += ["## Cost over pending ids\n", _pending(results)]
    if results["overload"]:
        parts += ["## Overload\n", _overload(results)]
    if results.get("replicas"):
        parts += ["## Several processes\n", _replicas(results)]
    parts += ["## Start and size\n", _starts(results)]
    return "\n".join(parts)


def table(heads, rows):
    """Text on the left, figures on the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _targets(targets):
    words = {True: "yes", False: "**no**", None: "not measured"}
    return table(["target", "wanted", "measured", "holds"],
                 [(row.what + (" (stretch)" if row.stretch else ""), row.wanted, row.measured, words[row.holds])
                  for row in targets])


def _loads(results):
    seen = {Load(cell["connections"], cell["batch"], cell["duplicates"]) for cell in results["cells"]}
    for load in sorted(seen, key=lambda load: (load.duplicates, load.batch, load.connections)):
        duplicates = ", half of the ids sent before" if load.duplicates else ""
        yield f"### {load.connections} at once, {load.batch} records a request{duplicates}\n"
        rows = []
        for name, title in NAMES.items():
            got = {field: of(results, name, load, field) for field in (
                "requests_per_s", "events_per_s", "p50_us", "p99_us", "proxy_us", "redis_us", "nats_us", "rss_mib",
                "load_us", "load_busy")}
            if not got["requests_per_s"]:
                continue
            busy = f"{got['load_us'].median:.0f} µs, {got['load_busy'].median * 100:.0f} %"
            rows.append((title, got["requests_per_s"].text(), f"{got['events_per_s'].median:,.0f}",
                         _ms(got["p50_us"]), _ms(got["p99_us"]), got["proxy_us"].text(1),
                         f"{got['redis_us'].median:,.1f}", f"{got['nats_us'].median:,.1f}",
                         f"{got['rss_mib'].median:,.0f}", busy))
        yield table(["", "requests/s", "events/s", "p50 ms", "p99 ms", "proxy CPU µs a request", "Redis", "NATS",
                     "RSS MiB", "generator"], rows)
    void = [cell for cell in results["cells"] if cell["void"]]
    yield "".join(f"- void: {cell['system']}, {cell['connections']}x{cell['batch']}, round {cell['round'] + 1}: "
                  f"{cell['void']}\n" for cell in void) or "No run is void: every event was counted in the stream.\n"


def _ms(got):
    return spread([value / 1000 for value in got]).text(2)


def _pending(results):
    sizes = sorted({row["pending"] for row in results["pending"]})
    rows = []
    for name in ("hookgate", "python-original"):
        for batch in (1, 50):
            costs = (pending_cost(results, name, batch, size) for size in sizes)
            rows.append((f"{NAMES[name]}, batch {batch}", *(cost.text(1) if cost else "not tried" for cost in costs)))
    return "CPU of proxy and Redis together, µs an event.\n\n" + table(["", *(f"{size:,} pending" for size in sizes)], rows)


def _overload(results):
    rows = [(f"{run['system']}, {run['batch']}, round {run['round'] + 1}", f"{run['peak_per_s']:,.0f}", f"{run['offered_per_s']:,.0f}",
             f"{run['sent_per_s']:,.0f}", f"{run['accepted_per_s']:,.0f}", f"{run['refused']['count']:,}",
             f"{run['refused']['p50_us'] / 1000:,.1f} / {run['refused']['p99_us'] / 1000:,.1f}",
             f"{run['accepted']['p99_us'] / 1000:,.0f}",
             f"{max(run['accepted']['max_us'], run['refused']['max_us']) / 1000:,.0f}",
             run["unanswered"], f"{run['load_busy'] * 100:.0f} %", run["void"] or "")
            for run in sorted(results["overload"], key=lambda run: (run["system"], run["batch"], run["round"]))]
    return table(["system, batch", "peak/s", "due/s", "sent/s", "accepted/s", "503s", "503 p50 / p99 ms", "200 p99 ms",
                  "slowest ms", "unanswered", "generator", "void"], rows)


def _replicas(results):
    rows = []
    for processes, batch in sorted({(row["processes"], row["batch"]) for row in results["replicas"]}):
        got = {field: spread([row[field] for row in results["replicas"] if (row["processes"], row["batch"]) == (processes, batch)])
               for field in ("events_per_s", "proxy_us_per_event", "redis_us_per_event", "nats_us_per_event", "busiest")}
        rows.append((f"{processes}, {batch} records", got["events_per_s"].text(), got["proxy_us_per_event"].text(1),
                     got["redis_us_per_event"].text(1), got["nats_us_per_event"].text(1), got["busiest"].text(2, "x")))
    return "64 requests at once, shared by all processes.\n\n" + table(
        ["processes", "events/s", "proxy CPU µs an event", "Redis", "NATS", "the busiest over an equal share"], rows)


def _starts(results):
    rows = []
    for name, title in NAMES.items():
        took = spread([turn[name] for turn in results["first_answers_ms"] if name in turn])
        if took:
            rows.append((title, took.text()))
    if results["starts_ms"]:
        rows.append(("hookgate again, the stream being there", spread(results["starts_ms"]).text()))
    return (table(["start to first 200, stores up and empty", "ms"], rows) if rows else "") + (
        f"\nRelease binary: {results['binary_bytes'] / 2**20:.1f} MiB.\n")
