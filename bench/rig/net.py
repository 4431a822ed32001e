"""Proxy and stores with a network between them: `make bench NET=1`; see bench/README.md. Needs root.

The generator and the proxy are in one network namespace, Redis and NATS in another. Between them lies a wire that takes its time
(bench/net/wire.c). One round after the other: each delay, and each system at each load in turns.
"""
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from .__main__ import Paths, say, surroundings_of
from .measure import Load, cell, warm_up
from .processes import RigError, stop_all
from .summary import of, ratio, spread
from .systems import NAMES, System
from .tables import table

DELAYS_MS = (0, 0.2, 1)
# A claim and a publication, one after the other; the figure is rounded to a tenth, as the clock of the wire is.
ROUND_TRIPS = 2
LOADS = [Load(1, 1), Load(16, 1), Load(64, 1), Load(64, 50)]
SYSTEMS = ["bare", "hookgate", "hookgate-old"]
ADDRESSES = ("10.79.0.1", "10.79.0.2")
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Network:
    """Two namespaces and the wire; `with Network(0.2) as network`."""

    def __init__(self, delay_ms):
        self.delay_ms = delay_ms
        self.names = [f"hookgate-bench-{os.getpid()}-{side}" for side in "ab"]
        self.taps = [f"hgb{os.getpid() % 100000}{side}" for side in "ab"]

    def __enter__(self):
        wire = ROOT / "target/bench/wire"
        self.wire = subprocess.Popen([wire, *self.taps, str(int(self.delay_ms * 1000))], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True)
        if self.wire.stdout.readline() != "ready\n":
            raise RigError("the wire did not start, see above")
        for name, tap, address in zip(self.names, self.taps, ADDRESSES):
            ip("netns", "add", name)
            # Whole requests in a frame: what is measured is time, not how many frames fit through.
            ip("link", "set", tap, "mtu", "9000", "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", tap)
            for link in ("lo", tap):
                ip("-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        self.wire.stdin.close()
        self.wire.wait(10)


def ip(*words):
    """Runs `ip`."""
    subprocess.run(["ip", *words], check=True)


def round_trip_us():
    """The median round trip of one byte to the stores' side, by TCP without delays of its own."""
    program = ("import socket; s = socket.create_server((%r, 0)); print(s.getsockname()[1], flush=True); c = s.accept()[0]; "
               "c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
               "while (b := c.recv(1)): c.sendall(b)") % os.environ.get("BENCH_STORES_HOST", "127.0.0.1")
    start = ["ip", "netns", "exec", os.environ["BENCH_STORES_NS"]] if "BENCH_STORES_NS" in os.environ else []
    echo = subprocess.Popen([*start, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    took = []
    with socket.create_connection((os.environ.get("BENCH_STORES_HOST", "127.0.0.1"), int(echo.stdout.readline()))) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(500):
            begun = time.perf_counter_ns()
            link.sendall(b"x")
            link.recv(1)
            took.append((time.perf_counter_ns() - begun) / 1000)
    echo.wait(10)
    return sorted(took)[len(took) // 2]


def measure(paths, seconds):
    """One round at the delay that this process's network has."""
    systems = [System(name, paths) for name in SYSTEMS if name != "hookgate-old" or "OLD" in os.environ]
    for system in systems:
        warm_up(paths, system, 0.3)
    cells = [cell(paths, system, load, seconds, 0.2) for load in LOADS for system in systems]
    for system in reversed(systems):
        system.stop()
    return {"round_trip_us": round_trip_us(), "cells": cells, "starts_ms": {system.name: system.start_ms for system in systems}}


def inside(paths, seconds):
    """Prints a round as JSON."""
    try:
        print(json.dumps(measure(paths, seconds)))
    finally:
        stop_all()


def run(delay_ms, seconds):
    """A round in a process of its own, which lives on the proxy's side."""
    command = [sys.executable, "-m", "rig.net", "--inside", str(seconds)]
    if delay_ms == 0:
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with Network(delay_ms) as network:
        there = {**os.environ, "BENCH_STORES_NS": network.names[1], "BENCH_STORES_HOST": ADDRESSES[1]}
        command = ["ip", "netns", "exec", network.names[0], *command]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=there).stdout)


def page(results):
    """The results as Markdown."""
    parts = [
        "# Results of `make bench NET=1`\n",
        f"{results['date']}, commit {results['commit']}, on {results['machine']} that all of it shares, the wire too. {results['rounds']} "
        "rounds; median, and in brackets the least and the most. How it is measured: [bench/README.md](../README.md).\n",
    ]
    loopback = results["delays"]["0"]
    for delay, there in results["delays"].items():
        trip = spread(there["round_trips_us"])
        parts.append(f"## {'Loopback' if delay == '0' else f'{delay} ms each way'}\n\nRound trip of one byte: {trip.text()} µs. Start "
                     f"to first 200, with empty stores: {spread(there['starts_ms']).text()} ms"
                     + (f", {(spread(there['starts_ms']).median - spread(loopback['starts_ms']).median) * 1000 / trip.median:.0f} round trips beside "
                        "loopback's" if delay != "0" else "") + ".\n")
        rows = []
        for load in LOADS:
            for name in SYSTEMS:
                rate, p50, p99 = (of(there, name, load, field) for field in ("requests_per_s", "p50_us", "p99_us"))
                if not rate:
                    continue
                more = ""
                if delay != "0" and load.connections == 1:
                    beside = (p50.median - of(loopback, name, load, "p50_us").median) / trip.median
                    more = f"{beside:.2f}"
                    if name == "hookgate":
                        alone = beside
                over = ratio(there, name, "hookgate-old", load, "requests_per_s") if name == "hookgate" else None
                rows.append((f"{load}, {NAMES[name]}", rate.text(), f"{p50.median / 1000:.2f}", f"{p99.median / 1000:.2f}", more,
                             over.text(2, "x") if over else ""))
        parts.append(table(["load (senders x records)", "requests/s", "p50 ms", "p99 ms", "round trips beside loopback's p50",
                            "requests/s over OLD"], rows))
        if delay != "0":
            parts.append(f"Wanted for one sender: at most {ROUND_TRIPS:g} round trips beside loopback's p50. Measured {alone:.2f}: "
                         f"{'holds' if round(alone, 1) <= ROUND_TRIPS else '**does not hold**'}.\n")
    void = [cell for there in results["delays"].values() for cell in there["cells"] if cell["void"]]
    parts.append("".join(f"- void: {cell['system']}, {cell['connections']}x{cell['batch']}: {cell['void']}\n" for cell in void)
                 or "No run is void: every event was counted in the stream.\n")
    return "\n".join(parts), bool(void)


def main():
    """All delays, in turns."""
    rounds = int(os.environ.get("ROUNDS") or 3)
    with tempfile.TemporaryDirectory(prefix="run-", dir=ROOT / "target/bench") as work:
        paths = Paths.built(ROOT, pathlib.Path(work))
        if "--inside" in sys.argv:
            inside(paths, float(sys.argv[-1]))
            return 0
        results = {**surroundings_of(paths), "rounds": rounds,
                   "delays": {f"{delay:g}": {"cells": [], "round_trips_us": [], "starts_ms": []} for delay in DELAYS_MS}}
        for turn in range(rounds):
            for delay in DELAYS_MS:
                got = run(delay, 2.0)
                there = results["delays"][f"{delay:g}"]
                there["cells"] += [{**row, "round": turn} for row in got["cells"]]
                there["round_trips_us"].append(got["round_trip_us"])
                there["starts_ms"].append(got["starts_ms"]["hookgate"])
                rates = "  ".join(f"{row['system']} {row['connections']}x{row['batch']} {row['requests_per_s']:.0f}/s" for row in got["cells"])
                say(f"round {turn + 1}, {delay:g} ms each way: {rates}")
    text, void = page(results)
    folder = ROOT / "bench/results"
    (folder / "net.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "net.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if void else 0


if __name__ == "__main__":
    sys.exit(main())
