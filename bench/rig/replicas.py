"""1, 2, 4 and 8 processes on the same stores: `make bench ONLY=replicas`. CPU an event, and whether all of it adds up."""
import concurrent.futures

from .measure import Load, send
from .stores import Stores
from .systems import System

PROCESSES = (1, 2, 4, 8)
# Requests at once, over all processes.
AT_ONCE = 64


def turn(paths, number, seconds, count):
    """Everything with so many processes; both batch sizes."""
    stores = Stores(paths.work, f"replicas-{count}")
    systems = [System("hookgate", paths, stores) for _ in range(count)]
    rows = []
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for batch in (1, 50):
            load = Load(AT_ONCE // count, batch)
            for part in (0.3, seconds):
                stores.forget()
                before = [system.process.cpu() for system in systems]
                aside = stores.redis.cpu(), stores.nats.cpu()
                sent = list(pool.map(lambda system: send(paths, system, load, part)[1], systems))
                systems[0].settle()
                after = [system.process.cpu() for system in systems]
                costs = stores.redis.cpu() - aside[0], stores.nats.cpu() - aside[1]
            accepted, messages = sum(counts["fresh_accepted"] for counts in sent), stores.messages()
            spent = [end - begin for begin, end in zip(before, after)]
            rows.append({
                "processes": count, "batch": batch, "round": number,
                "void": None if accepted == messages else f"{accepted} new ids were accepted, {messages} events are in the stream",
                "events_per_s": sum(counts["fresh_accepted"] for counts in sent) / max(counts["took_s"] for counts in sent),
                "proxy_us_per_event": sum(spent) / messages * 1e6,
                "redis_us_per_event": costs[0] / messages * 1e6, "nats_us_per_event": costs[1] / messages * 1e6,
                # What the busiest process did, over an equal share.
                "busiest": max(spent) / (sum(spent) / count),
            })
    for system in reversed(systems):
        system.stop()
    stores.stop()
    return rows
