"""A Prometheus that scrapes hookgate as the PodMonitor says, through the network policy, and has its alerts; beside it a
Pushgateway, and a CRM that has two answers to everything: all is well, and all is wrong."""

import http.client
import json
import os
import time
import urllib.parse
from contextlib import ExitStack, contextmanager

from cluster import NAMESPACE, ROOT, SCRATCH, apply, eventually, forwarded, here, kubectl, named
from stores import kustomization

# In the place of the namespace `monitoring`, which the network policies name.
MONITORING = f"{NAMESPACE}-monitoring"
PROMETHEUS, PUSHGATEWAY = os.environ.get("E2E_PROMETHEUS"), os.environ.get("E2E_PUSHGATEWAY")
COMPONENTS = ROOT / "k8s/components"
JOB = f"{NAMESPACE}/hookgate"
SCRAPED_EVERY = 2  # seconds
EVENTS = ("create", "update")


def as_json(file):
    """An object of a file that this cluster need not know."""
    return json.loads(kubectl("label", "--local", "-f", file, "e2e=e2e", "-o", "json"))


def groups(shorter):
    """The rules of the component, with shorter times: {alert: {what it has: what it gets}}. All of that has to be there."""
    found = as_json(COMPONENTS / "alerts/prometheusrule.yaml")["spec"]["groups"]
    for rule in (rule for group in found for rule in group["rules"]):
        for old, new in shorter.get(rule["alert"], {}).items():
            if rule.get("for") == old:
                rule["for"] = new
            elif old in rule["expr"]:
                rule["expr"] = rule["expr"].replace(old, new)
            else:
                raise SystemExit(f"{rule['alert']} has no {old!r} to make shorter")
    return found


def scraped():
    """What the PodMonitor selects, with the labels that it would give; `pod` is an address. By DNS, which every Prometheus knows
    (Debian's has no discovery in Kubernetes)."""
    spec = as_json(COMPONENTS / "podmonitor/podmonitor.yaml")["spec"]
    [endpoint] = spec["podMetricsEndpoints"]
    replicas = named("service", "hookgate-replicas")
    if replicas["spec"]["selector"] != spec["selector"]["matchLabels"]:
        raise SystemExit("the PodMonitor selects other pods than the Service hookgate-replicas")
    [container] = named("deployment", "hookgate")["spec"]["template"]["spec"]["containers"]
    port = next(port["containerPort"] for port in container["ports"] if port["name"] == endpoint["port"])
    labels = {"namespace": NAMESPACE, "job": JOB, "container": container["name"], "endpoint": endpoint["port"]}
    return {
        "job_name": "podmonitor", "metrics_path": endpoint["path"],
        "scrape_interval": f"{SCRAPED_EVERY}s", "scrape_timeout": f"{SCRAPED_EVERY}s",
        "dns_sd_configs": [{"names": [f"hookgate-replicas.{NAMESPACE}.svc.cluster.local"], "type": "A", "port": port, "refresh_interval": "2s"}],
        "relabel_configs": [
            {"source_labels": ["__address__"], "regex": "(.*):.*", "target_label": "pod"},
            *({"target_label": name, "replacement": value} for name, value in labels.items()),
        ],
    }


def prometheus_files(shorter):
    return {
        "prometheus.yml": json.dumps({
            "global": {"scrape_interval": f"{SCRAPED_EVERY}s", "evaluation_interval": "1s"},
            "rule_files": ["/etc/prometheus/rules.yml"],
            "scrape_configs": [scraped(), {
                "job_name": "pushgateway", "honor_labels": True, "static_configs": [{"targets": ["prometheus-pushgateway:9091"]}],
            }],
        }),
        "rules.yml": json.dumps({"groups": groups(shorter)}),
    }


def crm_files():
    """nginx with EspoCRM's answers, which are the same whatever is asked of a list."""
    long_ago = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - 7200))
    webhooks = [{"id": f"65f0c1d2e3a4b5c6{n}", "event": f"CBeteiligte.{event}", "url": f"https://hooks.example.com/vmh/webhook/beteiligte/{event}",
                 "isActive": True, "skipOwn": True, "userId": "other"} for n, event in enumerate(EVENTS)]
    failed = {"id": "6b0ad0ec962f66749", "number": 113, "event": "CBeteiligte.create", "targetId": "6b0ad0ec5e480f1fe",
              "createdAt": long_ago, "attempts": 4, "webhookId": webhooks[0]["id"]}
    waiting = {"id": "6b0ad0ec962f66750", "number": 114, "event": "CBeteiligte.update", "createdAt": long_ago}
    same = {"App/about": {"text": "EspoCRM", "version": "9.3.10"}, "User/other/acl": {"table": {"CBeteiligte": {"read": "all"}}}}
    answers = {
        "well": same | {"Webhook": webhooks, "WebhookQueueItem": [], "WebhookEventQueueItem": []},
        "wrong": same | {"Webhook": webhooks[:1], "WebhookQueueItem": [failed], "WebhookEventQueueItem": [waiting]},
    }

    def location(path, answer):
        answer = json.dumps(answer if isinstance(answer, dict) else {"total": -2, "list": answer})
        return f"location = /api/v1/{path} {{ default_type application/json; return 200 '{answer}'; }}"

    return {"crm.conf": "\n".join(
        f"server {{ listen 443; server_name crm-{state}.{MONITORING}.svc;\n" + "\n".join(location(*one) for one in of.items()) + "\n}"
        for state, of in answers.items()
    )}


def pod(name, image, port, files=None, where="/etc/files", args=()):
    """A pod with its Service and its files."""
    meta = {"name": name, "namespace": MONITORING}
    labels = {"app.kubernetes.io/name": name}
    if files:
        apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": files})
    container = {
        "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "args": list(args), "ports": [{"containerPort": port}],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/tmp"}, *([{"name": "files", "mountPath": where}] if files else [])],
    }
    if not args:
        del container["args"]
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta | {"labels": labels}, "spec": {
        "containers": [container], "automountServiceAccountToken": False, "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "runAsGroup": 65534, "seccompProfile": {"type": "RuntimeDefault"},
                            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]},
        "volumes": [{"name": "data", "emptyDir": {}}, *([{"name": "files", "configMap": {"name": name}}] if files else [])],
    }})
    return labels, port


def service(name, labels, port):
    apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": MONITORING},
           "spec": {"selector": labels, "ports": [{"port": port}]}})


def nginx_image():
    """The one of the ingress component."""
    text = (ROOT / "k8s/ingress/nginx/kustomization.yaml").read_text().split("images:")[1].split()
    return f"{text[text.index('name:') + 1]}:{text[text.index('newTag:') + 1]}"


@contextmanager
def monitored(shorter):
    """All of it, taken away at the end; gives the Prometheus."""
    kubectl("create", "namespace", MONITORING)
    try:
        gateway = pod("prometheus-pushgateway", PUSHGATEWAY, 9091)
        service("prometheus-pushgateway", *gateway)
        crm = pod("crm", nginx_image(), 443, crm_files(), "/etc/nginx/conf.d")
        for state in ("well", "wrong"):
            service(f"crm-{state}", *crm)
        pod("prometheus", PROMETHEUS, 9090, prometheus_files(shorter), "/etc/prometheus",
            args=["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/prometheus"])
        try:
            kubectl("-n", MONITORING, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
        except SystemExit as problem:
            raise SystemExit(f"{problem}: {kubectl('-n', MONITORING, 'logs', 'prometheus', '--tail=3', said=True)}") from None
        metrics_job()
        with ExitStack() as stack:
            yield Prometheus(stack)
    finally:
        here("delete", "cronjob,networkpolicy,job", "-l", "app.kubernetes.io/name=hookgate-espocrm-metrics", check=False)
        here("delete", "secret", "hookgate-secrets", "hookgate-espocrm", "--ignore-not-found", check=False)
        kubectl("delete", "namespace", MONITORING, "--timeout=120s", check=False)


def metrics_job():
    """The component, unchanged but for names. Nobody waits ten minutes: it is started by hand."""
    folder = kustomization("espocrm-metrics", "resources: [../place]\ncomponents: [{k8s}/components/espocrm-metrics]\n")
    [container] = named("deployment", "hookgate")["spec"]["template"]["spec"]["containers"]
    text = kubectl("kustomize", folder).replace("image: hookgate\n", f"image: {container['image']}\n")
    text = text.replace("prometheus-pushgateway.monitoring.svc", f"prometheus-pushgateway.{MONITORING}.svc")
    text = text.replace("kubernetes.io/metadata.name: monitoring", f"kubernetes.io/metadata.name: {MONITORING}")
    rendered = SCRATCH / "espocrm-metrics.yaml"
    rendered.write_text(text)
    here("create", "secret", "generic", "hookgate-secrets")
    here("create", "secret", "generic", "hookgate-espocrm", "--from-literal=espocrm-password=unused")
    here("apply", "-f", rendered, "-l", "app.kubernetes.io/name=hookgate-espocrm-metrics")
    here("patch", "cronjob/hookgate-espocrm-metrics", "-p", '{"spec": {"suspend": true}}')


def look_at_crm(state):
    """The CronJob's job, once, at one of the two CRMs."""
    name = f"metrics-{state}-{time.time_ns()}"
    job = json.loads(here("create", "job", "--from=cronjob/hookgate-espocrm-metrics", name, "--dry-run=client", "-o", "json"))
    [container] = job["spec"]["template"]["spec"]["containers"]
    container["env"].append({"name": "HOOKGATE__ESPOCRM__URL", "value": f"http://crm-{state}.{MONITORING}.svc:443"})
    apply(job)

    def ended():
        status = json.loads(here("get", "job", name, "-o", "json"))["status"]
        return {"succeeded": "well", "failed": "wrong"}.get(next((end for end in ("succeeded", "failed") if status.get(end)), None))

    if (seen := eventually("the CRM was looked at", ended)) != state:
        raise SystemExit(f"the look at the CRM says {seen}, not {state}: {here('logs', f'job/{name}')}")


class Prometheus:
    """Asked by a forwarded port, which is forwarded again if it breaks."""

    def __init__(self, stack):
        self.stack, self.port = stack, None

    def ask(self, path, **query):
        for last in (False, True):
            try:
                self.port = self.port or self.stack.enter_context(forwarded("pod/prometheus", 9090, MONITORING))
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
                answer = json.loads(connection.getresponse().read())
                connection.close()
            except (OSError, http.client.HTTPException):
                self.port = None
                if last:
                    raise
            else:
                if answer["status"] != "success":
                    raise SystemExit(f"Prometheus: {path} {query}: {answer['error']}")
                return answer["data"]

    def query(self, expression):
        return self.ask("query", query=expression)["result"]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def fired(self, since):
        """The labels of whatever has fired since then."""
        seconds = max(1, int(time.monotonic() - since))
        return [one["metric"] for one in self.query(f'max_over_time(ALERTS{{alertstate="firing"}}[{seconds}s])')]
