"""Runs the consumers of examples/; see `run`. Arguments choose some: `python-ack`, `node`, `release`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nats
from nats.js.api import AckPolicy, ConsumerConfig

from servers import PATIENCE, World, until

ACK_WAIT = 2
# Longer than that, so that nothing but in-progress acknowledgements keeps an event from coming twice.
LONG_WORK = 10
PROGRAMS = {
    "python": lambda form: [sys.executable, f"examples/python/{form}.py"],
    "node": lambda form: ["node", f"{os.environ['NODE_EXAMPLES']}/{form}.mjs"],
    "rust": lambda form: [f"{os.environ['RUST_EXAMPLES']}/consumer-{form}"],
}
NAMES = [f"{language}-{form}" for form in ("ack", "release") for language in PROGRAMS]
chosen = [name for name in NAMES if not sys.argv[1:] or any(part in name for part in sys.argv[1:])]
failed = 0


def check(what, right, found=""):
    global failed
    failed += not right
    print(f"{'ok     ' if right else 'FAILED '} {what}" + ("" if right else f": {found}"), flush=True)


class Consumer:
    """One of the six, with a route and a durable consumer of its own."""

    def __init__(self, name, world):
        self.name, self.world, self.ids = name, world, set()
        self.language, self.form = name.split("-")
        self.results = Path(world.folder.name) / f"results-{name}"
        self.log = Path(world.folder.name) / f"{name}.log"
        self.subject, self.pending_key = f"vmh.{name}.create", f"vmh:{name}:create_pending"
        self.process = None

    def start(self, work=0.2):
        environment = {
            **os.environ,
            "NATS_URL": f"nats://127.0.0.1:{self.world.nats}",
            "CONSUMER": self.name,
            "RESULTS": str(self.results),
            "WORK_SECONDS": str(work),
        }
        command = ["setpriv", "--pdeathsig", "KILL", *PROGRAMS[self.language](self.form)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def post(self, *ids):
        self.ids.update(ids)
        self.world.post(json.dumps([{"id": one} for one in ids]), f"/vmh/webhook/{self.name}/create")

    def processed(self):
        return [json.loads(file.read_text())["entity_id"] for file in self.results.glob("*.json")]

    def is_done(self):
        return set(self.processed()) == self.ids

    def pending(self):
        return int(redis(self.world, "SCARD", self.pending_key))

    def says(self):
        return "".join(self.log.read_text().splitlines(keepends=True)[-12:])


def route(name):
    release = f'release = "ack"\nconsumers = ["{name}"]\n' if name.endswith("-ack") else ""
    return f'[[routes]]\nflow = "vmh"\nentity = "{name}"\naction = "create"\n{release}'


def redis(world, *command):
    ran = subprocess.run(
        ["redis-cli", "-p", str(world.redis), "-n", "1", *command], check=True, capture_output=True, text=True
    )
    return ran.stdout


def ask(world, question):
    async def on_its_own():
        connection = await nats.connect(f"nats://127.0.0.1:{world.nats}")
        try:
            return await question(connection.jetstream())
        finally:
            await connection.close()

    return asyncio.run(on_its_own())


def info(consumer):
    return ask(consumer.world, lambda stream: stream.consumer_info("HOOKGATE", consumer.name))


def tokens(consumer):
    """Tokens of the events in the stream, by id; one id may have several."""

    async def read(stream):
        found = {}
        events = await stream.subscribe(consumer.subject, stream="HOOKGATE", ordered_consumer=True)
        last = (await stream.get_last_msg("HOOKGATE", consumer.subject)).seq
        while True:
            event = await events.next_msg()
            found.setdefault(json.loads(event.data)["entity_id"], []).append(event.headers["Nats-Msg-Id"])
            if event.metadata.sequence.stream == last:
                return found

    return ask(consumer.world, read)


def nobody_else_gets_any(consumers):
    """Another process of the same consumer waits for longer than `ack_wait`, and gets nothing."""

    async def fetch(stream, consumer):
        events = await stream.pull_subscribe_bind(consumer.name, "HOOKGATE")
        try:
            again = await events.fetch(1, timeout=2 * ACK_WAIT)
        except asyncio.TimeoutError:
            again = []
        check(f"{consumer.name}: nobody else gets what it works on", not again, again)

    async def fetch_for_all(stream):
        await asyncio.gather(*(fetch(stream, consumer) for consumer in consumers))

    ask(consumers[0].world, fetch_for_all)


def all_ask(consumers, times):
    """Waits until each has asked for events so many times, all in vain."""

    async def count(stream):
        requests = [await stream._nc.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.HOOKGATE.{one.name}") for one in consumers]
        for asked in requests:
            for _ in range(times):
                await asked.next_msg(timeout=PATIENCE)

    ask(consumers[0].world, count)


def all_are(what, condition, consumers):
    """Waits until it holds for each, and says for whom it does not."""
    for consumer in consumers:
        try:
            until(what, lambda: condition(consumer))
            check(f"{consumer.name}: {what}", True)
        except TimeoutError:
            missing = sorted(consumer.ids - set(consumer.processed()))
            check(f"{consumer.name}: {what}", False, f"not processed: {missing}; {consumer.says()}")


with World("".join(route(name) for name in chosen)) as world:
    consumers = [Consumer(name, world) for name in chosen]

    async def add(stream):
        for consumer in consumers:
            wanted = ConsumerConfig(
                durable_name=consumer.name,
                filter_subject=consumer.subject,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT,
                max_deliver=-1,
                sample_freq="100%",
            )
            await stream.add_consumer("HOOKGATE", wanted)

    ask(world, add)

    for consumer in consumers:
        consumer.start(LONG_WORK)
        consumer.post(*(f"long-{number}" for number in range(10)))
    for consumer in consumers:
        until("it works on all of them", lambda: info(consumer).num_ack_pending == 10)
    nobody_else_gets_any(consumers)
    all_are("work may take longer than ack_wait", Consumer.is_done, consumers)
    for consumer in consumers:
        delivered = info(consumer).delivered.consumer_seq
        check(f"{consumer.name}: each of these events was delivered once", delivered == 10, f"{delivered} deliveries")

    for consumer in consumers:
        consumer.kill()
        consumer.start()
        consumer.post(*(f"killed-{number}" for number in range(50)))
    for consumer in consumers:
        until("some are processed", lambda: len(consumer.processed()) >= 20)
        consumer.kill()
        left = 60 - len(consumer.processed())
        check(f"{consumer.name}: was killed with work left", left > 0)
        consumer.start()
    all_are("survives kill -9", Consumer.is_done, consumers)

    for consumer in consumers:
        consumer.post(*(f"restart-{number}" for number in range(50)))
    server = world.children[1]
    server.kill()
    server.wait()
    check("NATS is away, with work left", not all(consumer.is_done() for consumer in consumers))
    world.start(server.args[3], server.args[4:], world.nats)
    all_are("goes on when NATS starts again", Consumer.is_done, consumers)

    for consumer in consumers:
        aside = consumer.results.with_suffix(".aside")
        consumer.results.rename(aside)
        consumer.post("later")
        until("it can't be stored", lambda: "once more in" in consumer.says())
        check(f"{consumer.name}: work that failed is not acknowledged", info(consumer).num_ack_pending > 0)
        aside.rename(consumer.results)
    all_are("work that failed is done later", Consumer.is_done, consumers)

    for consumer in consumers:
        consumer.kill()
        consumer.post(*(f"alone-{number}" for number in range(5)))
    gate = world.children[2]
    gate.kill()
    gate.wait()
    for consumer in consumers:
        consumer.start()
    all_are("processes while no hookgate is there", Consumer.is_done, consumers)
    for consumer in consumers:
        if consumer.form == "release":
            until("nobody answers its release", lambda: "once more in" in consumer.says())
            check(f"{consumer.name}: does not acknowledge what is not released", info(consumer).num_ack_pending == 5)
    world.start(gate.args[3], gate.args[4:], world.admin)
    until("hookgate is ready", lambda: world.look("/v1/status", json.load)["ready"])
    all_are("its ids are released when hookgate is back", lambda one: one.pending() == 0, consumers)

    # Processed, but the acknowledgement was lost with the process.
    for consumer in consumers:
        consumer.kill()
        consumer.post("twice")
        (token,) = tokens(consumer)["twice"]
        (consumer.results / f"{token}.json").write_text('{"entity_id": "twice", "by": "the first try"}')
        consumer.start()
    all_are("acknowledges what it finds processed", lambda one: info(one).ack_floor.stream_seq and info(one).num_ack_pending == 0 and info(one).num_pending == 0, consumers)
    for consumer in consumers:
        (token,) = tokens(consumer)["twice"]
        kept = json.loads((consumer.results / f"{token}.json").read_text())
        check(f"{consumer.name}: and does not do it twice", "by" in kept, kept)

    all_ask(consumers, 3)
    for consumer in consumers:
        check(f"{consumer.name}: goes on when no event comes", consumer.process.poll() is None, consumer.says())
    all_are("nothing is pending in the end", lambda one: one.pending() == 0, consumers)
    for consumer in consumers:
        found = tokens(consumer)
        missing = consumer.ids - set(found)
        check(f"{consumer.name}: an event for each id", not missing, missing)
        again = {one: len(of) for one, of in found.items() if len(of) > 1}
        # What the killed server had not reported of acknowledgements is published once more, under `release = "ack"`.
        in_doubt = [one for one in again if consumer.form == "ack" and one.split("-")[0] in ("restart", "alone")]
        check(f"{consumer.name}: and no second one without need", len(again) == len(in_doubt), again)
        if failed:
            print(consumer.says())
        consumer.process.terminate()
    for consumer in consumers:
        code = consumer.process.wait(PATIENCE)
        check(f"{consumer.name}: leaves when it is told to", code == 0, f"exit code {code}")

sys.exit(failed > 0)
