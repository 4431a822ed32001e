"""The cluster of KUBECONFIG and what is ours in it: asked, waited for, and signalled."""

import http.client
import json
import os
import re
import select
import shlex
import subprocess
import time
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from stream import Reader

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / "target/e2e"
NAMESPACE, HOST, STREAM = os.environ.get("E2E_NAMESPACE", "hookgate-e2e"), "hooks.example.com", "HOOKGATE"
GATEWAY = ("gateways", "public")
# Another namespace, from which nothing may come in.
OUTSIDE = f"{NAMESPACE}-outside"
PENDING = "vmh:beteiligte:create_pending"
NODE = os.environ.get("E2E_NODE")
WAY, GATE = os.environ.get("E2E_WAY", "overlay"), os.environ.get("E2E_GATE", "envoy-gateway")
# Whom the stores let in to look: production's ask who it is. A value that begins with a digit is a number to NATS.
OPERATOR = ("hookgate-operator", f"o{token_hex(16)}") if WAY == "production" else None


def run(*command, check=True, said=False, input="", timeout=600, **more):
    """What a command prints; with `said` also what it complains of, whether it fails or not."""
    words = list(map(str, command))
    try:
        done = subprocess.run(words, capture_output=True, text=True, input=input, timeout=timeout, **more)
    except FileNotFoundError:
        raise SystemExit(f"{words[0]} is not in PATH") from None
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{shlex.join(words)}: not within {timeout} s") from None
    if said:
        return f"{done.stdout}{done.stderr}".strip()
    if check and done.returncode != 0:
        raise SystemExit(f"{shlex.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def kubectl(*arguments, **more):
    return run("kubectl", *arguments, **more)


def here(*arguments, **more):
    return kubectl("-n", NAMESPACE, *arguments, **more)


def objects(*arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))["items"]


def named(kind, name, *where):
    return json.loads(kubectl(*(where or ("-n", NAMESPACE)), "get", kind, name, "-o", "json"))


def eventually(what, condition, within=120):
    until = time.monotonic() + within
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.2)
    raise SystemExit(f"{what}: not within {within} s")


def progress(sender, ids):
    """Waits until so many more were accepted."""
    goal = len(sender.sent.accepted) + ids
    eventually(f"{ids} more ids are accepted", lambda: len(sender.sent.accepted) >= goal)


def workers():
    """The nodes that take pods: a control plane that is tainted has none of the gateway's."""
    return [node for node in objects("nodes") if not any(taint["effect"] == "NoSchedule" for taint in node["spec"].get("taints", ()))]


def gateway_service():
    """The ingress's Service."""
    of_gateway = ("service", "-A", "-l", f"gateway.envoyproxy.io/owning-gateway-name={GATEWAY[1]}")
    [service] = objects(*(("-n", NAMESPACE, "service", "-l", "app.kubernetes.io/name=hookgate-nginx") if GATE == "nginx" else of_gateway))
    return service


def addresses():
    """Each node's address with the port of the ingress's Service, as a load balancer before them would know them."""
    port = next(p["nodePort"] for p in gateway_service()["spec"]["ports"] if p["port"] == 443)
    nodes = [a["address"] for n in workers() for a in n["status"]["addresses"] if a["type"] == "InternalIP"]
    return [(node, port) for node in nodes]


def authority():
    """The certificate of the ingress, which the sender trusts."""
    if GATE == "nginx":
        return certificate(NAMESPACE, "hookgate-tls")
    gateway = named("gateway", GATEWAY[1], "-n", GATEWAY[0])
    listener = next(one for one in gateway["spec"]["listeners"] if one["protocol"] == "HTTPS")
    return certificate(GATEWAY[0], listener["tls"]["certificateRefs"][0]["name"])


def certificate(namespace, secret):
    return b64decode(kubectl("-n", namespace, "get", "secret", secret, "-o", r"jsonpath={.data.tls\.crt}")).decode()


def pods(name="hookgate", where=("-n", NAMESPACE)):
    """Those of its deployment that stay."""
    labels = f"app.kubernetes.io/name={name},pod-template-hash"
    return [p for p in objects(*where, "pods", "-l", labels) if "deletionTimestamp" not in p["metadata"]]


def is_ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def status(pod):
    return pod["status"].get("containerStatuses", [{}])[0]


def started_again(pod):
    """How often its containers were, all together."""
    return sum(one["restartCount"] for one in pod["status"].get("containerStatuses", ()))


def restarts():
    return {pod["metadata"]["uid"]: started_again(pod) for pod in pods()}


def gateway():
    """(program, where, Deployment, label) of the ingress's pods."""
    if GATE == "nginx":
        return "nginx", ("-n", NAMESPACE), "hookgate-nginx", "hookgate-nginx"
    [deployment] = objects("deployment", "-A", "-l", f"gateway.envoyproxy.io/owning-gateway-name={GATEWAY[1]}")
    return "envoy", ("-n", deployment["metadata"]["namespace"]), deployment["metadata"]["name"], "envoy"


def killed_by_the_kernel():
    """Containers that went beyond their memory limit, of hookgate, the stores and the gateway; and when."""
    _, where, _, label = gateway()
    return {
        f"{pod['metadata']['name']}: {container['name']} was OOMKilled at {ended['finishedAt']}"
        for pod in [*pods(), *pods(label, where), *objects("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name in (redis, nats)")]
        for container in pod["status"].get("containerStatuses", ()) for state in ("state", "lastState")
        if (ended := container.get(state, {}).get("terminated", {})).get("reason") == "OOMKilled"
    }


def unhealthy():
    """Probes that failed in pods that nobody had told to leave, also in pods that are gone. One that drains says 503 at /readyz on
    purpose, and its probes go on."""
    told, failed = {}, {}
    for event in objects("-n", NAMESPACE, "events", "--field-selector", "involvedObject.kind=Pod"):
        of, when = event["involvedObject"], event.get("firstTimestamp") or event["metadata"]["creationTimestamp"]
        if of.get("fieldPath") == "spec.containers{hookgate}" and event.get("reason") == "Killing":
            told[of["uid"]] = min(when, told.get(of["uid"], when))
        elif of.get("fieldPath") == "spec.containers{hookgate}" and event.get("reason") == "Unhealthy":
            failed[of["uid"], f"{of['name']}: {event['message']}"] = when
    return {said for (uid, said), when in failed.items() if uid not in told or when < told[uid]}


def look():
    """What a person would ask for once something went wrong: pods, the last warnings, and what hookgate and the gateway complain of."""
    print(here("get", "pods", "-o", "wide", said=True))
    events = [one for one in objects("-n", NAMESPACE, "events", "--sort-by=.metadata.creationTimestamp") if one.get("type") == "Warning"]
    for event in events[-12:]:
        print(f"    {event.get('lastTimestamp')} {event['involvedObject'].get('name')}: {event.get('reason')}: {event.get('message', '')[:300]}")
    for pod in objects("-n", NAMESPACE, "pods"):
        name = pod["metadata"]["name"]
        said = here("logs", name, "--all-containers", "--tail=3000", "--since=10m", said=True)
        for line in [line for line in said.splitlines() if re.search(r"\b(WARN|ERROR|error:|\[error\]|\[ERR\])", line)][-6:]:
            print(f"    {name}: {line[:400]}")
    print(end="", flush=True)


def ready():
    here("rollout", "status", "deployment/hookgate", "--timeout=180s")
    eventually("all pods are ready", lambda: all(is_ready(pod) for pod in pods()))


# What a process is called: the file of its first word, without the colon of a title such as nginx'.
SIGNAL = """for p in /proc/[0-9]*; do
    grep -qs -e UID -e ANOTHER $p/cgroup || continue
    program=$(tr '\\0' ' ' <$p/cmdline) && program=${program%% *} && program=${program##*/}
    [ "${program%:}" = PROGRAM ] && kill -SIGNAL ${p#/proc/} && echo $p
done; true"""


def signal(pod, name, program="hookgate"):
    """Sends a signal to a program in a pod, from its node: from inside a container its first process can't be killed."""
    uid, script = pod["metadata"]["uid"], SIGNAL
    for word, here_is in (("UID", uid), ("ANOTHER", uid.replace("-", "_")), ("PROGRAM", program), ("SIGNAL", name)):
        script = script.replace(word, here_is)
    if not run(*shlex.split(NODE.format(node=pod["spec"]["nodeName"])), "sh", "-c", script):
        raise SystemExit(f"no {program} of {pod['metadata']['name']} was found on {pod['spec']['nodeName']}: does E2E_NODE reach it?")


def kill(pod, program="hookgate", of=pods):
    """Kills a program in one of these pods, and waits until its container is started again."""
    signal(pod, "KILL", program)
    eventually(f"{program} is started again", lambda: any(
        now["metadata"]["uid"] == pod["metadata"]["uid"] and started_again(now) > started_again(pod) for now in of()
    ))


@contextmanager
def forwarded(pod, port, namespace=NAMESPACE):
    process = subprocess.Popen(
        ["kubectl", "-n", namespace, "port-forward", pod, f":{port}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        # It waits for ever for an API server that has gone.
        said = process.stdout.readline() if select.select([process.stdout], [], [], 30)[0] else ""
        if not (found := re.search(r"127\.0\.0\.1:(\d+)", said)):
            raise ConnectionError(f"port {port} of {pod} is not forwarded")
        yield int(found.group(1))
    finally:
        process.terminate()
        process.wait()


def asked(pod, port, method, path, body=None, headers=()):
    """Status and body of what a pod answers at a port of its own."""
    with forwarded(f"pod/{pod['metadata']['name']}", port) as local:
        connection = http.client.HTTPConnection("127.0.0.1", local, timeout=10)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def configmap():
    """Its name, which has a hash."""
    volumes = named("deployment", "hookgate")["spec"]["template"]["spec"]["volumes"]
    return next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")


def configurations():
    """What each pod says of its configuration."""
    return [json.loads(asked(pod, 9090, "GET", "/v1/status")[1])["configuration"] for pod in pods()]


def in_place(configmap, data):
    """Another content for the files of the running pods, which the kubelet swaps the next time that it looks at them."""
    here("patch", f"configmap/{configmap}", "--type=merge", "-p", json.dumps({"data": data}))
    files_are_looked_at()


def files_are_looked_at():
    """By the kubelet, at once: a pod that changed is one that it looks at. Else it does once a minute."""
    here("annotate", "pods", "-l", "app.kubernetes.io/name=hookgate", f"e2e={time.time()}", "--overwrite")


def apply(thing):
    kubectl("apply", "-f", "-", input=json.dumps(thing))


def redis(*command):
    who = ("--user", OPERATOR[0], "--pass", OPERATOR[1], "--no-auth-warning") if OPERATOR else ()
    return here("exec", "redis-0", "--", "redis-cli", *who, "-n", "1", *command)


def published(since=None):
    """The ids of the events that the stream has, of all or of those since a time, oldest first. A forwarded connection can stall
    or end, and the stream can be read again."""
    for last in (False, False, True):
        try:
            with forwarded("pod/nats-0", 4222) as port:
                return [event["entity_id"] for event in Reader(port, OPERATOR).events(STREAM, since)]
        except OSError:
            if last:
                raise


@contextmanager
def without(what, *where):
    """Scaled to nothing, and back."""
    replicas = named(*what, *where)["spec"]["replicas"]
    labels = named(*what, *where)["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    scale = (*where, "scale", "/".join(what))
    kubectl(*scale, "--replicas=0")
    try:
        eventually(f"{what[1]} is gone", lambda: not objects(*where, "pods", "-l", selector))
        yield
    finally:
        kubectl(*scale, f"--replicas={replicas}")
        kubectl(*where, "rollout", "status", "/".join(what), "--timeout=120s")


def waited(seconds):
    until = time.monotonic() + seconds
    eventually(f"{seconds} s have passed", lambda: time.monotonic() > until)
