"""hookgate on the cluster of KUBECONFIG, behind Envoy Gateway, disturbed under load, then counted: the dev overlay, or the
chart beside the overlay's stores.

What it needs, and says if it is missing: kubectl, a cluster with a default storage class, Envoy Gateway with a Gateway
`public` in the namespace `gateways` that has an https listener for hooks.example.com, and the images of the overlay.

  E2E_LOAD   brings the image to the nodes: a command that takes archives (`kind load image-archive`); without it the
             image of the overlay has to be there
  E2E_NODE   runs a command on a node, `{node}` being its name (`docker exec {node}`); `env` where the nodes' processes
             are this machine's. Without it nothing is killed or frozen
  E2E_DEATH  lets a node die, `{node}` being its name, and E2E_RETURN brings it back. Without them none dies. A dead
             machine answers nothing: where only its processes are killed, its address has to fall silent too, else whoever
             connects is refused, which no load balancer would do
  E2E_WAY    overlay (default) or chart; the chart needs helm in PATH
  E2E_NEXT   another image of hookgate, to roll out (default hookgate:next, which E2E_LOAD brings too)
  E2E_ONLY   parts of scenarios' names, separated by spaces

It works in a namespace of its own and leaves nothing behind."""

import calendar
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
DEATH, RETURN = os.environ.get("E2E_DEATH"), os.environ.get("E2E_RETURN")
WAY = os.environ.get("E2E_WAY", "overlay")
NEXT = os.environ.get("E2E_NEXT", "hookgate:next")
# 60 s without a store make ready, and a pod takes some seconds to start.
NEVER_READY = 80


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
        for given in (name, NEXT):
            archive.unlink(missing_ok=True)
            if run("buildah", "images", "-q", name, check=False):
                run("buildah", "push", "-q", name, f"docker-archive:{archive}:docker.io/library/{given}")
            else:
                run("docker", "tag", name, given)
                run("docker", "save", "-o", archive, given)
            run(*shlex.split(command), archive)


def kustomization(name, text):
    folder = SCRATCH / name
    folder.mkdir(parents=True, exist_ok=True)
    to = os.path.relpath(ROOT / "k8s", folder)
    head = f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {NAMESPACE}\n"
    (folder / "kustomization.yaml").write_text(head + text.format(k8s=to))
    return folder


def overlay(had):
    """The dev overlay and Envoy Gateway's part, unchanged but for the namespace."""
    if not had:
        kubectl("apply", "-k", ROOT / "k8s/ingress/envoy-gateway/gateway")
    kubectl("apply", "-k", kustomization("place", "resources: [{k8s}/overlays/dev]\ncomponents: [{k8s}/ingress/envoy-gateway]\n"))


def values(had):
    """Those of the chart beside the overlay's stores."""
    def pods_of(name):
        return [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}]

    file = SCRATCH / "values.json"
    file.write_text(json.dumps({
        "config": {"redis": {"url": "redis://redis:6379/1"}, "nats": {"url": "nats://nats:4222"}},
        "ingress": {"type": "envoy-gateway", "host": HOST, "gateway": {"name": GATEWAY[1], "namespace": GATEWAY[0], "clientTrafficPolicy": not had}},
        "networkPolicy": {"redisTo": pods_of("redis"), "natsTo": pods_of("nats")},
    }))
    return file


def helm(*arguments):
    return run("helm", "-n", NAMESPACE, *arguments)


def webhook_of_helm_test():
    try:
        helm("test", "hookgate")
    except SystemExit as problem:
        raise SystemExit(f"{problem}: {here('logs', 'job/hookgate-test', check=False)}") from None


def chart(had):
    # A chart brings no stores and no namespace.
    stores = "\n".join(
        "- patch: |-\n    {{apiVersion: %s, kind: %s, metadata: {{name: %s}}, $patch: delete}}" % one for one in (
            ("apps/v1", "Deployment", "hookgate"), ("autoscaling/v2", "HorizontalPodAutoscaler", "hookgate"),
            ("policy/v1", "PodDisruptionBudget", "hookgate"), ("networking.k8s.io/v1", "NetworkPolicy", "hookgate"),
            ("networking.k8s.io/v1", "Ingress", "hookgate"), ("v1", "Service", "hookgate"),
            ("v1", "Service", "hookgate-replicas"), ("v1", "ServiceAccount", "hookgate"),
        )
    )
    kubectl("apply", "-k", kustomization("stores", "resources: [{k8s}/overlays/dev]\npatches:\n" + stores + "\n"))
    for store in ("redis", "nats"):
        here("rollout", "status", f"statefulset/{store}", "--timeout=120s")
    helm("install", "hookgate", ROOT / "k8s/chart", "-f", values(had), "--wait", "--timeout", "4m")
    webhook_of_helm_test()


@contextmanager
def installed():
    """One of the two ways; all of it is taken away at the end."""
    had = kubectl("-n", GATEWAY[0], "get", "clienttrafficpolicy", "-o", "name")
    try:
        {"overlay": overlay, "chart": chart}[WAY](bool(had))
        here("rollout", "status", "deployment/hookgate", "--timeout=180s")
        for kind in ("httproute", "backendtrafficpolicy"):
            eventually(f"{kind} is accepted", lambda: '"Accepted"' in here("get", kind, "hookgate", "-o", "json"))
        yield
    finally:
        if WAY == "chart":
            run("helm", "-n", NAMESPACE, "uninstall", "hookgate", "--wait", check=False)
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s", check=False)
        if not had:
            kubectl("delete", "-k", ROOT / "k8s/ingress/envoy-gateway/gateway", "--ignore-not-found", check=False)


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
    eventually("all pods are ready", lambda: all(is_ready(pod) for pod in pods()))


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


def rolling_update(sender):
    """To another image and back."""
    here("set", "image", "deployment/hookgate", f"hookgate={NEXT}")
    ready()
    here("rollout", "undo", "deployment/hookgate")
    ready()


def scaled(sender):
    for replicas in (6, 3):
        here("scale", "deployment/hookgate", f"--replicas={replicas}")
        eventually(f"{replicas} pods", lambda: len(pods()) == replicas)
        ready()
        progress(sender, 300)


def drained(sender):
    """Each node once, as far as the disruption budget lets it. The stores' volumes are bound to theirs."""
    for node in objects("nodes"):
        name = node["metadata"]["name"]
        try:
            kubectl("drain", name, "--ignore-daemonsets", "--pod-selector=app.kubernetes.io/name=hookgate", "--timeout=180s")
            ready()
            progress(sender, 300)
        finally:
            kubectl("uncordon", name)


def stores_restarted(sender):
    """Redis and NATS go and come back with their volumes; hookgate's containers do not."""
    before = restarts()
    for store in ("redis-0", "nats-0"):
        uid = here("get", "pod", store, "-o", "jsonpath={.metadata.uid}")
        here("delete", "pod", store, "--wait=false")
        eventually(f"another {store} is ready", lambda: uid not in (now := here(
            "get", "pod", store, "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].ready}", check=False)) and now.endswith("true"))
        progress(sender, 300)
    if restarts() != before:
        raise SystemExit("containers of hookgate were restarted while a store was")


def envoys_replaced(sender):
    [deployment] = objects("deployment", "-A", "-l", f"gateway.envoyproxy.io/owning-gateway-name={GATEWAY[1]}")
    where, name = deployment["metadata"]["namespace"], deployment["metadata"]["name"]
    kubectl("-n", where, "rollout", "restart", f"deployment/{name}")
    kubectl("-n", where, "rollout", "status", f"deployment/{name}", "--timeout=300s")
    progress(sender, 300)


def refused_rollout(sender, variables, seen):
    """A rollout that must not get beyond its first pod: `seen` says so of that pod. Then it is taken back."""
    old = {pod["metadata"]["uid"] for pod in pods()}
    here("set", "env", "deployment/hookgate", *variables)
    try:
        eventually("the new pod is stopped", lambda: any(seen(p) for p in pods() if p["metadata"]["uid"] not in old), within=150)
        left = {pod["metadata"]["uid"] for pod in pods() if is_ready(pod)}
        if left != old:
            raise SystemExit(f"{len(old - left)} of {len(old)} old pods are gone, {len(left - old)} new ones are ready")
        progress(sender, 300)
    finally:
        here("rollout", "undo", "deployment/hookgate")
        ready()


def is_ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def status(pod):
    return pod["status"].get("containerStatuses", [{}])[0]


def bad_configuration(sender):
    refused_rollout(sender, ["HOOKGATE__REDIS__URI=redis://redis"], lambda pod: status(pod).get("restartCount", 0) > 0)


def mistyped_addresses(sender):
    """A name that does not resolve, a port where nobody listens, and both stores at once."""
    def waits(pod):
        began = status(pod).get("state", {}).get("running", {}).get("startedAt")
        age = time.time() - calendar.timegm(time.strptime(began, "%Y-%m-%dT%H:%M:%SZ")) if began else 0
        return age > NEVER_READY

    for variables in (
        ["HOOKGATE__REDIS__URL=redis://redis-mistyped:6379/1"],
        ["HOOKGATE__NATS__URL=nats://nats:4223"],
        ["HOOKGATE__REDIS__URL=redis://redis:6380/1", "HOOKGATE__NATS__URL=nats://nats-mistyped:4222"],
    ):
        refused_rollout(sender, variables, waits)


def large_bodies(sender):
    """Of 15 MiB, while all pods are replaced."""
    here("rollout", "restart", "deployment/hookgate")
    ready()
    progress(sender, 200)


def node_dies(sender):
    """With whatever it has, and comes back when its pods have been given up."""
    name = objects("nodes")[-1]["metadata"]["name"]
    run(*shlex.split(DEATH.format(node=name)))
    eventually("the node is not ready", lambda: any(
        n["metadata"]["name"] == name and not is_ready(n) for n in objects("nodes")
    ))
    run(*shlex.split(RETURN.format(node=name)))
    eventually("the node is ready", lambda: all(is_ready(n) for n in objects("nodes")))
    for store in ("redis", "nats"):
        here("rollout", "status", f"statefulset/{store}", "--timeout=120s")
    ready()


def helm_upgrade(sender):
    """Another configuration, a webhook of `helm test`, and back."""
    filter = r"config.log.filter=info\,hookgate::entity=warn"
    helm("upgrade", "hookgate", ROOT / "k8s/chart", "--reuse-values", "--set-string", filter, "--wait", "--timeout", "4m")
    ready()
    webhook_of_helm_test()
    helm("rollback", "hookgate", "--wait")
    ready()


def restarts():
    return {pod["metadata"]["uid"]: status(pod).get("restartCount", 0) for pod in pods()}


def unhealthy():
    """Probes that failed in pods that stay. One that drains says 503 at /readyz on purpose, and its probes go on."""
    there = {pod["metadata"]["name"] for pod in pods()}
    return {
        f"{event['involvedObject']['name']}: {event['message']}" for event in objects("-n", NAMESPACE, "events")
        if event.get("reason") == "Unhealthy" and event["involvedObject"]["name"] in there
    }


SCENARIOS = [
    undisturbed, rolling_restart, rolling_update, scaled, drained, deleted_without_grace, killed, frozen, stores_restarted,
    envoys_replaced, bad_configuration, mistyped_addresses, large_bodies, node_dies, helm_upgrade,
]
# In these no probe may fail.
CALM = {undisturbed, rolling_restart, rolling_update, scaled}
# How they are sent, where it is another way.
SENDERS = {
    # The pauses of EspoCRM are ten minutes: a store that is restarted has returned by then.
    stores_restarted: {"pause": 20},
    node_dies: {"pause": 45},
    large_bodies: {"workers": 2, "large": 15 << 20, "large_every": 10},
}


def left_out(scenario):
    """Why a scenario is not run here, if it is not."""
    if scenario in (killed, frozen) and not NODE:
        return "E2E_NODE is not set"
    if scenario is node_dies and not (DEATH and RETURN):
        return "E2E_DEATH and E2E_RETURN are not set"
    if scenario is helm_upgrade and WAY != "chart":
        return "E2E_WAY is not chart"
    return None


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
        print(f"{WAY:<24} {'accepted':>8} {'failed':>7} {'missing':>8} {'stuck':>6} {'longest':>8}  {'took':>5}  answers", flush=True)
        for scenario in SCENARIOS:
            name = scenario.__name__
            if only and not any(part in name for part in only):
                continue
            if why := left_out(scenario):
                print(f"{name:<24} left out: {why}", flush=True)
                continue
            began, probes_before, problems = time.monotonic(), unhealthy(), []
            # A load balancer sends nothing to a node that is dead, or that is not back yet.
            to = targets[:-1] if scenario is node_dies else targets
            sender = Sender(to, HOST, trusted, name, **SENDERS.get(scenario, {}))
            try:
                scenario(sender)
                progress(sender, 200)
            except SystemExit as problem:
                problems.append(str(problem))
            finally:
                sent = sender.finish()
            missing, stuck = judge(sent)
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
