"""Measures hookgate, its floor and its baselines; see bench/README.md. Started by bench/run, which builds first."""
import argparse
import datetime
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from . import experiments, plots, replicas, tables, targets
from .measure import Load, cell, warm_up
from .processes import Process, RigError, stop_all
from .systems import NAMES, OTHERS, OURS, System

PARTS = ("start", "matrix", "overload", "pending", "replicas")
COMPARED = [*(Load(connections, batch) for batch in (1, 50) for connections in (1, 16, 64, 256)), Load(64, 1, True), Load(64, 50, True)]
LOADS = [*COMPARED, Load(64, 10)]  # bench/scaling.py predicts the last

# The floor does not know one id from another, and bare is there for the targets only.
SENT = {"hookgate": LOADS, "floor": [load for load in COMPARED if not load.duplicates],
        "bare": [Load(64, 1), Load(64, 50)], "hookgate-plain": [Load(64, 1), Load(64, 50)],
        "hookgate-durable": [Load(1, 1), Load(64, 1), Load(64, 50)]}


class Paths(NamedTuple):
    """What runs, and where."""

    root: pathlib.Path
    work: pathlib.Path
    hookgate: pathlib.Path
    floor: pathlib.Path
    bare: pathlib.Path
    load: pathlib.Path
    python: pathlib.Path
    python_app: pathlib.Path
    node_app: pathlib.Path

    @classmethod
    def built(cls, root, work):
        """What bench/run has built."""
        tools, bench = root / "target/tools/bench", root / "target/bench/release"
        release = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release"
        return cls(root, work, release / "hookgate", bench / "floor", bench / "bare", bench / "load", tools / "python/bin/python",
                   root / "bench/baselines/python/app.py", tools / "node/server.mjs")


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    loads: list
    seconds: float                     # of a run of hookgate and the floor
    seconds_of_others: float
    warm_up_first: float               # at the start of a round, for each batch size
    warm_up: float                     # before each run
    sizes: list
    bursts: int                        # of each size, in a round
    rounds_of_bursts: int
    overload_seconds: float
    starts: int


FULL = Plan(3, LOADS, 2.0, 1.3, 0.7, 0.2, [1_000, 100_000, 1_000_000, 5_000_000], 8, 7, 3.0, 7)
QUICK = Plan(1, [Load(1, 1), Load(64, 1), Load(1, 50), Load(64, 50), Load(64, 50, True), Load(256, 1)], 0.4, 0.4,
             0.2, 0.1, [1_000, 100_000], 2, 1, 1.0, 2)


def arguments():
    """The command line; bench/run makes it of the environment."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--quick", action="store_true", help="whether everything works, in a minute; figures are noise")
    ap.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {','.join(PARTS)}")
    ap.add_argument("--systems", default=",".join(NAMES), help="systems of the matrix")
    ap.add_argument("--loads", default="", help="loads of the matrix, as 64x1,64x50d: connections x batch, d: duplicates")
    ap.add_argument("--rounds", type=int, default=0, help="rounds (default 3, quick 1)")
    ap.add_argument("--strict", action="store_true", help="exit 1 if a target does not hold")
    ap.add_argument("--until", type=float, default=0, help="time of the clock at which no further round is begun")
    opt = ap.parse_args()
    plan = QUICK if opt.quick else FULL
    names = {str(load): load for load in LOADS}
    try:
        opt.plan = plan._replace(rounds=opt.rounds or plan.rounds,
                                 loads=[names[name] for name in opt.loads.split(",")] if opt.loads else plan.loads)
    except KeyError as wrong:
        ap.error(f"--loads: {wrong} is none of {', '.join(names)}")
    for option, known in (("only", PARTS), ("systems", NAMES)):
        chosen = getattr(opt, option).split(",")
        setattr(opt, option, chosen)
        if unknown := set(chosen) - set(known):
            ap.error(f"--{option}: {', '.join(unknown)} is none of {', '.join(known)}")
    opt.until = opt.until or time.time() + 600
    return opt


def say(text):
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def matrix(paths, opt, turn):
    """All loads of one round: the systems take turns at each, each with stores of its own."""
    plan, cells, starts = opt.plan, [], {}
    systems = [System(name, paths) for name in NAMES if name in opt.systems and (name != "hookgate-old" or "OLD" in os.environ)]
    for system in systems:
        starts[system.name] = system.start_ms
        warm_up(paths, system, plan.warm_up_first)
    for load in plan.loads:
        for system in systems:
            if load not in SENT.get(system.name, COMPARED):
                continue
            seconds = plan.seconds if system.name in OURS else plan.seconds_of_others
            cells.append({"round": turn, **cell(paths, system, load, seconds, plan.warm_up)})
            if cells[-1]["void"]:
                say(f"VOID: {system.name} at {load}: {cells[-1]['void']}")
        rates = "  ".join(f"{row['system']} {row['requests_per_s']:.0f}" for row in cells
                          if Load(row["connections"], row["batch"], row["duplicates"]) == load)
        say(f"round {turn + 1}, {load}, requests/s: {rates}")
    stop_all_of(systems)
    return cells, starts


def stop_all_of(systems):
    """Youngest first."""
    for system in reversed(systems):
        system.stop()


def version(*command):
    """What a program says of itself."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]


def surroundings_of(paths):
    """Where, when and of what this is measured."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = {line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")}
    meminfo = pathlib.Path("/proc/meminfo").read_text(encoding="ascii")
    git = ["git", "-C", str(paths.root)]
    changed = subprocess.run([*git, "status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock", "bench", ":!bench/results"],
                             capture_output=True, text=True, check=False).stdout
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": (commit.stdout.strip() or "unknown") + (" with changes" if changed else ""),
        "machine": f"{os.cpu_count()} x {', '.join(sorted(models)) or platform.machine()}, "
                   f"{int(meminfo.split()[1]) / 2**20:.0f} GiB, Linux {platform.release().split('-')[0]}",
        "load_average_at_start": os.getloadavg()[0],
        "versions": {"redis": version(os.environ.get("HOOKGATE_REDIS_SERVER", "redis-server"), "--version").split()[2],
                     "nats": version(os.environ.get("HOOKGATE_NATS_SERVER", "nats-server"), "--version"),
                     "python": platform.python_version(), "node": version("node", "--version"),
                     "rust": version("rustc", "--version")},
        "binary_bytes": paths.hookgate.stat().st_size,
    }


def surroundings(paths, opt):
    """That, and how much is measured."""
    return {
        **surroundings_of(paths),
        "aof": os.environ.get("AOF") == "1",
        "plan": {**opt.plan._asdict(), "loads": [str(load) for load in opt.plan.loads], "quick": opt.quick},
    }


def measure(paths, opt):
    """Everything that was asked for, as long as there is time."""
    plan = opt.plan
    results = {**surroundings(paths, opt), "rounds": 0, "cells": [], "first_answers_ms": [], "starts_ms": [],
               "overload": [], "pending": [], "replicas": []}
    if "start" in opt.only:
        first, results["starts_ms"] = experiments.starts(paths, plan.starts)
        results["first_answers_ms"].append({"hookgate": first})
        say(f"start to first 200, ms: {first:.0f} with empty stores, then "
            f"{', '.join(f'{took:.0f}' for took in results['starts_ms'])}")
    if "pending" in opt.only:
        results["pending"] = experiments.pending_costs(paths, plan.sizes, plan.rounds_of_bursts, plan.bursts, say)
    slowest = 0.0
    for turn in range(plan.rounds):
        begun = time.time()
        # A round that is begun is finished, so that every load has as many rounds as it says.
        if turn and begun + slowest > opt.until:
            say(f"no time for round {turn + 1}")
            break
        if "matrix" in opt.only:
            cells, starts = matrix(paths, opt, turn)
            results["cells"] += cells
            results["first_answers_ms"].append(starts)
        if "overload" in opt.only:
            for batch in (1, 50):
                for name in ("floor", "hookgate") if batch == 1 else ("hookgate",):
                    row = experiments.overload(paths, name, batch, plan.overload_seconds, turn)
                    results["overload"].append(row)
                    say(f"overload of {name}, batch {batch}: peak {row['peak_per_s']:.0f}/s, accepted {row['accepted_per_s']:.0f}/s of "
                        f"{row['offered_per_s']:.0f}/s offered and {row['sent_per_s']:.0f}/s sent"
                        + (f"; VOID: {row['void']}" if row["void"] else ""))
        if "replicas" in opt.only:
            for count in replicas.PROCESSES:
                rows = replicas.turn(paths, turn, plan.seconds, count)
                results["replicas"] += rows
                say(f"{count} processes, µs of proxy CPU an event: " + ", ".join(f"batch {row['batch']} {row['proxy_us_per_event']:.1f}" for row in rows))
        results["rounds"] = turn + 1
        slowest = max(slowest, time.time() - begun)
    return results


def write(results, paths, opt):
    """JSON, table and plots; into bench/results only if all of it was measured."""
    whole = opt.plan == FULL and tuple(opt.only) == PARTS and list(opt.systems) == list(NAMES)
    folder = paths.root / ("bench/results" if whole else "target/bench/partial")
    folder.mkdir(parents=True, exist_ok=True)
    rows = targets.check(results)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(tables.page(results, rows), encoding="utf-8")
    for name, picture in plots.all_of(results).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    return folder, rows


def main():
    """Measure, write, check."""
    opt = arguments()
    root = pathlib.Path(__file__).resolve().parents[2]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.time()
    (root / "target/bench").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=root / "target/bench") as work:
        paths = Paths.built(root, pathlib.Path(work))
        try:
            results = measure(paths, opt)
        except RigError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            stop_all()
    results["took_s"] = time.time() - begun
    folder, rows = write(results, paths, opt)
    print(targets.lines(rows))
    say(f"{time.time() - begun:.0f} s; results are in {folder.relative_to(root)}")
    void = targets.void_runs(results)
    if void:
        print(f"bench: {len(void)} runs are void, see above and {folder.relative_to(root)}/results.md", file=sys.stderr)
    missed = any(row.holds is False and not row.stretch for row in rows)
    return 1 if void or (opt.strict and missed) else 0


if __name__ == "__main__":
    assert Process.running == [] and OTHERS, "a fresh start"
    sys.exit(main())
