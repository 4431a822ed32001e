"""One run of the load generator against one system, and what it cost."""
import itertools
import json
import subprocess
from typing import NamedTuple

from .processes import RigError

NONCES = itertools.count(1)


class Load(NamedTuple):
    """What is sent."""

    connections: int
    batch: int
    duplicates: bool = False

    def __str__(self):
        return f"{self.connections}x{self.batch}{'d' if self.duplicates else ''}"


def send(paths, system, load, seconds, **more):
    """Runs the generator; what it counted, and the first part of the ids it used."""
    nonce = next(NONCES)
    words = {"address": f"127.0.0.1:{system.port}", "connections": load.connections, "batch": load.batch,
             "duplicates": str(load.duplicates).lower(), "seconds": seconds, "nonce": nonce, **more}
    command = ["setpriv", "--pdeathsig", "KILL", paths.load, *(f"{name}={value}" for name, value in words.items())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if ran.returncode != 0:
        raise RigError(f"load {load} against {system.name}: {ran.stderr}\n{system.process.tail()}")
    return nonce, {**json.loads(ran.stdout), "said": ran.stderr.strip()}


def wrong_with(counts, messages):
    """Why a run is void, if it is."""
    refused = {status: row["count"] for status, row in counts["statuses"].items() if status != "200"}
    if refused or counts["broken"] or counts["dead"] or counts["unanswered"]:
        return (f"answers other than 200: {refused or 'none'}, broken connections: {counts['broken']}, unanswered: "
                f"{counts['unanswered']} {counts['said']}").strip()
    if counts["claimed"] != counts["fresh_accepted"]:
        return f"{counts['fresh_accepted']} new ids were accepted, {counts['claimed']} called new"
    if messages is not None and messages != counts["fresh_accepted"]:
        return f"{counts['fresh_accepted']} new ids were accepted, {messages} events are in the stream"
    return None


def warm_up(paths, system, seconds):
    """Until what compiles as it runs has compiled."""
    for batch in (1, 50):
        send(paths, system, Load(16, batch), seconds)


def cell(paths, system, load, seconds, warm):
    """Warms up, empties the stores, measures; every event is counted afterwards."""
    floor = system.name == "floor"
    send(paths, system, load._replace(connections=min(load.connections, 16)), warm)
    if not floor:
        system.settle()
        system.stores.forget()
    system.process.forget_peak()
    before = system.cpu()
    _, counts = send(paths, system, load, seconds)
    if not floor:
        system.settle()
    after = system.cpu()
    answered = counts["statuses"].get("200", {"count": 0, "p50_us": 0, "p99_us": 0, "max_us": 0})
    requests = max(1, counts["requests"])
    per_second = counts["counted"] / counts["counted_over_s"]
    return {
        "system": system.name, **load._asdict(), "void": wrong_with(counts, None if floor else system.stores.messages()),
        "requests_per_s": per_second,
        "events_per_s": per_second * counts["fresh_accepted"] / max(1, answered["count"]),
        "p50_us": answered["p50_us"], "p99_us": answered["p99_us"], "max_us": answered["max_us"],
        **{f"{part}_us": (after[part] - before[part]) / requests * 1e6 for part in before},
        "load_us": counts["cpu_s"] / requests * 1e6, "load_busy": counts["cpu_s"] / counts["took_s"],
        "rss_mib": system.process.peak_mib(), "requests": counts["requests"], "took_s": counts["took_s"],
    }
