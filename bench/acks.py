#!/usr/bin/env python3
"""What an acknowledgement costs NATS, Redis and hookgate, in µs of CPU, in turns on real servers.

    target/tools/bench/python/bin/python bench/acks.py [EVENTS] [ROUNDS]     after `make bench QUICK=1`, which builds and installs;
                                                                             writes bench/results/acks.json

- *plain*: a consumer without samples acknowledges; the ids stay pending.
- *sampled*: the same, and the server announces each acknowledgement; nobody reads that.
- *released*: release = "ack": hookgate reads what is announced and the message it is about, and frees the id.
"""
import asyncio
import http.client
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import nats  # noqa: E402
from nats.js.api import AckPolicy, ConsumerConfig  # noqa: E402

from rig.processes import LOOPBACK, Process, environment, free_port, stop_all  # noqa: E402
from rig.stores import PENDING, Stores  # noqa: E402
from rig.systems import FILTER, PATH, ROUTE  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
EVENTS, ROUNDS = (int(word) for word in (sys.argv[1:] + ["20000", "5"][len(sys.argv) - 1:]))
KINDS = ("plain", "sampled", "released")
BATCH = 500


def post(port, ids):
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=20)
    connection.request("POST", PATH, json.dumps([{"id": name} for name in ids]))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


async def consume(stores):
    """Reads and acknowledges everything, and waits until the server has all of it."""
    client = await nats.connect(stores.nats_url)
    stream = client.jetstream()
    reader = await stream.pull_subscribe("vmh.>", durable="sync", stream="HOOKGATE")
    seen = 0
    while seen < EVENTS:
        messages = await reader.fetch(BATCH, timeout=10)
        for message in messages:
            await message.ack()
        seen += len(messages)
    while (await stream.consumer_info("HOOKGATE", "sync")).num_ack_pending:
        await asyncio.sleep(0.01)
    await client.close()


async def make_consumer(stores, sampled):
    client = await nats.connect(stores.nats_url)
    config = ConsumerConfig(durable_name="sync", ack_policy=AckPolicy.EXPLICIT, ack_wait=60, max_deliver=-1, max_ack_pending=2 * BATCH,
                            sample_freq="100%" if sampled else None)
    await client.jetstream().add_consumer("HOOKGATE", config)
    await client.close()


def turn(work, kind):
    """µs of CPU an event from the first delivery until everything is done."""
    stores = Stores(work, kind)
    stores.make_stream()
    asyncio.run(make_consumer(stores, kind != "plain"))
    port = free_port()
    route = ROUTE if kind != "released" else {**ROUTE, "release": "ack", "consumers": ["sync"]}
    proxy = Process("hookgate", [ROOT / "target/release/hookgate", "serve"], stores.folder, environment(
        HOOKGATE__SERVER__LISTEN=f"{LOOPBACK}:{port}", HOOKGATE__ADMIN__LISTEN=f"{LOOPBACK}:0", HOOKGATE__SERVER__DRAIN_DELAY="0s",
        HOOKGATE__REDIS__URL=stores.redis_url, HOOKGATE__NATS__URL=stores.nats_url, HOOKGATE__LOG__FORMAT="json",
        HOOKGATE__LOG__FILTER=FILTER, HOOKGATE__ROUTES=json.dumps([route])))

    def up():
        try:
            post(port, [])
        except (OSError, AssertionError):
            return False
        return True
    proxy.wait_until(up, "answering 200")
    for first in range(0, EVENTS, BATCH):
        post(port, [f"id-{first + place}" for place in range(BATCH)])
    proxy.wait_until(lambda: stores.in_flight() == 0, "settled")
    parts = {"NATS": stores.nats, "Redis": stores.redis, "hookgate": proxy}
    before, begun = {name: part.cpu() for name, part in parts.items()}, time.monotonic()
    asyncio.run(consume(stores))
    if kind == "released":
        proxy.wait_until(lambda: stores.client.scard(PENDING) == 0, "all released")
    cost = {name: (part.cpu() - before[name]) / EVENTS * 1e6 for name, part in parts.items()}
    took = time.monotonic() - begun
    proxy.stop()
    stores.stop()
    return {**cost, "s": took}


def main():
    costs = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as work:
        try:
            for _ in range(ROUNDS):
                for kind in KINDS:
                    costs[kind].append(turn(work, kind))
        finally:
            stop_all()
    print(f"{EVENTS:,} events, {ROUNDS} rounds; µs of CPU an acknowledgement, median (least to most)")
    medians = {}
    for kind, turns in costs.items():
        shown = []
        medians[kind] = {name: round(statistics.median(cost[name] for cost in turns), 2) for name in turns[0]}
        for name in turns[0]:
            values = [cost[name] for cost in turns]
            shown.append(f"{name} {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"{kind:9}", "  ".join(shown))
    (ROOT / "bench/results/acks.json").write_text(json.dumps(medians, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
