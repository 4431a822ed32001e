"""What hookgate is compared with, in Python: FastAPI on uvicorn (uvloop, httptools), redis-py with hiredis, nats-py.

`app.py PORT REDIS_URL NATS_URL original|honest`. The forms differ in how they find the new ids of a batch:

original  reads the whole set of pending ids, takes the difference, adds what is new: its cost grows with the
          set, and two requests at the same moment both find the same id new
honest    adds each id, in one pipeline; Redis says which were new

Both publish each new id to JetStream, await all acknowledgements of the batch together, and answer then. Neither
has an outbox, a retry, a log line or a message id: less than hookgate does.
"""
import asyncio
import contextlib
import json
import sys
from datetime import datetime, timezone

import nats
import redis.asyncio
import uvicorn
from fastapi import FastAPI, Request

PENDING = "vmh:beteiligte:create_pending"
SUBJECT = "vmh.beteiligte.create"


async def claim_original(store, ids):
    """The new ids, by the difference to all that are pending."""
    new = ids - await store.smembers(PENDING)
    if new:
        await store.sadd(PENDING, *new)
    return new


async def claim_honest(store, ids):
    """The new ids, one SADD an id in one round trip."""
    ids = list(ids)
    async with store.pipeline(transaction=False) as pipeline:
        for entity_id in ids:
            pipeline.sadd(PENDING, entity_id)
        added = await pipeline.execute()
    return [entity_id for entity_id, new in zip(ids, added) if new]


def application(redis_url, nats_url, claim):
    """The one route."""
    stores = {}

    @contextlib.asynccontextmanager
    async def lifespan(_):
        # A connection a request at most: with its default of 100 the client refuses the load.
        stores["redis"] = redis.asyncio.from_url(redis_url, decode_responses=True, max_connections=1024)
        connection = await nats.connect(nats_url)
        # As many unacknowledged events as any load has: the client's own limit would refuse them.
        stores["jetstream"] = connection.jetstream(publish_async_max_pending=1_000_000)
        yield
        await connection.close()
        await stores["redis"].aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/vmh/webhook/beteiligte/create")
    async def create(request: Request):
        ids = {record["id"] for record in await request.json()}
        new = await claim(stores["redis"], ids)
        if new:
            timestamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            acknowledged = []
            for entity_id in new:
                event = {"entity_id": entity_id, "action": "create", "source": "webhook", "timestamp": timestamp}
                payload = json.dumps(event, separators=(",", ":")).encode()
                acknowledged.append(await stores["jetstream"].publish_async(SUBJECT, payload))
            await asyncio.gather(*acknowledged)
        return {"status": "received", "action": "create", "new_ids_count": len(new), "total_ids_in_batch": len(ids)}

    return app


def main():
    """Serve until a signal comes."""
    port, redis_url, nats_url, form = sys.argv[1:]
    claim = {"original": claim_original, "honest": claim_honest}[form]
    uvicorn.run(application(redis_url, nats_url, claim), host="127.0.0.1", port=int(port), loop="uvloop",
                http="httptools", lifespan="on", access_log=False, log_level="warning", backlog=4096)


if __name__ == "__main__":
    main()
