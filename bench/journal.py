#!/usr/bin/env python3
"""What the journal costs Redis: the scripts of two versions in turns, on one real server. No proxy, no NATS.

    python3 bench/journal.py OLD NEW        two checkouts, or the same one twice: journal off and on

Each call claims 50 ids for one request, settles them, and releases them (SREM and, in NEW, what forgets the entries). Prints µs of
Redis' CPU for each call, and the bytes that a pending id takes beside the SET.
"""
import os, socket, subprocess, sys, tempfile, time, pathlib

IDS, CALLS, ROUNDS = 50, 2000, 5
KEY = "vmh:beteiligte:update_pending"
KEYS = [KEY] + ["{%s}:%s" % (KEY, name) for name in ("outbox", "addresses", "journal", "marks")]


class Redis:
    def __init__(self, port):
        self.wire = socket.create_connection(("127.0.0.1", port))
        self.file = self.wire.makefile("rb")

    def send(self, *words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            word = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
        self.wire.sendall(b"".join(parts))
        return self.read()

    def read(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        return rest

    def cpu(self):
        info = dict(line.split(":", 1) for line in self.send("INFO", "cpu").decode().split() if ":" in line)
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])

    def memory(self):
        return int(dict(l.split(":", 1) for l in self.send("INFO", "memory").decode().split() if ":" in l)["used_memory"])


class Scripts:
    """Claim, settle and release of a checkout."""

    def __init__(self, redis, root, journal):
        code = pathlib.Path(root, "src/pending")
        self.redis, self.journal = redis, journal
        self.new = (code / "life.lua").exists()
        self.claim = redis.send("SCRIPT", "LOAD", (code / "claim.lua").read_bytes())
        self.settle = redis.send("SCRIPT", "LOAD", (code / "settle.lua").read_bytes())

    def take(self, number, release=True):
        seed = "%012x7%03x8%015x" % (int(time.time() * 1000), number % 4096, number)
        ids = ["entity-%d-%d" % (number, place) for place in range(IDS)]
        tokens = ["%s-%d" % (seed, place) for place in range(IDS)]
        claim = ["EVALSHA", self.claim]
        if self.new:
            keys = KEYS if self.journal else KEYS[:3]
            claim += [len(keys), *keys, 1000000, 0, 0, "address", 1, "", 1, seed, 0, IDS, "p"]
        else:
            claim += [3, *KEYS[:3], 1000000, 0, 0, "address", 1, seed, 0, IDS]
        assert self.redis.send(*claim, *ids)[0] == b"n" * IDS
        if self.new:
            keys = [KEYS[1], KEYS[3]] if self.journal else [KEYS[1]]
            sequences = [" ".join(str(number * IDS + place) for place in range(IDS))] if self.journal else []
            settle = ["EVALSHA", self.settle, len(keys), *keys, *ids, *tokens, *sequences]
        else:
            settle = ["EVALSHA", self.settle, 1, KEYS[1], *ids, *tokens]
        assert self.redis.send(*settle) == IDS
        return ids

    def release(self, ids):
        self.redis.send("SREM", KEY, *ids)
        if self.journal:
            self.redis.send("HDEL", KEYS[3], *ids)


def main():
    old, new = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            for _ in range(100):
                try:
                    redis = Redis(port)
                    break
                except OSError:
                    time.sleep(0.05)
            systems = {"old": Scripts(redis, old, False), "new, journal off": Scripts(redis, new, False), "new": Scripts(redis, new, True)}
            took = {name: [] for name in systems}
            number = 0
            for _ in range(ROUNDS):
                for name, scripts in systems.items():
                    redis.send("FLUSHALL")
                    claimed, began = [], redis.cpu()
                    for _ in range(CALLS):
                        number += 1
                        claimed.append(scripts.take(number))
                    claiming = redis.cpu() - began
                    began = redis.cpu()
                    for ids in claimed:
                        scripts.release(ids)
                    took[name].append((claiming / CALLS * 1e6, (redis.cpu() - began) / CALLS * 1e6))
            middle = lambda values: sorted(values)[len(values) // 2]
            base = middle([claim for claim, _ in took["old"]])
            for name, values in took.items():
                claim, release = middle([v[0] for v in values]), middle([v[1] for v in values])
                print("%-18s claim and settle %6.1f µs (%.2fx), release %5.1f µs, for %d ids" % (name, claim, claim / base, release, IDS))
            sizes = {}
            for name in ("new, journal off", "new"):
                redis.send("FLUSHALL")
                before = redis.memory()
                for _ in range(4000):
                    number += 1
                    systems[name].take(number)
                sizes[name] = (redis.memory() - before) / (4000 * IDS)
            print("a pending id: %.0f bytes in the SET, %.0f more in the journal" % (sizes["new, journal off"], sizes["new"] - sizes["new, journal off"]))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
