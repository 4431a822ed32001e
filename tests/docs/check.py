"""Runs what the pages show; see `run`."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import nats

from servers import World, free_port, until

failed = 0


def check(what, right, found):
    global failed
    failed += not right
    print(f"{'ok     ' if right else 'FAILED '} {what}" + ("" if right else f": {found}"))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", Path(page).read_text(), re.DOTALL | re.MULTILINE)


def instead(text, *changes):
    """The text with other addresses; each has to be in it."""
    for old, new in changes:
        assert old in text, f"{old} is not in the example"
        text = text.replace(old, new)
    return text


def post(world, body):
    url = f"http://127.0.0.1:{world.webhooks}/vmh/webhook/beteiligte/create"
    with urllib.request.urlopen(url, data=body.encode()) as answer:
        return json.load(answer)


def pending(world):
    command = ["redis-cli", "-p", str(world.redis), "-n", "1", "SCARD", "vmh:beteiligte:create_pending"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def unacknowledged(world):
    async def ask():
        connection = await nats.connect(f"nats://127.0.0.1:{world.nats}")
        info = await connection.jetstream().consumer_info("HOOKGATE", "case-sync")
        await connection.close()
        return info.num_pending + info.num_ack_pending

    return asyncio.run(ask())


with World(blocks("docs/consumers.md", "toml")[0]) as world:
    command = blocks("docs/consumers.md", "sh")[0].split("#")[0].split()
    config = ["--config", str(Path(world.folder.name) / "hookgate.toml")]
    made = subprocess.run([os.environ["HOOKGATE"], *config, *command[1:]], capture_output=True, text=True)
    check("docs/consumers.md: its command makes the durable consumer", made.returncode == 0, made)
    program = instead(
        blocks("docs/consumers.md", "python")[0],
        ("nats://127.0.0.1:4222", f"nats://127.0.0.1:{world.nats}"),
    )
    post(world, '[{"id": "a"}, {"id": "b"}]')
    consumer = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    until("the consumer releases what it processed", lambda: consumer.poll() is not None or pending(world) == 0)
    check("docs/consumers.md: the consumer releases each id", pending(world) == 0, f"exit code {consumer.poll()}")
    until("the consumer acknowledges", lambda: unacknowledged(world) == 0)
    check("docs/consumers.md: the consumer acknowledges each event", True, "")
    again = post(world, '[{"id": "a"}]')
    check("docs/consumers.md: a released id is new again", again["new_ids_count"] == 1, again)
    consumer.kill()
    consumer.wait()

    key, identity = "0123456789abcdef0123456789abcdef", "65f0c1d2e3a4b5c6d"
    folder = Path(world.folder.name)
    (folder / "secret").write_text(key)
    webhooks, admin = free_port(), free_port()
    config = folder / "signed.toml"
    config.write_text(f"""
server.listen = "127.0.0.1:{webhooks}"
admin.listen = "127.0.0.1:{admin}"
redis.url = "memory:"
nats.url = "nats://127.0.0.1:{world.nats}"
[[routes]]
flow = "vmh"
entity = "beteiligte"
action = "create"
auth = [{{ scheme = "espocrm", id = "{identity}", secret_files = ["{folder / 'secret'}"] }}]
""")
    world.start(os.environ["HOOKGATE"], ["--config", str(config)], webhooks)
    by_hand = next(block for block in blocks("docs/espocrm.md", "sh") if "openssl" in block)
    by_hand = instead(
        by_hand,
        ("https://hooks.example.com", f"http://127.0.0.1:{webhooks}"),
        ("/run/secrets/espo/create", str(folder / "secret")),
        ("curl -H", "curl -sS --noproxy '*' --max-time 15 -H"),
    )
    signed = subprocess.run(["bash", "-ec", by_hand], capture_output=True, text=True)
    check("docs/espocrm.md: a request signed by hand is let in", '"new_ids_count":1' in signed.stdout, signed)

body = '[{"id":"6601aa0b1c2d3e4f5"}]'
mac = hmac.new(key.encode(), body.encode(), hashlib.sha256).hexdigest()
header = "Signature: " + base64.b64encode(f"{identity}:{mac}".encode()).decode()
page = Path("docs/espocrm.md").read_text()
check("docs/espocrm.md: the signature to compare with is right", all(part in page for part in (header, key, body)), header)

sys.exit(failed > 0)
