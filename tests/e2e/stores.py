"""Redis and NATS for what brings none: those of the dev overlay."""

import os

from cluster import NAMESPACE, ROOT, SCRATCH, here, kubectl


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
    for store in ("redis", "nats"):
        here("rollout", "status", f"statefulset/{store}", "--timeout=120s")
