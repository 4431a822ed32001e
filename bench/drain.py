#!/usr/bin/env python3
"""How fast replicas drain a full outbox, and what that does to requests.

    python3 bench/drain.py --entries 300000 target/release/hookgate [another/hookgate ...]

Each binary in turn, for each round: a Redis and a NATS of its own, an outbox that was left behind five minutes ago, three
replicas. Printed for each: seconds until the outbox is empty, entries/s, the latency of a moderate load of requests
during that time and for as long after it, peak memory and CPU of each process. The stream has to hold one message an
entry, and one for each id that the load was answered for. Needs redis-server and nats-server in PATH, and nothing else.
"""

import argparse
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PENDING = "vmh:beteiligte:create_pending"
OUTBOX = "{vmh:beteiligte:create_pending}:outbox"
PATH = "/vmh/webhook/beteiligte/create"
CLOCK = time.monotonic


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Redis:
    """A connection that speaks as much RESP as is needed here."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    def send(self, *words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            word = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
        self.socket.sendall(b"".join(parts))

    def read(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return self.file.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return int(rest) if kind == b":" else rest

    def call(self, *words):
        self.send(*words)
        return self.read()


def messages(port):
    """Messages of hookgate's stream."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        file = connection.makefile("rb")
        file.readline()
        connection.sendall(b'CONNECT {"verbose":false}\r\nSUB answer 1\r\nPUB $JS.API.STREAM.INFO.HOOKGATE answer 0\r\n\r\n')
        for line in file:
            if line.startswith(b"MSG"):
                return json.loads(file.read(int(line.split()[-1])))["state"]["messages"]
            if line.startswith(b"PING"):
                connection.sendall(b"PONG\r\n")


def fill(redis, entries, age):
    made = int((time.time() - age) * 1000)
    for start in range(0, entries, 1000):
        words = []
        for number in range(start, min(start + 1000, entries)):
            if number % 50 == 0:
                seed = f"{made:012x}7{secrets.token_hex(2)[1:]}8{secrets.token_hex(8)[1:]}"
            words += [f"{number:017x}", f"{seed}-{number % 50}"]
        redis.call("HSET", OUTBOX, *words)
        redis.call("SADD", PENDING, *words[::2])


def patiently(what, condition, limit=30):
    until = CLOCK() + limit
    while CLOCK() < until:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"drain: not within {limit} s: {what}")


def cpu(pid):
    spent = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as stat:
            spent += int(stat.read().split()[0])
    return spent / 1e9


def peak(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


class Load:
    """So many senders, each with a batch of 10 every 20 ms at most."""

    def __init__(self, ports, senders=4):
        self.times, self.ids, self.ended = [], 0, False
        self.threads = [threading.Thread(target=self.send, args=(ports[n % len(ports)], n)) for n in range(senders)]
        for thread in self.threads:
            thread.start()

    def send(self, port, sender):
        connection, count = http.client.HTTPConnection("127.0.0.1", port), 0
        while not self.ended:
            body = json.dumps([{"id": f"load-{id(self):x}-{sender}-{count}-{n}"} for n in range(10)])
            began = CLOCK()
            connection.request("POST", PATH, body)
            answer = connection.getresponse()
            answer.read()
            took = CLOCK() - began
            if answer.status == 200:
                self.ids += 10
            self.times.append(took)
            count += 1
            time.sleep(max(0, 0.02 - took))

    def end(self):
        self.ended = True
        for thread in self.threads:
            thread.join()
        times = sorted(self.times)
        at = lambda share: round(times[min(len(times) - 1, int(len(times) * share))] * 1000, 2)
        return {"requests": len(times), "p50_ms": at(0.5), "p99_ms": at(0.99), "longest_ms": at(1)}


def drain(binary, entries, replicas, with_load, age, extra):
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        start = lambda *words: processes.append(
            subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        )
        try:
            ports = [free_port() for _ in range(2 + 2 * replicas)]
            redis_port, nats_port, gates = ports[0], ports[1], ports[2:]
            start("redis-server", "--port", str(redis_port), "--save", "", "--appendonly", "no")
            start("nats-server", "-a", "127.0.0.1", "-p", str(nats_port), "-js", "-sd", folder)
            patiently("the stores listen", lambda: Redis(redis_port) and socket.create_connection(("127.0.0.1", nats_port)))
            redis = Redis(redis_port)
            redis.call("SELECT", 1)
            fill(redis, entries, age)
            for replica in range(replicas):
                name = f"{folder}/{replica}.toml"
                with open(name, "w") as file:
                    file.write(
                        f'redis.url = "redis://127.0.0.1:{redis_port}"\nnats.url = "nats://127.0.0.1:{nats_port}"\n'
                        f'server.listen = "127.0.0.1:{gates[2 * replica]}"\nadmin.listen = "127.0.0.1:{gates[2 * replica + 1]}"\n'
                        f'log.filter = "info,hookgate::entity=warn"\nserver.drain_delay = "0s"\n{extra}'
                    )
                start(binary, "--config", name, "serve")
            began = CLOCK()
            load = None
            if with_load:
                patiently("the replicas listen", lambda: all(socket.create_connection(("127.0.0.1", port)) for port in gates))
                load = Load(gates[::2])
            # From the first entry that goes: starting is not measured, waiting for their age is.
            patiently("the outbox is drained", lambda: redis.call("HLEN", OUTBOX) < entries * 0.999, 60)
            first, left = CLOCK(), redis.call("HLEN", OUTBOX)
            patiently("the outbox is empty", lambda: redis.call("HLEN", OUTBOX) <= (50 if load else 0), 900)
            ended = CLOCK()
            result = {"binary": binary, "entries": entries, "first_after_s": round(first - began, 2)}
            result |= {"seconds": round(ended - first, 2), "entries_per_s": round(left / (ended - first))}
            pids = dict(zip(["redis", "nats"] + [f"replica {n}" for n in range(replicas)], [p.pid for p in processes]))
            result["cpu_s"] = {name: round(cpu(pid), 2) for name, pid in pids.items()}
            result["peak_mib"] = {name: peak(pid) for name, pid in pids.items()}
            ids = 0
            if load:
                result["while_draining"] = load.end()
                ids += load.ids
                load = Load(gates[::2])
                time.sleep(min(10, max(3, ended - first)))
                result["without"] = load.end()
                ids += load.ids
                patiently("the outbox is empty", lambda: redis.call("HLEN", OUTBOX) == 0)
            stored = messages(nats_port)
            result["stored"], result["expected"] = stored, entries + ids
            return result
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGKILL)
                process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--age", type=int, default=300, help="seconds since the entries were claimed")
    parser.add_argument("--load", action="store_true", help="send requests meanwhile, and for as long after it")
    parser.add_argument("--settings", default="", help="TOML for the replicas")
    parser.add_argument("binaries", nargs="+")
    given = parser.parse_args()
    good = True
    for _ in range(given.rounds):
        for binary in given.binaries:
            result = drain(os.path.abspath(binary), given.entries, given.replicas, given.load, given.age, given.settings)
            print(json.dumps(result), flush=True)
            good = good and result["stored"] == result["expected"]
    if not good:
        sys.exit("drain: the stream does not hold one message an entry")


if __name__ == "__main__":
    main()
