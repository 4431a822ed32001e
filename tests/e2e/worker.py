"""Durable consumers of the stream, as the ones that release ids by their acknowledgements."""

import json
import threading
import time

from cluster import STREAM, forwarded
from stream import Reader


def consumer_api(operation, name, **question):
    with forwarded("pod/nats-0", 4222) as port:
        return Reader(port).ask(f"$JS.API.CONSUMER.{operation}.{STREAM}.{name}", question)


def made(name, subject, **more):
    """A durable consumer of what comes from now on, and of the last of what came before."""
    config = {"durable_name": name, "filter_subject": subject, "ack_policy": "explicit", "ack_wait": 30_000_000_000, "max_ack_pending": 1000,
              "deliver_policy": "by_start_sequence", "opt_start_seq": max(1, last_sequence() - 5000)}
    consumer_api("DURABLE.CREATE", name, stream_name=STREAM, config=config | more)


def changed(name, **more):
    config = consumer_api("INFO", name)["config"]
    consumer_api("DURABLE.CREATE", name, stream_name=STREAM, config=config | more)


def deleted(name):
    consumer_api("DELETE", name)


def last_sequence():
    with forwarded("pod/nats-0", 4222) as port:
        return Reader(port).ask(f"$JS.API.STREAM.INFO.{STREAM}", {})["state"]["last_seq"]


class Worker:
    """Answers what a consumer gets until it is stopped; paused it asks for nothing."""

    def __init__(self, name, answer):
        self.name, self.answer = name, answer
        self.paused, self.stopping = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def stop(self):
        self.stopping.set()
        self.thread.join()

    def work(self):
        while not self.stopping.is_set():
            try:
                with forwarded("pod/nats-0", 4222) as port:
                    reader = Reader(port)
                    reader.say(f"SUB {reader.inbox}.events 2")
                    while not self.stopping.is_set():
                        self.pull(reader)
                        self.stopping.wait(0.2)
            # NATS is away, or its forwarded port is; the next try may find it.
            except (OSError, RuntimeError):
                self.stopping.wait(0.5)

    def pull(self, reader):
        """Until it is paused. It asks again before the time of what it asked is up, so that nothing waits for it. Answers go together:
        each write through a forwarded port costs more than a message."""
        asked, answers = 0, []
        while not (self.stopping.is_set() or self.paused.is_set()):
            if time.monotonic() - asked > 1 or len(answers) > 200:
                ask = json.dumps({"batch": 100_000, "expires": 2_000_000_000})
                answers.append(f"PUB $JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self.name} {reader.inbox}.events {len(ask)}\r\n{ask}")
                reader.say("\r\n".join(answers))
                asked, answers = time.monotonic(), []
            _, reply, body = reader.delivered()
            # Without a reply it is a status: the time is up.
            if reply:
                answer = self.answer(json.loads(body))
                answers.append(f"PUB {reply} {len(answer)}\r\n{answer}")
        if answers:
            reader.say("\r\n".join(answers))
