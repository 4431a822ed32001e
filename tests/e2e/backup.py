"""Restored from a backup: the commands of docs/operations.md, as they are written, under load.

They need the command lines of NATS and Redis in PATH, and the page's image busybox:1.37 in the cluster."""

import os
import re
import shlex
import subprocess
import textwrap
from contextlib import ExitStack
from shutil import which

from cluster import NAMESPACE, PENDING, ROOT, SCRATCH, STREAM, forwarded, progress, published, ready, redis, run

PAGE = ROOT / "docs/operations.md"
PLACE = SCRATCH / "backup"
NEEDED = ("nats", "redis-cli")
# What the page says by `hookgate` and `redis-cli`, by the ports that lead to the stores. `nats` knows NATS_URL.
TOOLS = {
    "hookgate": f'exec kubectl -n {NAMESPACE} exec deploy/hookgate -- /hookgate "$@"',
    "redis-cli": f'exec {which("redis-cli")} -p "$REDIS_PORT" "$@"',
}


def blocks(heading):
    """The shell blocks of a part of the page, with this place's namespace."""
    part = re.split(r"\n##", PAGE.read_text().split(f"\n### {heading}\n")[-1])[0]
    found = [textwrap.dedent(block) for block in re.findall(r"^ *```sh\n(.*?)^ *```", part, re.MULTILINE | re.DOTALL)]
    if not found:
        raise SystemExit(f"{PAGE.name}: {heading} has no commands")
    return [re.sub(r"-n (stores|hookgate)\b", f"-n {NAMESPACE}", block) for block in found]


def prepare():
    run("rm", "-rf", PLACE)
    tools = PLACE / "bin"
    tools.mkdir(parents=True)
    for name, line in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)


def follow(block):
    """Runs a block where the backups are; it has to succeed as a whole."""
    with ExitStack() as ports:
        environment = os.environ | {"PATH": f"{PLACE}/bin:{os.environ['PATH']}"}
        # The page starts and stops Redis in the blocks that don't ask it.
        if "redis-cli" in block:
            environment["REDIS_PORT"] = str(ports.enter_context(forwarded("pod/redis-0", 6379)))
        if "nats " in block:
            environment["NATS_URL"] = f"nats://127.0.0.1:{ports.enter_context(forwarded('pod/nats-0', 4222))}"
        done = subprocess.run(["bash", "-euc", block], cwd=PLACE, env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{PAGE.name}: {shlex.quote(block)} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def redis_restored(sender):
    """Ids are released after the backup, and pending again after it; once the page was followed, each is an event again."""
    prepare()
    progress(sender, 300)
    done = redis("SRANDMEMBER", PENDING, "30").split()
    follow(blocks("Take the backups")[0])
    redis("SREM", PENDING, *done)
    progress(sender, 300)
    volume, relay, release = blocks("Redis")
    follow(volume)
    back = set(redis("SMEMBERS", PENDING).split())
    if not back.issuperset(done):
        raise SystemExit("Redis came back without what the backup held")
    follow(relay)
    follow(release)
    before = published()
    if sender.send(done) != "delivered":
        raise SystemExit("ids of the backup are not taken")
    after = published()
    if swallowed := [i for i in done if after.count(i) <= before.count(i)]:
        raise SystemExit(f"{len(swallowed)} ids of the backup are swallowed")


def stream_restored(sender):
    """NATS loses the stream after the backup; hookgate makes another, and the page brings back what both held."""
    prepare()
    progress(sender, 300)
    follow(blocks("Take the backups")[0])
    progress(sender, 300)
    follow(f"nats stream rm {STREAM} --force")
    progress(sender, 300)
    for block in blocks("The stream"):
        follow(block)
    ready()
