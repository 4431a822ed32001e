"""A model of EspoCRM's webhook queue: batches, attempts, and what each answer means to it (the rules of version 9 or 10)."""

import hmac
import http.client
import itertools
import json
import socket
import ssl
import threading
import time
from base64 import b64encode
from dataclasses import dataclass, field

PATH = "/vmh/webhook/beteiligte/create"
CONNECT, TOTAL = 5, 10  # seconds, as EspoCRM has them
ATTEMPTS = 4
# Seconds between them, in the place of ten minutes.
PAUSE = 5
BATCH = 10
AGAIN = {401, 403, 404, 405, 408, 500, 503}


def signature(key, body):
    """EspoCRM's, for (webhook's id, secret)."""
    number, secret = key
    mac = hmac.new(secret.encode(), body, "sha256").hexdigest()
    return b64encode(f"{number}:{mac}".encode()).decode()


@dataclass
class Sent:
    """What came of a load."""

    accepted: set = field(default_factory=set)
    failed: set = field(default_factory=set)
    answers: dict = field(default_factory=dict)
    longest: float = 0


class Sender:
    """Workers that send until they are told to stop, and then settle what is queued."""

    def __init__(self, targets, host, authority, name, workers=6, large_every=5, large=200_000, pause=PAUSE, version=10):
        self.targets, self.host, self.authority, self.name = targets, host, authority, name
        self.large_every, self.large, self.pause = large_every, large, pause
        self.broken = "final" if version >= 10 else "again"
        self.tls = ssl.create_default_context(cadata=authority)
        # (webhook's id, secret) to sign with, if any.
        self.key = None
        self.sent, self.lock = Sent(), threading.Lock()
        self.numbers, self.turns = itertools.count(), itertools.count()
        self.stopping, self.resting = threading.Event(), threading.Event()
        self.workers = [threading.Thread(target=self.work, daemon=True) for _ in range(workers)]
        for worker in self.workers:
            worker.start()

    def finish(self):
        self.stopping.set()
        for worker in self.workers:
            worker.join()
        return self.sent

    def work(self):
        waiting = []  # (due, attempts, ids), oldest first
        while True:
            while self.resting.is_set():
                time.sleep(0.1)
            if waiting and waiting[0][0] <= time.monotonic():
                _, attempts, ids = waiting.pop(0)
            elif not self.stopping.is_set() and len(waiting) < 20:
                attempts, ids = 0, [f"{self.name}-{next(self.numbers)}" for _ in range(BATCH)]
            elif waiting:
                time.sleep(max(0, waiting[0][0] - time.monotonic()))
                continue
            elif self.stopping.is_set():
                return
            verdict = self.send(ids)
            with self.lock:
                if verdict == "delivered":
                    self.sent.accepted.update(ids)
                elif verdict == "again" and attempts + 1 < ATTEMPTS:
                    waiting.append((time.monotonic() + self.pause, attempts + 1, ids))
                else:
                    self.sent.failed.update(ids)
            time.sleep(0.05)

    def send(self, ids):
        """Sends a batch once; `delivered`, `again` or `final`."""
        turn = next(self.turns)
        records = [{"id": number} for number in ids]
        # Some bodies are longer than a gateway keeps for a second try by default.
        if turn % self.large_every == 0:
            records[0]["note"] = "x" * self.large
        began = time.monotonic()
        try:
            # Others may be set meanwhile.
            targets = self.targets
            answer = self.exchange(targets[turn % len(targets)], json.dumps(records).encode(), began)
        except TimeoutError:
            answer, verdict = "no answer", "again"
        except (OSError, http.client.HTTPException) as error:
            answer, verdict = type(error).__name__, self.broken
        else:
            verdict = "delivered" if answer in (200, 204) else "again" if answer in AGAIN else "final"
        with self.lock:
            self.sent.answers[answer] = self.sent.answers.get(answer, 0) + 1
            self.sent.longest = max(self.sent.longest, time.monotonic() - began)
        return verdict

    def exchange(self, target, body, began):
        """The status."""
        with socket.create_connection(target, timeout=CONNECT) as plain:
            plain.settimeout(TOTAL)
            with self.tls.wrap_socket(plain, server_hostname=self.host) as connection:
                head = f"POST {PATH} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
                head += f"Signature: {signature(key, body)}\r\n\r\n" if (key := self.key) else "\r\n"
                connection.sendall(head.encode() + body)
                connection.settimeout(max(0.1, began + TOTAL - time.monotonic()))
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                answer.read()
                return answer.status
