"""The systems that are compared: how each is started."""
import http.client
import json
import os
import time

from .processes import LOOPBACK, Process, environment, free_port
from .stores import Stores

ROUTE = {"flow": "vmh", "entity": "beteiligte", "action": "create"}
PATH = "/vmh/webhook/beteiligte/create"
FILTER = "info,hookgate::entity=warn"
# In the order of tables and plots.
NAMES = {
    "floor": "floor (warp: read, parse, answer)",
    "bare": "bare (the floor, claim, publish, settle)",
    "hookgate": "hookgate",
    "hookgate-plain": "hookgate, no journal",
    "hookgate-old": "hookgate, another build (OLD)",
    "hookgate-three": "hookgate, three workers",
    "hookgate-durable": "hookgate, durable stores",
    "node-honest": "Node, honest",
    "python-honest": "Python, honest",
    "node-original": "Node, original's algorithm",
    "python-original": "Python, original's algorithm",
}
# Whose runs are longer.
OURS = ("floor", "bare", "hookgate", "hookgate-plain", "hookgate-old", "hookgate-three", "hookgate-durable")
OTHERS = [name for name in NAMES if name not in OURS]


class System:
    """One server with stores of its own."""

    def __init__(self, name, paths, stores=None):
        self.name = name
        self.own_stores = stores is None
        self.stores = stores or Stores(paths.work, name, durable=name == "hookgate-durable")
        if name not in OURS and self.own_stores:
            self.stores.make_stream()
        self.port = free_port()
        command, env = self._command(paths)
        self.process = Process(name, command, self.stores.folder, env)
        self.start_ms = self._await_first_answer()

    def _command(self, paths):
        stores, address = self.stores, f"{LOOPBACK}:{self.port}"
        if self.name == "floor":
            return [paths.floor, address], environment()
        if self.name == "bare":
            return [paths.bare, address, stores.redis_url, stores.nats_url], environment()
        if self.name in OURS:
            # 0 is the default: one a core. From three on, all of them serve.
            workers = 3 if self.name == "hookgate-three" else 0
            program = os.environ["OLD"] if self.name == "hookgate-old" else paths.hookgate
            return [program, "serve"], environment(
                HOOKGATE__SERVER__WORKER_THREADS=str(workers),
                **self._routes(),
                HOOKGATE__SERVER__LISTEN=address, HOOKGATE__ADMIN__LISTEN=f"{LOOPBACK}:0",
                HOOKGATE__SERVER__DRAIN_DELAY="0s", HOOKGATE__REDIS__URL=stores.redis_url,
                HOOKGATE__NATS__URL=stores.nats_url, HOOKGATE__LOG__FORMAT="json", HOOKGATE__LOG__FILTER=FILTER)
        language, form = self.name.split("-")
        program = [paths.python, paths.python_app] if language == "python" else ["node", paths.node_app]
        return [*program, self.port, stores.redis_url, stores.nats_url, form], environment(NODE_ENV="production")

    def _routes(self):
        # An older build knows no journal, and has this route by default.
        return {"HOOKGATE__ROUTES": json.dumps([{**ROUTE, "journal": False}])} if self.name == "hookgate-plain" else {}

    def _await_first_answer(self):
        """Milliseconds from the start of the process to its first 200."""
        body = json.dumps([{"id": "the-first"}])

        def answered():
            connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=10)
            try:
                connection.request("POST", PATH, body, {"Content-Type": "application/json"})
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()
        self.process.wait_until(answered, "answering 200")
        return (time.monotonic() - self.process.begun) * 1000

    def cpu(self):
        """CPU seconds of server and stores."""
        return {"proxy": self.process.cpu(), "redis": self.stores.redis.cpu(), "nats": self.stores.nats.cpu()}

    def settle(self):
        """Until nothing is in hand any more."""
        self.process.wait_until(lambda: self.stores.in_flight() == 0, "settled")

    def stop(self):
        """The server, then its stores."""
        self.process.stop()
        if self.own_stores:
            self.stores.stop()
