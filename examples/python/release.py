"""A consumer that releases each id itself, over NATS: it processes an event, releases its id, acknowledges it."""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import nats

URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
STREAM = os.environ.get("STREAM", "HOOKGATE")
CONSUMER = os.environ.get("CONSUMER", "case-sync")
INSTANCE = os.environ.get("INSTANCE", "hookgate")
# The user and its password, which is in a file, where NATS asks for one.
LOGIN = {}
if "NATS_USER" in os.environ:
    LOGIN = {"user": os.environ["NATS_USER"], "password": Path(os.environ["NATS_PASSWORD_FILE"]).read_text().strip()}
RESULTS = Path(os.environ.get("RESULTS", "results"))
WORK_SECONDS = float(os.environ.get("WORK_SECONDS", "0"))


async def process(event, token):
    """Your work. Store the result and the token in one step, here a file: then a second delivery does nothing."""
    result = RESULTS / f"{token}.json"
    if result.exists():
        return
    await asyncio.sleep(WORK_SECONDS)  # read the record from the CRM by event["entity_id"], and work
    part = result.with_suffix(f".{socket.gethostname()}.{os.getpid()}")  # in containers each is process 1
    with part.open("w") as file:
        json.dump(event, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(result)


async def release(connection, message, event, token):
    """Frees the id, if this is still its newest claim. May be repeated."""
    flow, entity, action = message.headers["Hookgate-Route"].split("/")
    request = {"flow": flow, "entity": entity, "action": action, "entity_id": event["entity_id"], "token": token}
    answer = await connection.request(f"{INSTANCE}.release", json.dumps(request).encode(), timeout=5)
    if code := (answer.headers or {}).get("Nats-Service-Error-Code"):
        raise RuntimeError(f"release: {code} {answer.headers.get('Nats-Service-Error')}")


async def stay_in_progress(message, pause):
    """Work may take longer than the consumer's `ack_wait`: until it is done, the server must not deliver it again."""
    while True:
        await asyncio.sleep(pause)
        await message.in_progress()


async def handle(connection, message, ack_wait):
    progress = asyncio.create_task(stay_in_progress(message, ack_wait / 3))
    try:
        event, token = json.loads(message.data), message.headers["Nats-Msg-Id"]
        await process(event, token)
        await release(connection, message, event, token)
        await message.ack_sync(timeout=5)  # waits until the server has it
    except Exception as error:
        pause = min(2**message.metadata.num_delivered, 60)
        print(f"{message.data.decode()}: once more in {pause} s: {error!r}", flush=True)
        with suppress(Exception):  # it comes again anyway
            await message.nak(delay=pause)
    finally:
        progress.cancel()


async def consume(connection, leaving):
    events = await connection.jetstream().pull_subscribe_bind(CONSUMER, STREAM)
    ack_wait = (await events.consumer_info()).config.ack_wait
    while not leaving.is_set():
        with suppress(asyncio.TimeoutError):  # no event came
            messages = await events.fetch(10, timeout=5)
            await asyncio.gather(*(handle(connection, message, ack_wait) for message in messages))


async def main():
    RESULTS.mkdir(parents=True, exist_ok=True)
    # As the first process of a container it would not hear the signal else.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    connection = await nats.connect(
        URL, max_reconnect_attempts=-1, reconnect_time_wait=0.5, inbox_prefix=f"_INBOX.{CONSUMER}".encode(), **LOGIN
    )
    # From now on what is in hand is finished first.
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    while not leaving.is_set():
        try:
            await consume(connection, leaving)
        except Exception as error:  # no such consumer yet, or NATS is away
            print(f"consume {CONSUMER} of {STREAM}: {error!r}", flush=True)
            await asyncio.sleep(1)


asyncio.run(main())
