"""What is done to hookgate while webhooks come."""

import calendar
import os
import shlex
import time

from cluster import (
    GATE, GATEWAY, NODE, ROOT, eventually, here, is_ready, kubectl, objects, pods, ready, restarts, run, signal, status,
)
from install import NEXT, WAY, helm, webhook_of_helm_test
from production import jobs_without_crm

DEATH, RETURN = os.environ.get("E2E_DEATH"), os.environ.get("E2E_RETURN")
# 60 s without a store make ready, and a pod takes some seconds to start.
NEVER_READY = 80


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


SCENARIOS = [
    undisturbed, rolling_restart, rolling_update, scaled, drained, deleted_without_grace, killed, frozen, stores_restarted,
    envoys_replaced, bad_configuration, mistyped_addresses, large_bodies, node_dies, helm_upgrade, jobs_without_crm,
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
    if scenario is jobs_without_crm and WAY != "production":
        return "E2E_WAY is not production"
    if scenario is envoys_replaced and GATE == "nginx":
        return "E2E_GATE is nginx"
    return None
