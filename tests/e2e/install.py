"""The ways to install hookgate, unchanged but for the namespace; all of it is taken away at the end."""

import json
import os
import re
import shlex
from contextlib import contextmanager

from cluster import GATEWAY, HOST, NAMESPACE, ROOT, SCRATCH, eventually, here, kubectl, run

WAY = os.environ.get("E2E_WAY", "overlay")
NEXT = os.environ.get("E2E_NEXT", "hookgate:next")


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
