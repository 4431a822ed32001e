"""What is done to hookgate while webhooks come."""

import calendar
import json
import os
import shlex
import time
from base64 import b64encode
from contextlib import contextmanager
from shutil import which

from alerts import alerts
from backup import NEEDED, redis_restored, stream_restored
from cluster import (
    NAMESPACE, NODE, OUTSIDE, ROOT, WAY, apply, asked, configmap, configurations, eventually, files_are_looked_at, gateway, here, in_place,
    is_ready, kill, kubectl, named, objects, pods, progress, ready, restarts, run, signal, status, waited, without, workers,
)
from consumers import IMAGES, consumers_acknowledge, consumers_release, emptied
from install import NEXT, helm, webhook_of_helm_test
from monitoring import PROMETHEUS, PUSHGATEWAY
from operated import edited_streams, first_steps, operated
from production import as_written, expect, jobs_without_crm
from sender import PATH, TOTAL, signature
from sizes import sizes
from stores import kustomization

DEATH, RETURN = os.environ.get("E2E_DEATH"), os.environ.get("E2E_RETURN")
API_DOWN, API_UP = os.environ.get("E2E_API_DOWN"), os.environ.get("E2E_API_UP")
# Nothing may be left out for want of something.
COMPLETE = bool(os.environ.get("E2E_COMPLETE"))
# 60 s without a store make ready, and a pod takes some seconds to start.
NEVER_READY = 80


def undisturbed(sender):
    progress(sender, 2000)


def rolling_restart(sender):
    """Twice; then each pod is told to leave, and does so well within its grace."""
    for _ in range(2):
        here("rollout", "restart", "deployment/hookgate")
        ready()
    longest = 0
    for pod in pods():
        began = time.monotonic()
        here("delete", "pod", pod["metadata"]["name"])
        longest = max(longest, time.monotonic() - began)
        ready()
    print(f"    a pod that was told to leave was gone after {longest:.0f} s at most", flush=True)
    if longest > (most := pod["spec"]["terminationGracePeriodSeconds"] - 5):
        raise SystemExit(f"a pod took {longest:.0f} s to leave, more than {most}")


def rolling_update(sender):
    """To another image and back."""
    here("set", "image", "deployment/hookgate", f"hookgate={NEXT}")
    ready()
    here("rollout", "undo", "deployment/hookgate")
    ready()


def patch_autoscaler(**spec):
    here("patch", "hpa/hookgate", "--type=merge", "-p", json.dumps({"spec": spec}))


def scaled(sender):
    """By hand; the autoscaler would take the first of the pods away again at its next look."""
    real = named("hpa", "hookgate")["spec"]
    patch_autoscaler(behavior={"scaleDown": {"selectPolicy": "Disabled"}})
    try:
        for replicas in (6, 3):
            here("scale", "deployment/hookgate", f"--replicas={replicas}")
            eventually(f"{replicas} pods", lambda: len(pods()) == replicas)
            ready()
            progress(sender, 300)
    finally:
        patch_autoscaler(behavior=real["behavior"])


def autoscaled(sender):
    """By its own load: a target that this load exceeds, then the real one without the long patience."""
    def target(percent):
        resource = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}
        return [{"type": "Resource", "resource": resource}]

    real = named("hpa", "hookgate")["spec"]
    quick = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 10, "periodSeconds": 15}]}
    try:
        patch_autoscaler(metrics=target(1), maxReplicas=6)
        eventually("more than 3 replicas", lambda: len(pods()) > 3)
        ready()
        progress(sender, 300)
        patch_autoscaler(metrics=target(100), behavior={"scaleDown": quick})
        eventually("3 replicas again", lambda: len(pods()) == 3)
        ready()
    finally:
        patch_autoscaler(**{key: real[key] for key in ("metrics", "maxReplicas", "behavior")})


def drained(sender):
    """Each node once, the gateway's pods with hookgate's, as far as the disruption budgets let it. The stores' volumes are bound to
    theirs. A load balancer sends nothing to a node without a pod of the gateway."""
    _, where, name, label = gateway()
    targets = sender.targets
    try:
        for node in workers():
            host, own = node["metadata"]["name"], {one["address"] for one in node["status"]["addresses"]}
            on_each_node(label, where)
            sender.targets = [target for target in targets if target[0] not in own]
            # What is on its way there has ended by then.
            waited(TOTAL)
            try:
                kubectl("drain", host, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s",
                        f"--pod-selector=app.kubernetes.io/name in (hookgate, {label})")
                ready()
                progress(sender, 300)
            finally:
                kubectl("uncordon", host)
            kubectl(*where, "rollout", "status", f"deployment/{name}", "--timeout=120s")
    finally:
        on_each_node(label, where)
        sender.targets = targets
    progress(sender, 300)


def on_each_node(label, where):
    """Moves pods of a gateway until each node has one that is ready."""
    def crowded():
        there = [pod for pod in pods(label, where) if is_ready(pod)]
        hosts = [pod["spec"]["nodeName"] for pod in there]
        free = {node["metadata"]["name"] for node in workers()} - set(hosts)
        return free and next((pod for pod in there if hosts.count(pod["spec"]["nodeName"]) > 1), None), free

    def spread():
        pod, free = crowded()
        if pod:
            kubectl(*where, "delete", "pod", pod["metadata"]["name"])
        return not free

    eventually("each node has a pod of the gateway", spread)


def deleted_without_grace(sender):
    for pod in pods():
        here("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
        ready()


def killed(sender):
    for pod in pods():
        kill(pod)
        ready()


def frozen(sender):
    """Longer than a try, shorter than liveness has patience."""
    for pod in pods()[:2]:
        # Many more batches than senders: some have met the frozen pod.
        stopped(pod, sender, 400)


def stopped(pod, sender, ids):
    signal(pod, "STOP")
    began = time.monotonic()
    try:
        progress(sender, ids)
        eventually("a try has run out", lambda: time.monotonic() > began + 8)
    finally:
        signal(pod, "CONT")
    ready()


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


def stores_away(sender):
    """Both at once: every webhook gets 503 and comes back. A pod that is started meanwhile becomes ready all the same, and says why."""
    where, old = ("-n", NAMESPACE), pods()
    with without(("statefulset", "redis"), *where), without(("statefulset", "nats"), *where):
        here("delete", "pod", old[0]["metadata"]["name"], "--wait=false")
        new = eventually("another pod is there", lambda: [
            pod["metadata"]["name"] for pod in pods() if pod["metadata"]["uid"] not in {one["metadata"]["uid"] for one in old}
        ])
        eventually("it is ready without the stores", lambda: is_ready(named("pod", new[0])), within=90)
        expect("ready, without a store", here("logs", new[0]))
    ready()


def dns_away(sender):
    """No name resolves, and a pod is replaced meanwhile: it may not get ready before the others would have to."""
    [dns] = objects("-n", "kube-system", "deployments", "-l", "k8s-app=kube-dns")
    with without(("deployment", dns["metadata"]["name"]), "-n", "kube-system"):
        here("delete", "pod", pods()[0]["metadata"]["name"], "--wait=false")
        waited(60)
        progress(sender, 300)
    ready()


def api_server_away(sender):
    """Nothing in hookgate asks it, and what the nodes know stays."""
    run(*shlex.split(API_DOWN))
    try:
        waited(40)
        progress(sender, 300)
    finally:
        run(*shlex.split(API_UP))
    eventually("the API server answers", lambda: kubectl("get", "--raw=/readyz", check=False) == "ok")
    ready()


def gateway_replaced(sender):
    """One by one, told to leave."""
    _, where, name, _ = gateway()
    kubectl(*where, "rollout", "restart", f"deployment/{name}")
    kubectl(*where, "rollout", "status", f"deployment/{name}", "--timeout=300s")
    progress(sender, 300)


def gateway_killed(sender):
    """One by one. What it had in hand breaks off: nobody is left who could answer, and only the sender can send it again."""
    program, where, name, label = gateway()
    for pod in pods(label, where):
        kill(pod, program, lambda: pods(label, where))
        kubectl(*where, "rollout", "status", f"deployment/{name}", "--timeout=120s")
        progress(sender, 300)


def changed_configuration(sender):
    """In place: a good one, a bad one, which every pod refuses and goes on, and the old one. Then by another ConfigMap."""
    name = configmap()
    site = named("configmap", name)["data"]["site.toml"]
    same = {pod["metadata"]["uid"] for pod in pods()}
    began = [one["in_force_since"] for one in configurations()]
    in_place(name, {"site.toml": f"{site}\n[log]\nfilter = \"info,hookgate::entity=warn\"\n"})
    eventually("it is in force everywhere", lambda: not set(began) & {one["in_force_since"] for one in configurations()})
    good = [one["in_force_since"] for one in configurations()]
    in_place(name, {"site.toml": f"{site}\n[log]\nmistyped = \"info\"\n"})
    eventually("every pod refuses it", lambda: all("mistyped" in str(one["problems"]) for one in configurations()))
    if [one["in_force_since"] for one in configurations()] != good:
        raise SystemExit("a configuration that was refused is in force")
    progress(sender, 300)
    in_place(name, {"site.toml": site})
    eventually("the old one is in force everywhere", lambda: all(
        not one["problems"] and one["in_force_since"] not in good for one in configurations()
    ))
    if {pod["metadata"]["uid"] for pod in pods()} != same:
        raise SystemExit("a configuration changed in place replaced pods")
    if WAY == "overlay":
        another_configmap(name, site)


def another_configmap(name, site):
    """As `apply -k` makes it: under another name, so that the pods are replaced; and back."""
    folder = kustomization("changed", "resources: [../place]\nconfigMapGenerator: [{{name: hookgate-config, behavior: merge, files: [site.toml]}}]\n")
    (folder / "site.toml").write_text(f"{site}\n[log]\nfilter = \"info,hookgate::entity=warn\"\n")
    for again in (folder, folder.parent / "place"):
        kubectl("apply", "-k", again)
        ready()
        if ((now := configmap()) == name) != (again != folder):
            raise SystemExit(f"after apply -k {again} the pods have {now}")


WEBHOOK_ID = "65f0c1d2e3a4b5c6d"


def rotated_secret(sender):
    """The new key beside the old one, then the sender, then the old one away. Nothing is refused meanwhile."""
    old, new = "old-key-of-the-webhook", "new-key-of-the-webhook"
    files = [f"/run/secrets/espo/{name}" for name in ("current", "previous")]
    route = {"flow": "vmh", "entity": "beteiligte", "action": "create"}
    auth = [{"scheme": "espocrm", "id": WEBHOOK_ID, "secret_files": files}]
    template = {
        "containers": [{
            "name": "hookgate", "env": [{"name": "HOOKGATE__ROUTES", "value": json.dumps([route | {"auth": auth}])}],
            "volumeMounts": [{"name": "espo", "mountPath": "/run/secrets/espo", "readOnly": True}],
        }],
        "volumes": [{"name": "espo", "secret": {"secretName": "espo"}}],
    }

    def keys(**data):
        here("patch", "secret/espo", "--type=json", "-p", json.dumps([{"op": "replace", "path": "/data", "value": {
            name: b64encode(key.encode()).decode() for name, key in data.items()
        }}]))
        files_are_looked_at()

    sender.key = (WEBHOOK_ID, old)
    here("create", "secret", "generic", "espo", f"--from-literal=current={old}")
    try:
        here("patch", "deployment/hookgate", "-p", json.dumps({"spec": {"template": {"spec": template}}}))
        ready()
        keys(current=new, previous=old)
        eventually("every pod takes the new key", lambda: all(accepts(pod, (WEBHOOK_ID, new)) for pod in pods()))
        progress(sender, 300)
        sender.key = (WEBHOOK_ID, new)
        # What was signed before is on its way for ten seconds at most.
        waited(10)
        keys(current=new)
        eventually("no pod takes the old key", lambda: not any(accepts(pod, (WEBHOOK_ID, old)) for pod in pods()))
        progress(sender, 300)
    finally:
        here("rollout", "undo", "deployment/hookgate")
        ready()
        here("delete", "secret", "espo")
    if 401 in sender.sent.answers:
        raise SystemExit("a webhook with a key of that time was refused")


def accepts(pod, key):
    """Whether a pod takes an empty batch that is signed with that key."""
    headers = {"Signature": signature(key, b"[]")}
    return asked(pod, 3000, "POST", PATH, b"[]", headers)[0] != 401


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


def bad_configuration(sender):
    refused_rollout(sender, ["HOOKGATE__REDIS__URI=redis://redis"], lambda pod: status(pod).get("restartCount", 0) > 0)


def waits(pod):
    """Whether it would be ready by now, if a time without a store were enough."""
    began = status(pod).get("state", {}).get("running", {}).get("startedAt")
    age = time.time() - calendar.timegm(time.strptime(began, "%Y-%m-%dT%H:%M:%SZ")) if began else 0
    return age > NEVER_READY


def unusable_stores(sender):
    """Mistyped addresses and passwords: no pod gets ready with them, and a rollout stops at its first one. A copy of a pod beside
    the deployment, which its Service would take as well, is as good as a rollout, and all are tried at once."""
    with nats_with_users() as strict:
        copies = [copied(f"unusable-{number}", variables) for number, variables in enumerate((
            {"HOOKGATE__REDIS__URL": "redis://redis-mistyped:6379/1"},
            {"HOOKGATE__NATS__URL": "nats://nats:4223"},
            # Any file with one line is a wrong password. In the address it would be a second one beside production's file.
            {"HOOKGATE__REDIS__USERNAME": "nobody", "HOOKGATE__REDIS__PASSWORD_FILE": "/etc/hostname"},
            {"HOOKGATE__NATS__URL": f"nats://{strict}:4222", "HOOKGATE__NATS__USER": "nobody", "HOOKGATE__NATS__PASSWORD_FILE": "/etc/hostname"},
        ))]
        try:
            both = ["HOOKGATE__REDIS__URL=redis://redis:6380/1", "HOOKGATE__NATS__URL=nats://nats-mistyped:4222"]
            refused_rollout(sender, both, waits)
            for copy in copies:
                eventually(f"{copy} is as old as that", lambda: waits(named("pod", copy)))
                if is_ready(named("pod", copy)):
                    raise SystemExit(f"{copy} is ready: {here('logs', copy)}")
        finally:
            here("delete", "pods", *copies, "--wait=false")


def copied(name, variables):
    """A pod as the deployment makes them, with other variables."""
    template = named("deployment", "hookgate")["spec"]["template"]
    spec = template["spec"]
    environment = [one for one in spec["containers"][0].get("env", ()) if one["name"] not in variables]
    spec["containers"][0]["env"] = environment + [{"name": name, "value": value} for name, value in variables.items()]
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}, "spec": spec})
    return name


@contextmanager
def nats_with_users():
    """The address of one, which asks each of its clients who it is."""
    image = named("statefulset", "nats")["spec"]["template"]["spec"]
    server = image["containers"][0] | {"args": ["--port", "4222", "--user", "somebody", "--pass", "right"], "volumeMounts": []}
    for probe in ("startupProbe", "readinessProbe"):
        server.pop(probe, None)
    # The network policy lets hookgate out to it by its label; the gate keeps it out of the Service of that label.
    spec = {
        "containers": [server], "securityContext": image["securityContext"], "automountServiceAccountToken": False,
        "readinessGates": [{"conditionType": "example.com/never"}],
    }
    labels = {"app.kubernetes.io/name": "nats"}
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "strict", "namespace": NAMESPACE, "labels": labels}, "spec": spec})
    try:
        yield eventually("a NATS with users runs", lambda: (status := named("pod", "strict")["status"])["phase"] == "Running" and status["podIP"])
    finally:
        here("delete", "pod", "strict", "--grace-period=0", "--force")


def connects(address, port):
    """Whether a pod in another namespace gets a connection. What answers is no Redis, which redis-cli says."""
    said = run("timeout", "5", "kubectl", "-n", OUTSIDE, "exec", "outside", "--", "redis-cli", "-h", address, "-p", port, "ping", said=True)
    return "PONG" in said or "Protocol error" in said


def locked_out(sender):
    """The ports of hookgate from another namespace, and whom hookgate itself may not ask: the API server, another's port."""
    image = named("statefulset", "redis")["spec"]["template"]["spec"]["containers"][0]["image"]
    kubectl("create", "namespace", OUTSIDE)
    try:
        for name in ("outside", "target"):
            kubectl("-n", OUTSIDE, "run", name, f"--image={image}", "--command", "--", "redis-server", "--protected-mode", "no")
        kubectl("-n", OUTSIDE, "wait", "--for=condition=Ready", "pod/outside", "pod/target", "--timeout=60s")
        target = named("pod", "target", "-n", OUTSIDE)["status"]["podIP"]
        eventually("a pod reaches another", lambda: connects(target, 6379))
        apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "none", "namespace": OUTSIDE},
               "spec": {"podSelector": {"matchLabels": {"run": "target"}}, "policyTypes": ["Ingress"]}})
        try:
            eventually("a policy binds", lambda: not connects(target, 6379), within=30)
        except SystemExit:
            if COMPLETE:
                raise SystemExit("this cluster does not enforce network policies") from None
            print("    locked_out: passed over: this cluster does not enforce network policies", flush=True)
            return
        reached = [f"{pod['status']['podIP']}:{port}" for pod in pods() for port in (3000, 9090) if connects(pod["status"]["podIP"], port)]
        for url in ("http://kubernetes.default.svc:443", f"http://{pods()[0]['status']['podIP']}:3000"):
            said = outgoing(url)
            # hookgate's own words for a connection that was refused or not answered; a name that does not resolve is another.
            reached += [] if "tcp connect error" in said else [f"{url} from hookgate ({said})"]
        if reached:
            raise SystemExit(f"the network policy lets through: {', '.join(reached)}")
        progress(sender, 300)
    finally:
        kubectl("delete", "namespace", OUTSIDE, "--wait=false")


def outgoing(url):
    """What hookgate says that it asks an address."""
    pod = pods()[-1]["metadata"]["name"]
    hookgate = ("kubectl", "-n", NAMESPACE, "exec", pod, "--", "/hookgate")
    return run(*hookgate, "send", "vmh/beteiligte/create", "--id", "locked-out", "--url", url, said=True)


def large_bodies(sender):
    """Of 15 MiB, while all pods are replaced, one is killed and one is frozen."""
    here("rollout", "restart", "deployment/hookgate")
    ready()
    progress(sender, 200)
    if NODE:
        kill(pods()[0])
        ready()
        progress(sender, 200)
        stopped(pods()[1], sender, 100)
        progress(sender, 200)


def many_large_bodies(sender):
    """24 of 15 MiB at once, which is what the budgets of three pods hold: no container goes beyond its limit of memory."""
    waited(40)
    _, where, _, label = gateway()
    for place, labels in ((("-n", NAMESPACE), "app.kubernetes.io/name in (hookgate, redis, nats)"), (where, f"app.kubernetes.io/name={label}")):
        for line in kubectl(*place, "top", "pod", "--no-headers", "-l", labels, said=True).splitlines():
            print(f"    {line}", flush=True)


def node_dies(sender):
    """With whatever it has, and comes back when its pods have been given up."""
    name = workers()[-1]["metadata"]["name"]
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
    """Another configuration, a webhook of `helm test`, and back. Then a mistyped Redis: nothing may change."""
    def in_use():
        return configmap(), named("configmap", configmap())["data"]["site.toml"]

    def upgraded(*values):
        helm("upgrade", "hookgate", ROOT / "k8s/chart", "--reuse-values", *values, "--wait", "--timeout", "4m")

    before = in_use()
    upgraded("--set-string", r"config.log.filter=info\,hookgate::entity=warn")
    ready()
    name, text = in_use()
    if name == before[0] or "hookgate::entity=warn" not in text:
        raise SystemExit(f"after helm upgrade the pods have {name}: {text}")
    webhook_of_helm_test()
    as_written("helm -n hookgate rollback hookgate")
    ready()
    if in_use() != before:
        raise SystemExit(f"after helm rollback the pods have {in_use()}, not {before}")
    same = {pod["metadata"]["uid"] for pod in pods()}
    try:
        upgraded("--set", "config.redis.url=redis://redis-mistyped:6379/1")
    except SystemExit:
        expect("redis-mistyped", as_written("kubectl -n hookgate logs job/hookgate-doctor"))
    else:
        raise SystemExit("helm upgrade took a Redis that is not there")
    if not same <= {pod["metadata"]["uid"] for pod in pods() if is_ready(pod)} or in_use() != before:
        raise SystemExit("a helm upgrade that failed changed pods, or their configuration")
    progress(sender, 300)
    as_written("helm -n hookgate rollback hookgate")
    ready()
    if in_use() != before:
        raise SystemExit(f"after helm rollback the pods have {in_use()}, not {before}")


# What operators look at is to show nothing odd, so that comes before anything is killed.
SCENARIOS = [
    undisturbed, first_steps, operated, consumers_acknowledge, consumers_release, rolling_restart, rolling_update, scaled,
    autoscaled, drained, deleted_without_grace, killed, frozen, stores_restarted, stores_away, dns_away, api_server_away,
    gateway_replaced, gateway_killed, changed_configuration, rotated_secret, bad_configuration, unusable_stores, locked_out,
    large_bodies, many_large_bodies, node_dies, helm_upgrade, edited_streams, jobs_without_crm, redis_restored, stream_restored, sizes, alerts,
]
# What has to be done before the load comes.
BEFORE = {consumers_acknowledge: emptied, consumers_release: emptied}
# In these no probe may fail.
CALM = {undisturbed, rolling_restart, rolling_update, scaled, autoscaled, helm_upgrade}
# In these the sender's ten seconds may run out, and it sends again.
SLOW = {many_large_bodies}
# In these a container may end without being told to.
DEADLY = {killed, node_dies, bad_configuration, large_bodies}
# How they are sent, where it is another way.
SENDERS = {
    # Consumers sync a file for each event.
    consumers_acknowledge: {"workers": 1},
    consumers_release: {"workers": 1},
    # Version 10 takes a broken connection as final; the answers say how many there were.
    # A container that was killed some minutes before is started later each time, and EspoCRM's pauses are ten minutes.
    gateway_killed: {"version": 9, "pause": 30},
    # The pauses of EspoCRM are ten minutes: a store that is restarted has returned by then.
    stores_restarted: {"pause": 20},
    stores_away: {"pause": 45},
    node_dies: {"pause": 45},
    large_bodies: {"workers": 2, "large": 15 << 20, "large_every": 10},
    many_large_bodies: {"workers": 24, "large": 15 << 20, "large_every": 1, "pause": 20},
    # While hookgate is stopped the gateway answers 503: the pauses are longer than that.
    redis_restored: {"pause": 20},
    stream_restored: {"pause": 45},
    alerts: {"workers": 2, "pause": 45},
}


# Scenarios of one way to install.
OF_WAY = {helm_upgrade: "chart", jobs_without_crm: "production", operated: "production"} | dict.fromkeys(
    (rotated_secret, first_steps, alerts, sizes), "overlay"
)


def not_here(scenario):
    """Why a scenario is not run in this way, whatever else there is."""
    if (way := OF_WAY.get(scenario, WAY)) != WAY:
        return f"E2E_WAY is not {way}"
    if scenario is sizes and "sizes" not in os.environ.get("E2E_ONLY", ""):
        return "it measures, and is run if E2E_ONLY names it"
    if scenario in (redis_restored, stream_restored, edited_streams) and WAY == "production":
        return "E2E_WAY is production, whose stores ask who one is"
    return None


def lacks(scenario):
    """What is missing to run a scenario, if something is."""
    if scenario in (killed, frozen, gateway_killed) and not NODE:
        return "E2E_NODE is not set"
    if scenario in (consumers_acknowledge, consumers_release) and not IMAGES:
        return "no E2E_CONSUMER_… is set"
    if scenario is node_dies and not (DEATH and RETURN):
        return "E2E_DEATH and E2E_RETURN are not set"
    if scenario is api_server_away and not (API_DOWN and API_UP):
        return "E2E_API_DOWN and E2E_API_UP are not set"
    if scenario in (alerts, sizes) and not (PROMETHEUS and PUSHGATEWAY):
        return "E2E_PROMETHEUS and E2E_PUSHGATEWAY are not set"
    if scenario in (redis_restored, stream_restored, edited_streams, operated):
        if absent := [tool for tool in NEEDED if not which(tool)]:
            return f"{', '.join(absent)} is not in PATH"
    return None
