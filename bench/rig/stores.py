"""A Redis and a NATS of one system's own, and what the rig does to them between runs."""
import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import tempfile

import nats
import redis
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from .processes import STORES_HOST, STORES_START, Process, accepts, free_port

PENDING = "vmh:beteiligte:create_pending"
OUTBOX = f"{{{PENDING}}}:outbox"
JOURNAL = f"{{{PENDING}}}:journal"
STREAM = "HOOKGATE"
NATS = os.environ.get("HOOKGATE_NATS_SERVER", "nats-server")
# One that knows `sync_interval: always` (2.10).
DURABLE_NATS = os.environ.get("BENCH_DURABLE_NATS") or NATS
# A thousand members a call of SADD; the members look like EspoCRM's ids.
FILL = """
local members = {}
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
    members[#members + 1] = string.format('65f0c1d2%09x', n)
    if #members == 1000 then redis.call('SADD', KEYS[1], unpack(members)); members = {} end
end
if #members > 0 then redis.call('SADD', KEYS[1], unpack(members)) end
"""


def aside(size):
    """Where a set of that size is kept while another one is in its place."""
    return f"{PENDING}:{size}"


class Stores:
    """One pair of servers with empty folders; `durable`: what they acknowledge is on disk."""

    def __init__(self, work, name, durable=False):
        self.folder = tempfile.mkdtemp(prefix=f"{name}-", dir=work)
        redis_port, nats_port = free_port(), free_port()
        # Without files by default: what an append-only file costs is the same for everybody, and disks are noisy.
        keep = ["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"] if durable or os.environ.get("AOF") == "1" else []
        keep += ["--appendfsync", "always"] if durable else []
        config = pathlib.Path(self.folder, "nats.conf")
        config.write_text(f"jetstream {{ store_dir: {json.dumps(self.folder)}{', sync_interval: always' * durable} }}\n", encoding="utf-8")
        self.redis = Process("redis", [
            *STORES_START, os.environ.get("HOOKGATE_REDIS_SERVER", "redis-server"), "--bind", STORES_HOST, "--port", redis_port,
            "--protected-mode", "no",
            "--dir", self.folder, "--save", "", "--maxmemory-policy", "noeviction", *keep], self.folder)
        self.nats = Process("nats", [
            *STORES_START, DURABLE_NATS if durable else NATS, "-c", config, "-a", STORES_HOST, "-p", nats_port], self.folder)
        self.redis_url = f"redis://{STORES_HOST}:{redis_port}/1"
        self.nats_url = f"nats://{STORES_HOST}:{nats_port}"
        self.redis.wait_until(lambda: accepts(redis_port, STORES_HOST), "listening")
        self.nats.wait_until(lambda: accepts(nats_port, STORES_HOST), "listening")
        self.client = redis.Redis.from_url(self.redis_url)

    def make_stream(self):
        """The stream as hookgate would create it, for those who don't."""
        config = StreamConfig(name=STREAM, subjects=["vmh.>"], storage=StorageType.FILE, discard=DiscardPolicy.NEW,
                              max_age=7 * 86400, duplicate_window=900)
        self._ask(lambda jetstream: jetstream.add_stream(config))

    def messages(self):
        """Messages in the stream."""
        return self._ask(lambda jetstream: jetstream.stream_info(STREAM)).state.messages

    def forget(self):
        """Empties the stream and what is pending."""
        try:
            self._ask(lambda jetstream: jetstream.purge_stream(STREAM))
        except NotFoundError:
            pass                       # of the floor, which publishes nothing
        self.client.delete(PENDING, JOURNAL)

    def in_flight(self):
        """Claims that are not settled yet."""
        return self.client.hlen(OUTBOX)

    def fill(self, size):
        """Makes a set of so many ids, out of the way."""
        script, key = self.client.register_script(FILL), aside(size)
        for start in range(0, size, 100_000):
            script(keys=[key], args=[start, min(start + 100_000, size)])

    @contextlib.contextmanager
    def pending(self, size):
        """With the set of that size in the place of the pending ids."""
        self.client.renamenx(aside(size), PENDING)
        yield
        assert self.client.scard(PENDING) == size, f"{PENDING} has not kept its {size} members"
        self.client.renamenx(PENDING, aside(size))

    def release(self, nonce, count):
        """Takes the ids of a run out of the pending ones."""
        for start in range(0, count, 1000):
            ids = (f"{nonce:08x}{number:09x}" for number in range(start, min(start + 1000, count)))
            ids = list(ids)
            self.client.srem(PENDING, *ids)
            self.client.hdel(JOURNAL, *ids)

    def _ask(self, question):
        async def answer():
            connection = await nats.connect(self.nats_url)
            try:
                return await question(connection.jetstream(timeout=20))
            finally:
                await connection.close()
        return asyncio.run(answer())

    def stop(self):
        """Both servers, and what they kept."""
        self.client.close()
        self.nats.stop()
        self.redis.stop()
        shutil.rmtree(self.folder)
