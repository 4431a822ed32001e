"""hookgate on the cluster of KUBECONFIG, behind Envoy Gateway or nginx, disturbed under load, then counted: the dev overlay,
the chart beside the overlay's stores, or production by its checklist, beside stores with users.

What it needs, and says if it is missing: kubectl, a cluster with a default storage class, Envoy Gateway with a Gateway
`public` in the namespace `gateways` that has an https listener for hooks.example.com, and the images of the overlay.

  E2E_LOAD   brings the image to the nodes: a command that takes archives (`kind load image-archive`); without it the
             image of the overlay has to be there
  E2E_NODE   runs a command on a node, `{node}` being its name (`docker exec {node}`); `env` where the nodes' processes
             are this machine's. Without it nothing is killed or frozen
  E2E_DEATH  lets a node die, `{node}` being its name, and E2E_RETURN brings it back. Without them none dies. A dead
             machine answers nothing: where only its processes are killed, its address has to fall silent too, else whoever
             connects is refused, which no load balancer would do
  E2E_API_DOWN  takes the API server away, and E2E_API_UP brings it back: `kill -STOP` and `-CONT` of its process do.
             Without them it stays
  E2E_WAY    overlay (default), chart or production; the chart needs helm in PATH, production curl
  E2E_GATE   envoy-gateway (default), or nginx: k8s/ingress/nginx before the overlay, and no Gateway. Its image
             nginxinc/nginx-unprivileged, with the tag of k8s/ingress/nginx, has to be on the nodes
  E2E_NEXT   another image of hookgate, to roll out (default hookgate:next, which E2E_LOAD brings too)
  E2E_CONSUMER_PYTHON, E2E_CONSUMER_NODE, E2E_CONSUMER_RUST
             images for the consumers of examples/, as tests/e2e/Containerfile makes them; those without one are left out
  E2E_PROMETHEUS, E2E_PUSHGATEWAY  images whose entry points are Prometheus (2.42 or later) and its Pushgateway, as
             prom/prometheus and prom/pushgateway are, and which the nodes have or can pull; the CRM beside them is the
             nginx of k8s/ingress/nginx. Without them no alert is tried, and no size is measured. E2E_WAY=overlay only
  E2E_NAMESPACE  where hookgate is installed (default hookgate-e2e). A second run beside another one: with
             E2E_GATE=nginx, since two routes for one host collide
  E2E_ONLY   parts of scenarios' names, separated by spaces

What is restored from a backup needs `nats` and `redis-cli` in PATH; that and the consumers need the image busybox:1.37 on the nodes.

It works in a namespace of its own and leaves nothing behind."""

import os
import sys
import time

from cluster import (
    HOST, PENDING, SCRATCH, WAY, addresses, authority, eventually, killed_by_the_kernel, progress, published, redis, restarts, unhealthy,
)
from install import installed, load_image, prerequisites
from scenarios import BEFORE, CALM, DEADLY, SCENARIOS, SENDERS, left_out, node_dies
from sender import Sender

# Seconds after the last answer within which every accepted id has its event.
BOUND = 45
# Seconds that the clock of a node may be behind this one's.
SKEW = 300


def judge(sent, began, known):
    """(missing, stuck): accepted without an event, and pending without one, once the outbox is empty. `known` are the ids that
    had their event in the scenarios before; it grows. So nothing is read twice but the last minutes."""
    eventually("the outbox is empty", lambda: redis("HLEN", "{%s}:outbox" % PENDING) == "0", within=BOUND)
    known.update(published(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began - SKEW))))
    return len(sent.accepted - known), len(set(redis("SMEMBERS", PENDING).split()) - known)


def main():
    only = os.environ.get("E2E_ONLY", "").split()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    prerequisites()
    load_image()
    wrong, known = 0, set()
    with installed():
        targets, trusted = addresses(), authority()
        print(f"{WAY:<24} {'accepted':>8} {'failed':>7} {'missing':>8} {'stuck':>6} {'longest':>8}  {'took':>5}  answers", flush=True)
        for scenario in SCENARIOS:
            name = scenario.__name__
            if only and not any(part in name for part in only):
                continue
            if why := left_out(scenario):
                print(f"{name:<24} left out: {why}", flush=True)
                continue
            wall, began = time.time(), time.monotonic()
            probes_before, restarts_before, problems = unhealthy(), restarts(), []
            # A load balancer sends nothing to a node that is dead, or that is not back yet.
            to = targets[:-1] if scenario is node_dies else targets
            BEFORE.get(scenario, lambda: None)()
            sender = Sender(to, HOST, trusted, name, **SENDERS.get(scenario, {}))
            try:
                scenario(sender)
                if not sender.stopping.is_set():
                    progress(sender, 200)
            except SystemExit as problem:
                problems.append(str(problem))
            finally:
                sent = sender.finish()
            missing, stuck = judge(sent, wall, known)
            problems += sorted(killed_by_the_kernel())
            if scenario not in DEADLY:
                problems += [f"{uid}: started again" for uid, count in restarts().items() if count > restarts_before.get(uid, 0)]
            if scenario in CALM:
                problems += sorted(unhealthy() - probes_before)
            answers = ", ".join(f"{status}: {count}" for status, count in sorted(sent.answers.items(), key=str))
            took = time.monotonic() - began
            print(f"{name:<24} {len(sent.accepted):>8} {len(sent.failed):>7} {missing:>8} {stuck:>6} {sent.longest:>7.1f}s  {took:>4.0f}s  {answers}", flush=True)
            for problem in problems:
                print(f"    {problem}", flush=True)
            good = sent.accepted and not sent.failed and not missing and not stuck and sent.longest < 10 and not problems
            wrong += not good
    print(f"{'all hold' if not wrong else f'FAILED: {wrong} scenarios'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
