"""A real hookgate between a real Redis and a real NATS, on free ports, ended with the test."""

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PATIENCE = 30
# A route of an older configuration, and an event of it that was never acknowledged.
REMOVED = json.dumps({"flow": "vmh", "entity": "old", "action": "create", "path": "/old", "subject": "vmh.old.create"})
TOKEN = "01a20c9f5a9877978ab71db30515b4ba-0"


def until(what, condition):
    """Waits for a condition, never for time."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE} s: {what}")
        time.sleep(0.05)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class EmptyCrm(BaseHTTPRequestHandler):
    """EspoCRM's API with nothing in it."""

    def do_GET(self):
        body = json.dumps({"total": -2, "list": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def crm_metrics(settings):
    """What `hookgate doctor --espocrm --metrics` prints of such a CRM."""
    crm = ThreadingHTTPServer(("127.0.0.1", 0), EmptyCrm)
    threading.Thread(target=crm.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "password").write_text("password")
        config = Path(folder) / "hookgate.toml"
        config.write_text(f"""{settings}
[espocrm]
url = "http://127.0.0.1:{crm.server_port}"
user = "admin"
password_file = "{folder}/password"
""")
        command = [os.environ["HOOKGATE"], "--config", str(config), "doctor", "--espocrm", "--metrics"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    crm.shutdown()
    return done.stdout


class World:
    """All three; `with World() as world`. Settings are TOML, added to the configuration."""

    def __init__(self, settings=""):
        self.settings = settings

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.children = []
        self.redis, self.nats, self.webhooks, self.admin = (free_port() for _ in range(4))
        folder = Path(self.folder.name)
        self.start(os.environ.get("HOOKGATE_REDIS_SERVER", "redis-server"),
                   ["--bind", "127.0.0.1", "--port", str(self.redis), "--save", ""], self.redis)
        self.start(os.environ.get("HOOKGATE_NATS_SERVER", "nats-server"),
                   ["-a", "127.0.0.1", "-p", str(self.nats), "-js", "-sd", str(folder / "nats")], self.nats)
        self.redis_do("HSET", "hookgate:routes", "vmh:old:create_pending", REMOVED)
        self.redis_do("HSET", "{vmh:old:create_pending}:outbox", "left-behind", TOKEN)
        config = folder / "hookgate.toml"
        config.write_text(f"""
server.listen = "127.0.0.1:{self.webhooks}"
admin.listen = "127.0.0.1:{self.admin}"
redis.url = "redis://127.0.0.1:{self.redis}"
nats.url = "nats://127.0.0.1:{self.nats}"
{self.settings}""")
        self.start(os.environ["HOOKGATE"], ["--config", str(config)], self.admin)
        until("hookgate is ready", lambda: self.look("/v1/status", json.load)["ready"])
        return self

    def redis_do(self, *command):
        subprocess.run(["redis-cli", "-p", str(self.redis), "-n", "1", *command], check=True, stdout=subprocess.DEVNULL)

    def start(self, program, arguments, port):
        # No server outlives the test, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", program, *arguments]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.children.append(child)
        until(f"{program} listens", lambda: child.poll() is None and listens(port))

    def look(self, path, read):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}") as answer:
            return read(answer)

    def post(self, body, path="/vmh/webhook/beteiligte/create"):
        url = f"http://127.0.0.1:{self.webhooks}{path}"
        with urllib.request.urlopen(url, data=body.encode()) as answer:
            return answer.status

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.kill()
            child.wait()
        self.folder.cleanup()
