"""The consumers of examples/ as pods: the code as it stands there, by examples/consumer.yaml, with durable consumers that
`hookgate consumers add` makes. They are rolled, scaled, deleted and killed while webhooks come. Afterwards each accepted id
was processed, which the results say that they store, and none is pending."""

import json
import os
import re
import time

from cluster import (
    NAMESPACE, NODE, PENDING, ROOT, STREAM, WAY, apply, asked, configmap, configurations, eventually, forwarded, here, in_place, kill, kubectl, named,
    pods, progress, ready, redis,
)
from production import PASSWORDS, hookgate as operators
from stream import Reader

PROGRAMS = {"python": ["python3", "/examples/{}.py"], "node": ["node", "/examples/{}.mjs"], "rust": ["/consumer-{}"]}
IMAGES = {language: image for language in PROGRAMS if (image := os.environ.get(f"E2E_CONSUMER_{language.upper()}"))}
SHARED = "case-sync"
LABEL = "example"
# Seconds within which a pod leaves that was told to. Its grace is 30.
LEAVES = 20
# Of events that a killed pod had in hand: `ack_wait`, and the pauses of tries that failed meanwhile.
SETTLED = 240


def emptied():
    """Takes away what earlier scenarios left: a durable consumer begins with the first event of the stream."""
    redis("DEL", PENDING)
    # No user of production's may purge.
    if WAY != "production":
        with forwarded("pod/nats-0", 4222) as port:
            Reader(port).ask(f"$JS.API.STREAM.PURGE.{STREAM}", {})


def hookgate(*arguments):
    return operators(*arguments) if WAY == "production" else here("exec", "deploy/hookgate", "--", "/hookgate", *arguments)


def shelf():
    """Where results are stored, the code, and a pod that reads results."""
    apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": SHARED, "namespace": NAMESPACE}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }})
    for language in IMAGES:
        made("configmap", f"example-{language}", f"--from-file={ROOT / 'examples' / language}")
    made("secret", "generic", SHARED, f"--from-literal=nats-password={PASSWORDS['hookgate-reconcile']}")
    [deployment, _] = manifest()
    spec = deployment["spec"]["template"]["spec"]
    reader = {"name": "reader", "image": "busybox:1.37", "command": ["sleep", "3600"], "volumeMounts": [{"name": "results", "mountPath": "/results"}],
              "securityContext": spec["containers"][0]["securityContext"]}
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "results", "namespace": NAMESPACE}, "spec": {
        "containers": [reader], "securityContext": spec["securityContext"], "volumes": spec["volumes"][:1], "terminationGracePeriodSeconds": 0,
    }})
    here("wait", "--for=condition=Ready", "pod/results", "--timeout=120s")


def made(*what):
    apply(json.loads(here("create", *what, "--dry-run=client", "-o", "json")))


def manifest():
    return json.loads(kubectl("apply", "--dry-run=client", "-o", "json", "-f", ROOT / "examples/consumer.yaml"))["items"]


def deploy(language, form, durable):
    """The manifest, with what it says has to be changed."""
    [deployment, policy] = manifest()
    name = f"example-{language}"
    for thing in (deployment, policy):
        thing["metadata"] = {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": name, LABEL: form}}
    for selector in (deployment["spec"]["selector"], policy["spec"]["podSelector"]):
        selector["matchLabels"] = {"app.kubernetes.io/name": name}
    template = deployment["spec"]["template"]
    template["metadata"]["labels"] = {"app.kubernetes.io/name": name, LABEL: form}
    [container] = template["spec"]["containers"]
    container |= {"image": IMAGES[language], "command": [word.format(form) for word in PROGRAMS[language]]}
    values = {"NATS_URL": "nats://nats:4222", "CONSUMER": durable, "RESULTS": f"/results/{durable}/{language}"}
    for variable in container["env"]:
        variable["value"] = values.get(variable["name"], variable["value"])
    if WAY != "production":
        container["env"] = [variable for variable in container["env"] if variable["name"] not in ("NATS_USER", "NATS_PASSWORD_FILE")]
    container["volumeMounts"].append({"name": "examples", "mountPath": "/examples", "readOnly": True})
    template["spec"]["volumes"].append({"name": "examples", "configMap": {"name": name}})
    policy["spec"]["egress"][1]["to"] = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}}]
    for thing in (deployment, policy):
        apply(thing)


def consumed(sender, form, durables):
    """`durables` by language."""
    config = configmap()
    site = named("configmap", config)["data"]["site.toml"]
    names = json.dumps(sorted(set(durables.values())))
    release = "ack" if form == "ack" else "explicit"
    try:
        changed(config, f'{route(site)}release = "{release}"\nconsumers = {names}\n')
        for durable in sorted(set(durables.values())):
            hookgate("consumers", "add", durable)
        shelf()
        for language, durable in durables.items():
            deploy(language, form, durable)
        for language, durable in durables.items():
            everywhere(language)
            eventually(f"the {language} consumer works", lambda: processed(f"{durable}/{language}"))
        disturbed(sender, form, durables)
        sent = sender.finish()
        for durable in sorted(set(durables.values())):
            done = eventually(
                f"{durable} has processed each accepted id", lambda: sent.accepted <= (all_of_it := processed(f"{durable}/*")) and all_of_it, within=SETTLED
            )
            print(f"    {form}: {durable} has processed {len(done)} ids", flush=True)
        settled(set(durables.values()))
    except SystemExit as problem:
        said = here("logs", "-l", f"{LABEL}={form}", "--tail=5", "--prefix", check=False)
        raise SystemExit(f"{problem}; consumers: {said}; {hookgate('consumers', 'list')}") from None
    finally:
        here("delete", "deployment,networkpolicy", "-l", f"{LABEL}={form}", "--cascade=foreground")
        changed(config, site)


def route(site):
    """It, with the route at its end. Production's has it there already, for the jobs that ask the CRM."""
    text = site.rstrip() + "\n"
    return text if "[[routes]]" in text else text + '\n[[routes]]\nflow = "vmh"\nentity = "beteiligte"\naction = "create"\n'


def changed(config, site):
    """In place, for all pods."""
    began = {one["in_force_since"] for one in configurations()}
    in_place(config, {"site.toml": site})
    try:
        eventually("the routes are in force everywhere", lambda: not began & {one["in_force_since"] for one in configurations()})
    except SystemExit as late:
        raise SystemExit(f"{late}: {[one['problems'] for one in configurations()]}") from None


def everywhere(language):
    here("rollout", "status", f"deployment/example-{language}", "--timeout=180s")


def of(language):
    return pods(f"example-{language}")


def disturbed(sender, form, durables):
    """Told to leave, scaled 1 to 2 to 1, without grace, killed, and hookgate itself, to which releases go, restarted."""
    for language in durables:
        [pod] = of(language)
        began = time.monotonic()
        here("delete", "pod", pod["metadata"]["name"])
        if time.monotonic() > began + LEAVES:
            raise SystemExit(f"the {language} consumer took {time.monotonic() - began:.0f} s to leave")
    for language in durables:
        everywhere(language)
        here("scale", f"deployment/example-{language}", "--replicas=2")
    for language in durables:
        everywhere(language)
    progress(sender, 200)
    for language in durables:
        here("scale", f"deployment/example-{language}", "--replicas=1")
        here("rollout", "restart", f"deployment/example-{language}")
    here("rollout", "restart", "deployment/hookgate")
    for language in durables:
        everywhere(language)
    ready()
    for language in durables:
        for pod in of(language):
            here("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
        everywhere(language)
        progress(sender, 100)
        if NODE:
            killed_once(language, form)
    progress(sender, 100)


def killed_once(language, form):
    eventually("one pod is left", lambda: len(of(language)) == 1)
    [pod] = of(language)
    kill(pod, PROGRAMS[language][0].format(form).strip("/"), lambda: of(language))
    everywhere(language)


def processed(where):
    """The ids whose results were stored. A program for each file takes long, and all names are too much for one."""
    script = f'for file in /results/{where}/*.json; do read -r line <"$file"; echo "$line"; done'
    text = here("exec", "results", "--", "sh", "-c", script)
    return set(re.findall(r'"entity_id": ?"([^"]*)"', text))


def settled(durables):
    """What hookgate says of it: the commands, the pages of all pods, and Redis."""
    eventually("no id is pending", lambda: redis("SCARD", PENDING) == "0", within=SETTLED)
    [counted] = (json.loads(line) for line in hookgate("pending", "count", "--output", "json").splitlines())
    if counted["pending"]:
        raise SystemExit(f"hookgate pending count: {counted}")
    eventually("no consumer has an event before it", lambda: not any(
        one["consumer"] in durables and (one["waiting"] or one["unacknowledged"])
        for one in map(json.loads, hookgate("consumers", "list", "--output", "json").splitlines())
    ), within=60)
    eventually("every pod's status says so", lambda: not any(
        route["pending_ids"] for pod in pods() for route in json.loads(asked(pod, 9090, "GET", "/v1/status")[1])["routes"]
    ), within=30)


def consumers_acknowledge(sender):
    """`release = "ack"`, and each language a consumer of its own: an id is free once all of them have acknowledged it."""
    of_its_own = {language: f"example-{language}" for language in IMAGES}
    # k8s/privileges/nats.conf has a user for one.
    consumed(sender, "ack", dict.fromkeys(IMAGES, SHARED) if WAY == "production" else of_its_own)


def consumers_release(sender):
    """Explicit release, and one durable consumer for all: each event goes to one of them."""
    consumed(sender, "release", dict.fromkeys(IMAGES, SHARED))
