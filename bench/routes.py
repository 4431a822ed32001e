#!/usr/bin/env python3
"""What a route costs while nothing comes: CPU of hookgate and Redis, and hookgate's memory, at 1, 100 and 1,000 routes.

    target/tools/bench/python/bin/python bench/routes.py [SECONDS]     after `make bench QUICK=1`, which builds and installs
"""
import http.client
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from rig.processes import LOOPBACK, Process, environment, free_port, stop_all  # noqa: E402
from rig.stores import Stores  # noqa: E402
from rig.systems import FILTER  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = int((sys.argv[1:] + ["30"])[0])
ROUTES = (1, 100, 1000)


def turn(work, count):
    """ms of CPU a second of each part, and the most MiB of hookgate."""
    stores = Stores(work, f"routes-{count}")
    port = free_port()
    routes = [{"flow": "vmh", "entity": f"entity-{number}", "action": "create"} for number in range(count)]
    proxy = Process("hookgate", [ROOT / "target/release/hookgate", "serve"], stores.folder, environment(
        HOOKGATE__SERVER__LISTEN=f"{LOOPBACK}:{free_port()}", HOOKGATE__ADMIN__LISTEN=f"{LOOPBACK}:{port}", HOOKGATE__SERVER__DRAIN_DELAY="0s",
        HOOKGATE__REDIS__URL=stores.redis_url, HOOKGATE__NATS__URL=stores.nats_url, HOOKGATE__LOG__FORMAT="json",
        HOOKGATE__LOG__FILTER=FILTER, HOOKGATE__ROUTES=json.dumps(routes)))

    def ready():
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
    proxy.wait_until(ready, "ready")
    parts = {"hookgate": proxy, "Redis": stores.redis, "NATS": stores.nats}
    # What is measured is a stretch of time: nothing else happens in it.
    before, begun = {name: part.cpu() for name, part in parts.items()}, time.monotonic()
    time.sleep(SECONDS)
    took = time.monotonic() - begun
    cost = {name: (part.cpu() - before[name]) / took * 1000 for name, part in parts.items()}
    memory = proxy.peak_mib()
    proxy.stop()
    stores.stop()
    return cost, memory


def main():
    """A line for each number of routes."""
    with tempfile.TemporaryDirectory() as work:
        try:
            for count in ROUTES:
                cost, memory = turn(pathlib.Path(work), count)
                print(f"{count:>5} routes, nothing comes: {memory:.0f} MiB; ms of CPU a second: " + "  ".join(f"{name} {ms:.1f}" for name, ms in cost.items()), flush=True)
        finally:
            stop_all()


if __name__ == "__main__":
    main()
