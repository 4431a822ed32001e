"""The ways to install hookgate, unchanged but for the namespace; all of it is taken away at the end."""

import json
import os
import re
import shlex
import shutil
from contextlib import contextmanager

from cluster import GATE, GATEWAY, HOST, NAMESPACE, ROOT, SCRATCH, WAY, eventually, here, kubectl, run
from monitoring import MONITORING
from production import SITE, as_written, production
from stores import kustomization, stores

NEXT = os.environ.get("E2E_NEXT", "hookgate:next")


def prerequisites():
    """Says what is missing, before anything is changed."""
    if run("kubectl", "version", "-o", "json", check=False).find("serverVersion") < 0:
        raise SystemExit("e2e: no cluster answers; KUBECONFIG names none, or it is down")
    if GATE == "nginx" and WAY != "overlay":
        raise SystemExit("e2e: E2E_GATE=nginx goes with E2E_WAY=overlay")
    if GATE != "nginx" and not kubectl("-n", GATEWAY[0], "get", "gateway", GATEWAY[1], "--ignore-not-found", check=False):
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


# The namespace of Prometheus, which is one of ours.
OUR_MONITORING = f"""patches:
- target: {{{{kind: NetworkPolicy, name: hookgate}}}}
  patch: |-
    - {{{{op: test, path: /spec/ingress/1/from/0/namespaceSelector/matchLabels, value: {{{{kubernetes.io/metadata.name: monitoring}}}}}}}}
    - {{{{op: replace, path: /spec/ingress/1/from/0/namespaceSelector/matchLabels, value: {{{{kubernetes.io/metadata.name: {MONITORING}}}}}}}}}
"""


def overlay(had):
    """The dev overlay and the ingress's part, unchanged but for the namespace."""
    if GATE == "nginx":
        key, certificate = SCRATCH / "tls.key", SCRATCH / "tls.crt"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", key, "-out", certificate)
        kubectl("create", "namespace", NAMESPACE)
        here("create", "secret", "tls", "hookgate-tls", f"--cert={certificate}", f"--key={key}")
    elif not had:
        kubectl("apply", "-k", ROOT / "k8s/ingress/envoy-gateway/gateway")
    kubectl("apply", "-k", kustomization("place", f"resources: [{{k8s}}/overlays/dev]\ncomponents: [{{k8s}}/ingress/{GATE}]\n{OUR_MONITORING}"))


def values(had):
    """Those of the chart beside the overlay's stores, which is the page's site.yaml."""
    def pods_of(name):
        return [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}]

    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir()
    (SITE / "k8s").symlink_to(ROOT / "k8s")
    file = SITE / "site.yaml"
    file.write_text(json.dumps({
        "config": {"redis": {"url": "redis://redis:6379/1"}, "nats": {"url": "nats://nats:4222"}},
        "ingress": {"type": "envoy-gateway", "host": HOST, "gateway": {"name": GATEWAY[1], "namespace": GATEWAY[0], "clientTrafficPolicy": not had}},
        "networkPolicy": {"redisTo": pods_of("redis"), "natsTo": pods_of("nats")},
    }))


def helm(*arguments):
    return run("helm", "-n", NAMESPACE, *arguments)


def webhook_of_helm_test():
    try:
        as_written("helm -n hookgate test hookgate")
    except SystemExit as problem:
        raise SystemExit(f"{problem}: {here('logs', 'job/hookgate-test', check=False)}") from None


def chart(had):
    stores()
    values(had)
    as_written("helm upgrade --install hookgate k8s/chart -n hookgate -f site.yaml --wait --timeout 5m")
    webhook_of_helm_test()


@contextmanager
def installed():
    """One of the ways; all of it is taken away at the end."""
    had = GATE == "nginx" or kubectl("-n", GATEWAY[0], "get", "clienttrafficpolicy", "-o", "name")
    try:
        {"overlay": overlay, "chart": chart, "production": production}[WAY](bool(had))
        here("rollout", "status", "deployment/hookgate", "--timeout=180s")
        if GATE == "nginx":
            here("rollout", "status", "deployment/hookgate-nginx", "--timeout=180s")
        else:
            for kind in ("httproute", "backendtrafficpolicy"):
                eventually(f"{kind} is accepted", lambda: '"Accepted"' in here("get", kind, "hookgate", "-o", "json"))
        yield
    finally:
        if WAY == "chart":
            as_written("helm -n hookgate uninstall hookgate", check=False)
            as_written("kubectl -n hookgate delete configmap -l app.kubernetes.io/instance=hookgate", check=False)
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s", check=False)
        if not had:
            kubectl("delete", "-k", ROOT / "k8s/ingress/envoy-gateway/gateway", "--ignore-not-found", check=False)
