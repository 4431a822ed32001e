"""Redis and NATS for what brings none: those of the dev overlay."""

import json
import os
import re

from cluster import NAMESPACE, ROOT, SCRATCH, eventually, here, kubectl, named


def kustomization(name, text):
    folder = SCRATCH / name
    folder.mkdir(parents=True, exist_ok=True)
    to = os.path.relpath(ROOT / "k8s", folder)
    head = f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {NAMESPACE}\n"
    (folder / "kustomization.yaml").write_text(head + text.format(k8s=to))
    return folder


def stores(patches=""):
    """Those of the dev overlay, for what brings none; also its namespace."""
    removed = "\n".join(
        "- patch: |-\n    {{apiVersion: %s, kind: %s, metadata: {{name: %s}}, $patch: delete}}" % one for one in (
            ("apps/v1", "Deployment", "hookgate"), ("autoscaling/v2", "HorizontalPodAutoscaler", "hookgate"),
            ("policy/v1", "PodDisruptionBudget", "hookgate"), ("networking.k8s.io/v1", "NetworkPolicy", "hookgate"),
            ("networking.k8s.io/v1", "Ingress", "hookgate"), ("v1", "Service", "hookgate"),
            ("v1", "Service", "hookgate-replicas"), ("v1", "ServiceAccount", "hookgate"),
        )
    )
    kubectl("apply", "-k", kustomization("stores", f"resources: [{{k8s}}/overlays/dev]\npatches:\n{removed}\n{patches}"))
    stores_run()


def stores_run():
    """Waits for both. A cluster may have another server under the image's name: one before 2.10 runs without what it can't do."""
    def refuses():
        return 'unknown field "sync_interval"' in here("logs", "nats-0", check=False)

    def runs():
        return named("statefulset", "nats")["status"].get("readyReplicas", 0) > 0

    eventually("NATS runs", lambda: runs() or refuses(), within=120)
    if not runs():
        print("e2e: the image of NATS is a server before 2.10 here, which does not know sync_interval: always; it runs without", flush=True)
        config = named("configmap", "nats")["data"]["nats.conf"]
        without = json.dumps({"data": {"nats.conf": re.sub(r" *sync_interval: always\n", "", config)}})
        here("patch", "configmap", "nats", "--patch", without)
        here("delete", "pod", "nats-0")
    for store in ("redis", "nats"):
        here("rollout", "status", f"statefulset/{store}", "--timeout=120s")
