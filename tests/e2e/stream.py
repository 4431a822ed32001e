"""Reads a JetStream stream from its first message to its last, with as much of the NATS protocol as that takes."""

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
        self.say(f'CONNECT {json.dumps({"verbose": False, "headers": True, **login})}\r\nSUB {self.inbox}.answers 1\r\nSUB {self.inbox}.events 2')

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
            line = self.lines.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("NATS ended the connection")
            words = line.decode().split()
            if words[0] == "PING":
                self.say("PONG")
            elif words[0] in ("MSG", "HMSG"):
                body = self.lines.read(int(words[-1]) + 2)
                if not body.endswith(b"\r\n"):
                    raise ConnectionError("NATS ended the connection")
                body = body[:-2]
                headers = words[0] == "HMSG"
                reply = words[3] if len(words) == (6 if headers else 5) else None
                return words[2], reply, body[int(words[-2]):] if headers else body
            elif words[0] == "-ERR":
                raise RuntimeError(" ".join(words))

    def events(self, stream):
        """The bodies of all messages that the stream holds now."""
        held = self.ask(f"$JS.API.STREAM.INFO.{stream}", {})["state"]["messages"]
        if not held:
            return []
        consumer = {"deliver_subject": f"{self.inbox}.events", "ack_policy": "none", "deliver_policy": "all", "mem_storage": True,
                    "num_replicas": 1, "inactive_threshold": 30_000_000_000}
        self.ask(f"$JS.API.CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": consumer})
        found = []
        while len(found) < held:
            subscription, body = self.message()
            if subscription == "2":
                found.append(json.loads(body))
        return found
