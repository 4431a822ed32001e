"""Reads a JetStream stream up to its last message, with as much of the NATS protocol as that takes."""

import json
import secrets
import socket


class Reader:
    """A connection to NATS."""

    def __init__(self, port, who=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()  # INFO
        # Of its own: the consumer of a reader before it would deliver to the same subject once more.
        self.inbox = f"_INBOX.hookgate.{secrets.token_hex(8)}"
        login = dict(zip(("user", "pass"), who or ()))
        self.say(f'CONNECT {json.dumps({"verbose": False, "headers": True, **login})}\r\nSUB {self.inbox}.answers 1')

    def say(self, text):
        self.socket.sendall(f"{text}\r\n".encode())

    def ask(self, subject, question):
        body = json.dumps(question)
        self.say(f"PUB {subject} {self.inbox}.answers {len(body)}\r\n{body}")
        while True:
            subscription, answer = self.message()
            if subscription == "1":
                answer = json.loads(answer)
                if "error" in answer:
                    raise RuntimeError(f"{subject}: {answer['error']}")
                return answer

    def message(self):
        """(subscription, body) of the next message."""
        subscription, _, body = self.delivered()
        return subscription, body

    def delivered(self):
        """(subscription, where to answer if anywhere, body) of the next message."""
        while True:
            line = self.lines.readline().decode()
            if not line.endswith("\n"):
                raise ConnectionError("the connection to NATS ended")
            words = line.split()
            if words[0] == "PING":
                self.say("PONG")
            elif words[0] in ("MSG", "HMSG"):
                size = int(words[-1]) + 2
                body = self.lines.read(size)
                if len(body) < size:
                    raise ConnectionError("the connection to NATS ended in a message")
                body = body[:-2]
                headers = words[0] == "HMSG"
                reply = words[3] if len(words) == (6 if headers else 5) else None
                return words[2], reply, body[int(words[-2]):] if headers else body
            elif words[0] == "-ERR":
                raise RuntimeError(" ".join(words))

    def events(self, stream, since=None):
        """The bodies of all messages that the stream holds now, or of those since a time (RFC 3339)."""
        start = {"deliver_policy": "by_start_time", "opt_start_time": since} if since else {"deliver_policy": "all"}
        consumer = {"ack_policy": "none", "mem_storage": True, "num_replicas": 1, "inactive_threshold": 30_000_000_000, **start}
        made = self.ask(f"$JS.API.CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": consumer})
        self.say(f"SUB {self.inbox}.events 2")
        found, left = [], made["num_pending"]
        while left:
            # Not all at once: who can't keep up with 64 MiB is cut off, and a forwarded port can't.
            count = min(left, 10_000)
            ask = json.dumps({"batch": count})
            self.say(f"PUB $JS.API.CONSUMER.MSG.NEXT.{stream}.{made['name']} {self.inbox}.events {len(ask)}\r\n{ask}")
            for _ in range(count):
                found.append(json.loads(self.message()[1]))
            left -= count
        return found
