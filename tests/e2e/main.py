"""hookgate on the cluster of KUBECONFIG: the dev overlay behind Envoy Gateway, disturbed under load, then counted.

What it needs, and says if it is missing: kubectl, a cluster with a default storage class, Envoy Gateway with a Gateway
`public` in the namespace `gateways` that has an https listener for hooks.example.com, and the images of the overlay.

  E2E_LOAD   brings the image to the nodes: a command that takes archives (`kind load image-archive`); without it the
             image of the overlay has to be there
  E2E_NODE   runs a command on a node, `{node}` being its name (`docker exec {node}`); `env` where the nodes' processes
             are this machine's. Without it nothing is killed or frozen
  E2E_ONLY   parts of scenarios' names, separated by spaces

It works in a namespace of its own and leaves nothing behind."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path

from sender import Sender
from stream import Reader

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / "target/e2e"
NAMESPACE, HOST, STREAM = "hookgate-e2e", "hooks.example.com", "HOOKGATE"
GATEWAY = ("gateways", "public")
PENDING = "vmh:beteiligte:create_pending"
# Seconds after the last answer within which every accepted id has its event.
BOUND = 45
NODE = os.environ.get("E2E_NODE")


def run(*command, check=True, **more):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, **more)
    if check and done.returncode != 0:
        raise SystemExit(f"{shlex.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def kubectl(*arguments, **more):
    return run("kubectl", *arguments, **more)


def here(*arguments, **more):
    return kubectl("-n", NAMESPACE, *arguments, **more)


def objects(*arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))["items"]


def eventually(what, condition, within=120):
    until = time.monotonic() + within
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.2)
    raise SystemExit(f"{what}: not within {within} s")


def prerequisites():
    """Says what is missing, before anything is changed."""
    if run("kubectl", "version", "-o", "json", check=False).find("serverVersion") < 0:
        raise SystemExit("e2e: no cluster answers; KUBECONFIG names none, or it is down")
    if not kubectl("-n", GATEWAY[0], "get", "gateway", GATEWAY[1], "--ignore-not-found", check=False):
        raise SystemExit(f"e2e: no Gateway {GATEWAY[1]} in namespace {GATEWAY[0]}: install Envoy Gateway, and make one with an https listener for {HOST}")
    if kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
        raise SystemExit(f"e2e: namespace {NAMESPACE} is there already: another run, or what one left; kubectl delete namespace {NAMESPACE}")


def load_image():
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    if command := os.environ.get("E2E_LOAD"):
        archive = SCRATCH / "hookgate.tar"
        archive.unlink(missing_ok=True)
        run("make", "image", cwd=ROOT)
        name = f"hookgate:{version}"
        if run("buildah", "images", "-q", name, check=False):
            run("buildah", "push", "-q", name, f"docker-archive:{archive}:docker.io/library/{name}")
        else:
            run("docker", "save", "-o", archive, name)
        run(*shlex.split(command), archive)


@contextmanager
def installed():
    """The dev overlay and Envoy Gateway's part, unchanged but for the namespace; all of it is taken away at the end."""
    folder = SCRATCH / "place"
    folder.mkdir(parents=True, exist_ok=True)
    to = os.path.relpath(ROOT / "k8s", folder)
    (folder / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"namespace: {NAMESPACE}\nresources: [{to}/overlays/dev]\ncomponents: [{to}/ingress/envoy-gateway]\n"
    )
    beside = ROOT / "k8s/ingress/envoy-gateway/gateway"
    had = kubectl("-n", GATEWAY[0], "get", "clienttrafficpolicy", "-o", "name")
    try:
        if not had:
            kubectl("apply", "-k", beside)
        kubectl("apply", "-k", folder)
        here("rollout", "status", "deployment/hookgate", "--timeout=180s")
        for kind in ("httproute", "backendtrafficpolicy"):
            eventually(f"{kind} is accepted", lambda: '"Accepted"' in here("get", kind, "hookgate", "-o", "json"))
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s", check=False)
        if not had:
            kubectl("delete", "-k", beside, "--ignore-not-found", check=False)


def addresses():
    """Each node's address with the port of the Gateway's Service, as a load balancer before them would know them."""
    [service] = objects("service", "-A", "-l", f"gateway.envoyproxy.io/owning-gateway-name={GATEWAY[1]}")
    port = next(p["nodePort"] for p in service["spec"]["ports"] if p["port"] == 443)
    nodes = [a["address"] for n in objects("nodes") for a in n["status"]["addresses"] if a["type"] == "InternalIP"]
    return [(node, port) for node in nodes]


def authority():
    """The certificate of the Gateway, which the sender trusts."""
    gateway = json.loads(kubectl("-n", GATEWAY[0], "get", "gateway", GATEWAY[1], "-o", "json"))
    listener = next(one for one in gateway["spec"]["listeners"] if one["protocol"] == "HTTPS")
    secret = listener["tls"]["certificateRefs"][0]["name"]
    return b64decode(kubectl("-n", GATEWAY[0], "get", "secret", secret, "-o", r"jsonpath={.data.tls\.crt}")).decode()


def pods():
    return [p for p in objects("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=hookgate") if "deletionTimestamp" not in p["metadata"]]


def signal(pod, name):
    """Sends a signal to hookgate in a pod, from its node: from inside a container its first process can't be killed."""
    script = f"for p in /proc/[0-9]*; do grep -qs -e '{pod['metadata']['uid']}' -e '{pod['metadata']['uid'].replace('-', '_')}' $p/cgroup " \
        f"&& [ \"$(tr '\\0' ' ' <$p/cmdline | cut -c1-9)\" = /hookgate ] && kill -{name} ${{p#/proc/}} && echo $p; done; true"
    if not run(*shlex.split(NODE.format(node=pod["spec"]["nodeName"])), "sh", "-c", script):
        raise SystemExit(f"no process of {pod['metadata']['name']} was found on {pod['spec']['nodeName']}: does E2E_NODE reach it?")


def ready():
    here("rollout", "status", "deployment/hookgate", "--timeout=180s")
    eventually("all pods are ready", lambda: all(
        any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ())) for pod in pods()
    ))


def progress(sender, ids):
    """Waits until so many more were accepted."""
    goal = len(sender.sent.accepted) + ids
    eventually(f"{ids} more ids are accepted", lambda: len(sender.sent.accepted) >= goal)


def undisturbed(sender):
    progress(sender, 2000)


def rolling_restart(sender):
    for _ in range(2):
        here("rollout", "restart", "deployment/hookgate")
        ready()


def deleted_without_grace(sender):
    for pod in pods():
        here("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
        ready()


def killed(sender):
    for pod in pods():
        signal(pod, "KILL")
        before = pod["status"]["containerStatuses"][0]["restartCount"]
        eventually("the container is started again", lambda: any(
            p["metadata"]["name"] == pod["metadata"]["name"] and p["status"]["containerStatuses"][0]["restartCount"] > before for p in pods()
        ))
        ready()


def frozen(sender):
    """Longer than a try, shorter than liveness has patience."""
    for pod in pods()[:2]:
        signal(pod, "STOP")
        began = time.monotonic()
        # Many more batches than senders: some have met the frozen pod.
        progress(sender, 400)
        eventually("a try has run out", lambda: time.monotonic() > began + 8)
        signal(pod, "CONT")
        ready()


SCENARIOS = [undisturbed, rolling_restart, deleted_without_grace, killed, frozen]


@contextmanager
def forwarded(pod, port):
    process = subprocess.Popen(
        ["kubectl", "-n", NAMESPACE, "port-forward", pod, f":{port}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline()).group(1))
    finally:
        process.terminate()
        process.wait()


def redis(*command):
    return here("exec", "redis-0", "--", "redis-cli", "-n", "1", *command)


def judge(sent):
    """(missing, stuck): accepted without an event, and pending without one, once the outbox is empty."""
    eventually("the outbox is empty", lambda: redis("HLEN", "{%s}:outbox" % PENDING) == "0", within=BOUND)
    with forwarded("pod/nats-0", 4222) as port:
        events = {event["entity_id"] for event in Reader(port).events(STREAM)}
    return len(sent.accepted - events), len(set(redis("SMEMBERS", PENDING).split()) - events)


def main():
    only = os.environ.get("E2E_ONLY", "").split()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    prerequisites()
    load_image()
    wrong = 0
    with installed():
        targets, trusted = addresses(), authority()
        print(f"{'scenario':<24} {'accepted':>8} {'failed':>7} {'missing':>8} {'stuck':>6} {'longest':>8}  answers", flush=True)
        for scenario in SCENARIOS:
            name = scenario.__name__
            if only and not any(part in name for part in only):
                continue
            if scenario in (killed, frozen) and not NODE:
                print(f"{name:<24} left out: E2E_NODE is not set", flush=True)
                continue
            sender = Sender(targets, HOST, trusted, name)
            try:
                scenario(sender)
                progress(sender, 200)
            finally:
                sent = sender.finish()
            missing, stuck = judge(sent)
            answers = ", ".join(f"{status}: {count}" for status, count in sorted(sent.answers.items(), key=str))
            print(f"{name:<24} {len(sent.accepted):>8} {len(sent.failed):>7} {missing:>8} {stuck:>6} {sent.longest:>7.1f}s  {answers}", flush=True)
            good = sent.accepted and not sent.failed and not missing and not stuck and sent.longest < 10
            wrong += not good
    print(f"{'all hold' if not wrong else f'FAILED: {wrong} scenarios'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
