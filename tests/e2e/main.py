"""hookgate on the cluster of KUBECONFIG, behind Envoy Gateway or nginx, disturbed under load, then counted: the dev overlay,
the chart beside the overlay's stores, or production by its checklist, beside stores with users.

What it needs, and says if it is missing: kubectl, curl and openssl; a cluster with a default storage class and metrics-server; Envoy
Gateway with a Gateway `public` in the namespace `gateways` that has an https listener for hooks.example.com, its certificate not
an authority's own (CA:FALSE), else hookgate refuses it. The images of the overlay have to be where the nodes find them.

  E2E_LOAD   brings the image to the nodes: a command that takes archives (`kind load image-archive`); without it the
             image of the overlay has to be there
  E2E_NODE   runs a command on a node, `{node}` being its name (`docker exec {node}`); `env` where the nodes' processes
             are this machine's. Without it nothing is killed or frozen
  E2E_DEATH  lets a node die, `{node}` being its name, and E2E_RETURN brings it back. Without them none dies. A dead
             machine answers nothing: where only its processes are killed, its address has to fall silent too, else whoever
             connects is refused, which no load balancer would do
  E2E_API_DOWN  takes the API server away, and E2E_API_UP brings it back: `kill -STOP` and `-CONT` of its process do.
             Without them it stays
  E2E_WAY    overlay (default), chart or production; the chart needs helm in PATH, production jq
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
  E2E_COMPLETE  anything: what this way has and what is left out for want of something fails

What is restored from a backup needs `nats` and `redis-cli` in PATH; that and the consumers need the image busybox:1.37 on the nodes.

It works in a namespace of its own and leaves nothing behind."""

import os
import sys
import time
import traceback

from cluster import (
    HOST, PENDING, SCRATCH, WAY, addresses, authority, eventually, killed_by_the_kernel, look, progress, published, redis, restarts,
    unhealthy,
)
from install import installed, load_image, prerequisites
from scenarios import BEFORE, CALM, COMPLETE, DEADLY, SCENARIOS, SENDERS, SLOW, lacks, node_dies, not_here
from sender import Sender, Sent

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


def ended_badly():
    return unhealthy(), restarts(), killed_by_the_kernel()


class Trial:
    """One scenario, and what is wrong with it. Whatever a step raises is a problem of this scenario; the next one is tried all the same."""

    def __init__(self, scenario):
        self.scenario, self.problems = scenario, []

    def step(self, what, *arguments):
        try:
            return what(*arguments)
        except SystemExit as problem:
            self.problems.append(str(problem))
        except Exception as problem:
            at = traceback.extract_tb(problem.__traceback__)[-1]
            self.problems.append(f"{type(problem).__name__}: {problem} ({os.path.basename(at.filename)}:{at.lineno})")
        return None

    def disturb(self, targets, trusted):
        """The scenario under its load; what came of the load."""
        scenario = self.scenario
        # A load balancer sends nothing to a node that is dead, or that is not back yet.
        to = targets[:-1] if scenario is node_dies else targets
        BEFORE.get(scenario, lambda: None)()
        sender = Sender(to, HOST, trusted, scenario.__name__, **SENDERS.get(scenario, {}))
        self.step(scenario, sender)
        if not self.problems and not sender.stopping.is_set():
            self.step(progress, sender, 200)
        return sender.finish()

    def compare(self, probes, started, killed, probes_now, started_now, killed_now):
        self.problems += sorted(killed_now - killed)
        if self.scenario not in DEADLY:
            self.problems += [f"{uid}: started again" for uid, count in started_now.items() if count > started.get(uid, 0)]
        if self.scenario in CALM:
            self.problems += sorted(probes_now - probes)

    def holds(self, targets, trusted, known):
        """Runs it, and prints its row."""
        name, wall, began = self.scenario.__name__, time.time(), time.monotonic()
        before = self.step(ended_badly)
        sent = self.step(self.disturb, targets, trusted) or Sent()
        missing, stuck = self.step(judge, sent, wall, known) or ("?", "?")
        if before and (after := self.step(ended_badly)):
            self.compare(*before, *after)
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(sent.answers.items(), key=str))
        took = time.monotonic() - began
        print(f"{name:<24} {len(sent.accepted):>8} {len(sent.failed):>7} {missing:>8} {stuck:>6} {sent.longest:>7.1f}s  {took:>4.0f}s  {answers}", flush=True)
        for problem in self.problems:
            print(f"    {problem}", flush=True)
        in_time = sent.longest < 10 or self.scenario in SLOW
        good = sent.accepted and not sent.failed and missing == stuck == 0 and in_time and not self.problems
        if not good:
            self.step(look)
        return good


def asked_for():
    """Those of E2E_ONLY, or all."""
    only = os.environ.get("E2E_ONLY", "").split()
    names = [scenario.__name__ for scenario in SCENARIOS]
    if unknown := [part for part in only if not any(part in name for name in names)]:
        raise SystemExit(f"e2e: E2E_ONLY: no scenario is called {', '.join(unknown)}; there are {', '.join(names)}")
    return [scenario for scenario in SCENARIOS if not only or any(part in scenario.__name__ for part in only)]


def main():
    scenarios = asked_for()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    prerequisites()
    load_image()
    ran, wrong, left, known = 0, [], [], set()
    with installed():
        targets, trusted = addresses(), authority()
        print(f"{WAY:<24} {'accepted':>8} {'failed':>7} {'missing':>8} {'stuck':>6} {'longest':>8}  {'took':>5}  answers", flush=True)
        for scenario in scenarios:
            name = scenario.__name__
            if why := not_here(scenario):
                print(f"{name:<24} not here: {why}", flush=True)
            elif why := lacks(scenario):
                print(f"{name:<24} LEFT OUT: {why}", flush=True)
                left.append(name)
            else:
                ran += 1
                if not Trial(scenario).holds(targets, trusted, known):
                    wrong.append(name)
        # Before all is taken away, which may fail, too.
        if wrong:
            print(f"FAILED: {len(wrong)} of {ran} scenarios: {', '.join(wrong)}", flush=True)
        else:
            print(f"all hold: {ran} scenarios" if ran else "FAILED: no scenario was run", flush=True)
        if left:
            print(f"{'FAILED: ' if COMPLETE else ''}left out for want of something: {', '.join(left)}")
    sys.exit(1 if wrong or not ran or (COMPLETE and left) else 0)


if __name__ == "__main__":
    main()
