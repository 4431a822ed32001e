"""What a pod of hookgate takes: at rest, under the sender's load, and under bodies of 15 MiB; for the requests and limits."""

import json
from contextlib import contextmanager

from cluster import NAMESPACE, eventually, kubectl, pods, waited
from monitoring import JOB, monitored
from sender import Sender

LONG = 40  # seconds; what metrics-server says of stores is as old as half of that


def shown(usage):
    """As metrics-server gives it: in billionths of a core, and KiB."""
    return f"{int(usage['cpu'].rstrip('n')) / 1e6:.0f}m {int(usage['memory'].rstrip('Ki')) / 1024:.0f}MiB"


def line(what, prometheus, accepted):
    """The most of any pod."""
    def most(query):
        return max(float(one["value"][1]) for one in prometheus.query(query))

    cpu = most(f'rate(process_cpu_seconds_total{{job="{JOB}"}}[{LONG - 5}s])')
    memory = most(f'max_over_time(process_resident_memory_bytes{{job="{JOB}"}}[{LONG - 5}s])')
    top = json.loads(kubectl("get", "--raw", f"/apis/metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/pods"))["items"]
    stores = ", ".join(f"{pod['metadata']['name']} {shown(container['usage'])}" for pod in top for container in pod["containers"]
                       if pod["metadata"]["name"] in ("redis-0", "nats-0"))
    print(f"    {what:<16} hookgate {1000 * cpu:.0f}m {memory / (1 << 20):.0f}MiB, {stores}, {accepted / LONG:.0f} ids/s", flush=True)


@contextmanager
def resting(sender):
    sender.resting.set()
    try:
        yield
    finally:
        sender.resting.clear()


def sizes(sender):
    with monitored({}) as prometheus:
        eventually("each pod is scraped", lambda: len(prometheus.query(f'up{{job="{JOB}"}} == 1')) == len(pods()))
        with resting(sender):
            waited(LONG)
            line("at rest", prometheus, 0)
        before = len(sender.sent.accepted)
        waited(LONG)
        line("200 kB bodies", prometheus, len(sender.sent.accepted) - before)
        with resting(sender):
            large = Sender(sender.targets, sender.host, sender.authority, f"{sender.name}-large", workers=4, large=15 << 20, large_every=4)
            try:
                waited(LONG)
            finally:
                sent = large.finish()
            line("15 MiB bodies", prometheus, len(sent.accepted))
    sender.sent.accepted.update(sent.accepted)
    sender.sent.failed.update(sent.failed)
