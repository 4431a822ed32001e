"""Restored from a backup: the commands of docs/operations.md, as they are written, under load.

They need the command lines of NATS and Redis in PATH, and the page's image busybox:1.37 in the cluster."""

import os
import re
import shlex
import subprocess
from contextlib import ExitStack
from shutil import which

import pages
from cluster import NAMESPACE, OPERATOR, PENDING, SCRATCH, STREAM, forwarded, here, progress, published, ready, redis, run

PLACE = SCRATCH / "backup"
NEEDED = ("nats", "redis-cli")


def here_is(command):
    """With this place's namespace."""
    return re.sub(r"-n (stores|hookgate|hookgate-dev)\b(?!-)", f"-n {NAMESPACE}", command)


# Where there are users: the operators'.
LOGIN = f"--user {OPERATOR[0]} --pass {OPERATOR[1]} --no-auth-warning" if OPERATOR else ""
FUNCTION = "hookgate() {\n" if OPERATOR else "hookgate() { "
# What the page says by `hookgate` and `redis-cli`, by the ports that lead to the stores. `nats` knows NATS_URL.
TOOLS = {
    "hookgate": here_is(next(block for block in pages.blocks(pages.OPERATIONS.read_text()) if block.startswith(FUNCTION)).split("}\n")[0])
    + '}\nhookgate "$@"',
    "redis-cli": f'exec {which("redis-cli")} -p "$REDIS_PORT" {LOGIN} "$@"',
}


def blocks(heading):
    """The shell blocks of a part of the page, with this place's namespace."""
    found = pages.blocks(pages.part(pages.OPERATIONS, heading))
    if not found:
        raise SystemExit(f"{pages.OPERATIONS.name}: {heading} has no commands")
    return [here_is(block) for block in found]


def prepare():
    run("rm", "-rf", PLACE)
    tools = PLACE / "bin"
    tools.mkdir(parents=True)
    for name, line in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)


def follow(block):
    """Runs a block where the backups are, with the operators' rights; it has to succeed as a whole."""
    with ExitStack() as ports:
        environment = os.environ | {"PATH": f"{PLACE}/bin:{os.environ['PATH']}"}
        # The page starts and stops Redis in the blocks that don't ask it.
        if "redis-cli" in block:
            environment["REDIS_PORT"] = str(ports.enter_context(forwarded("pod/redis-0", 6379)))
        if "nats " in block:
            login = f"{OPERATOR[0]}:{OPERATOR[1]}@" if OPERATOR else ""
            environment["NATS_URL"] = f"nats://{login}127.0.0.1:{ports.enter_context(forwarded('pod/nats-0', 4222))}"
        done = subprocess.run(["bash", "-euc", block], cwd=PLACE, env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"the page's {shlex.quote(block)} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
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
    print(f"    {here('top', 'pod', 'nats-0', '--no-headers', said=True)}", flush=True)
