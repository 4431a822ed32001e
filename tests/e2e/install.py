"""The ways to install hookgate, unchanged but for the namespace; all of it is taken away at the end."""

import json
import os
import re
import shlex
import shutil
import time
from contextlib import contextmanager, suppress

from cluster import (
    GATE, GATEWAY, HOST, NAMESPACE, OUTSIDE, ROOT, SCRATCH, WAY, eventually, here, kubectl, look, objects, published, run,
)
from monitoring import MONITORING
from production import SITE, as_written, production
from stores import kustomization, stores, stores_run

NEXT = os.environ.get("E2E_NEXT", "hookgate:next")


def prerequisites():
    """Says what is missing, before anything is changed."""
    tools = ["kubectl", "curl", "openssl", *{"chart": ["helm"], "production": ["jq"]}.get(WAY, ())]
    if absent := [tool for tool in tools if not shutil.which(tool)]:
        raise SystemExit(f"e2e: not in PATH: {', '.join(absent)}")
    if WAY not in WAYS:
        raise SystemExit(f"e2e: E2E_WAY={WAY} is none of {', '.join(WAYS)}")
    if run("kubectl", "version", "-o", "json", check=False).find("serverVersion") < 0:
        raise SystemExit("e2e: no cluster answers; KUBECONFIG names none, or it is down")
    if GATE == "nginx" and WAY != "overlay":
        raise SystemExit("e2e: E2E_GATE=nginx goes with E2E_WAY=overlay")
    if GATE != "nginx":
        found = kubectl("-n", GATEWAY[0], "get", "gateway", GATEWAY[1], "--ignore-not-found", "-o", "json", check=False)
        listeners = json.loads(found)["spec"]["listeners"] if found.startswith("{") else []
        if not any(one["protocol"] == "HTTPS" and one.get("hostname", HOST) == HOST for one in listeners):
            raise SystemExit(
                f"e2e: no Gateway {GATEWAY[1]} in namespace {GATEWAY[0]} has an https listener for {HOST}: install Envoy Gateway, and make one"
            )
    classes = objects("storageclass")
    if not any(one["metadata"].get("annotations", {}).get("storageclass.kubernetes.io/is-default-class") == "true" for one in classes):
        raise SystemExit("e2e: no storage class is the default, so the stores would get no volumes")
    if not kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes", check=False):
        raise SystemExit("e2e: no metrics: install metrics-server, which the autoscaler and kubectl top ask")
    for namespace in OURS:
        if kubectl("get", "namespace", namespace, "--ignore-not-found"):
            raise SystemExit(f"e2e: namespace {namespace} is there already: another run, or what one left; kubectl delete namespace {namespace}")


def load_image():
    """The image of this source, and another one to roll out: the same program under another label."""
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    if command := os.environ.get("E2E_LOAD"):
        name, archive = f"hookgate:{version}", SCRATCH / "hookgate.tar"
        # The first build optimises the whole program at once, which takes long on two cores.
        engine = run("make", "image", cwd=ROOT, timeout=2400).split()[-1]
        build, save = {
            "docker": ("docker build", "docker save -o {archive} {name}"),
            "podman": ("podman build", "podman push -q {name} docker-archive:{archive}:docker.io/library/{name}"),
            "buildah": ("buildah bud", "buildah push -q {name} docker-archive:{archive}:docker.io/library/{name}"),
        }[engine]
        empty = SCRATCH / "empty"
        empty.mkdir(exist_ok=True)
        run(*build.split(), "-q", "-t", NEXT, "-f", "-", empty, input=f"FROM {name}\nLABEL e2e=next\n")
        for given in (name, NEXT):
            archive.unlink(missing_ok=True)
            run(*save.format(archive=archive, name=given).split())
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
    stores_run()


def values(had):
    """Those of the chart beside the overlay's stores, which is the page's site.yaml."""
    def pods_of(name):
        return [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}]

    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(ROOT / "k8s", SITE / "k8s")
    namespace = SITE / "k8s/overlays/production/namespace.yaml"
    namespace.write_text(namespace.read_text().replace("name: hookgate\n", f"name: {NAMESPACE}\n"))
    file = SITE / "site.yaml"
    file.write_text(json.dumps({
        "config": {"redis": {"url": "redis://redis:6379/1"}, "nats": {"url": "nats://nats:4222"}},
        "ingress": {"type": "envoy-gateway", "host": HOST, "gateway": {"name": GATEWAY[1], "namespace": GATEWAY[0], "clientTrafficPolicy": not had}},
        "networkPolicy": {"redisTo": pods_of("redis"), "natsTo": pods_of("nats")},
    }))


def helm(*arguments):
    return run("helm", "-n", NAMESPACE, *arguments)


def webhook_of_helm_test():
    """Its event has to be in the stream."""
    def events():
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 900))
        return {name for name in published(since) if name.startswith("helm-test-")}

    before = events()
    try:
        as_written("helm -n hookgate test hookgate")
    except SystemExit as problem:
        raise SystemExit(f"{problem}: {here('logs', 'job/hookgate-test', check=False)}") from None
    if len(events() - before) != 1:
        raise SystemExit(f"helm test succeeded, and its event is not in the stream, but {events() - before}")


def helm_install():
    as_written("helm upgrade --install hookgate k8s/chart -n hookgate -f site.yaml --wait --timeout 5m")
    webhook_of_helm_test()


def helm_uninstall(check=True):
    as_written("helm -n hookgate uninstall hookgate", check=check)


def remove_configmaps(check=True):
    as_written("kubectl -n hookgate delete configmap -l app.kubernetes.io/instance=hookgate", check=check)


def everything():
    """The names of all objects in the namespace, and of the policies beside the Gateway."""
    kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    asked = ",".join(kind for kind in kinds if not re.match(r"(events|leases|pods\.metrics)\b", kind))
    return set(here("get", asked, "-o", "name").split()) | set(kubectl("-n", GATEWAY[0], "get", "clienttrafficpolicy", "-o", "name").split())


def chart(had):
    """Installed by the page, uninstalled, which leaves what the page says, and installed again."""
    values(had)
    as_written("kubectl apply -f k8s/overlays/production/namespace.yaml")
    stores()
    before = everything()
    helm_install()
    helm_uninstall()
    only_left(before, r"configmap/hookgate-(config|again|nginx|nginx-tls)-[0-9a-z]{10}")
    remove_configmaps()
    only_left(before, "nothing")
    helm_install()


def only_left(before, pattern):
    """What else there was ends soon: pods are told to leave, and what belongs to objects goes after them."""
    def others():
        return {name for name in everything() - before if not re.fullmatch(pattern, name)}

    try:
        eventually("helm uninstall has taken all away", lambda: not others(), within=90)
    except SystemExit as problem:
        raise SystemExit(f"{problem}: {', '.join(sorted(others()))}") from None


WAYS = {"overlay": overlay, "chart": chart, "production": production}
# The namespaces that are made, and taken away.
OURS = (NAMESPACE, MONITORING, OUTSIDE)


@contextmanager
def installed():
    """One of the ways; all of it is taken away at the end."""
    had = bool(GATE == "nginx" or kubectl("-n", GATEWAY[0], "get", "clienttrafficpolicy", "-o", "name"))
    try:
        try:
            WAYS[WAY](had)
            here("rollout", "status", "deployment/hookgate", "--timeout=180s")
            if GATE == "nginx":
                here("rollout", "status", "deployment/hookgate-nginx", "--timeout=180s")
            else:
                for kind in ("httproute", "backendtrafficpolicy"):
                    eventually(f"{kind} is accepted", lambda: '"Accepted"' in here("get", kind, "hookgate", "-o", "json"))
        except (Exception, SystemExit):
            with suppress(Exception, SystemExit):
                look()
            raise
        yield
    finally:
        taken_away(had)


def taken_away(had):
    """All of it; what is left is an error."""
    if WAY == "chart":
        helm_uninstall(check=False)
        remove_configmaps(check=False)
    kubectl("delete", "namespace", *OURS, "--ignore-not-found", "--timeout=180s", check=False)
    if not had:
        kubectl("delete", "-k", ROOT / "k8s/ingress/envoy-gateway/gateway", "--ignore-not-found", check=False)
    left = kubectl("get", "namespace", *OURS, "--ignore-not-found", "-o", "name").split()
    left += [] if had else kubectl("-n", GATEWAY[0], "get", "clienttrafficpolicy", "-o", "name").split()
    if left:
        raise SystemExit(f"e2e: left behind: {', '.join(left)}")
