"""The Helm chart: what it renders from values, compared with what the overlays render, field by field."""

import copy
import itertools
import json
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

import yaml
from manifests import ROOT, Loader, Place, at, title
from schemas import problems as against_schemas

FOLDER = ROOT / "k8s/chart"
RELEASE, KUBERNETES = "hookgate", "1.34"
# Of the release, and of no overlay.
LABELS = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"}
INGRESSES = ["envoy-gateway", "nginx", "traefik", "ingress-nginx", "gateway-api", "none"]
# The name of a ConfigMap with the hash of its content.
HASHED = re.compile(r"\b(hookgate-(?:config|again|nginx|nginx-tls))-[0-9a-z]{10}\b")
# What a chart without stores, for one namespace that is there, does not have.
STORES = {("StatefulSet", "redis"), ("Service", "redis"), ("ConfigMap", "nats"), ("StatefulSet", "nats"), ("Service", "nats")}


def site(overlay):
    return tomllib.loads((ROOT / f"k8s/overlays/{overlay}/site.toml").read_text())


def offered_site():
    """The production overlay's site.toml with what it says of the CRM in comments, as an operator would switch it on."""
    before, found, after = (ROOT / "k8s/overlays/production/site.toml").read_text().partition("# [espocrm]\n")
    assert found, "site.toml has the CRM in comments"
    return before + re.sub(r"(?m)^# ?", "", found + after)


def production(ingress, more=None):
    """The values that stand for the production overlay, and others over them."""
    values = {
        "config": site("production"),
        "secrets": {"name": "hookgate-secrets"},
        "ingress": {"type": ingress, "className": "nginx"},
    }
    return values | (more or {})


DEV = {
    "config": tomllib.loads((ROOT / "k8s/base/site.toml").read_text()),
    "ingress": {"type": "none"},
    "networkPolicy": {
        "webhooksFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "redisTo": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "redis"}}}],
        "natsTo": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "nats"}}}],
    },
}
OFFERED = {
    "config": tomllib.loads(offered_site()),
    "espocrm": {"reconcile": {"enabled": True}, "metrics": {"enabled": True}},
    "monitoring": {"podMonitor": True, "alerts": True, "dashboard": True},
    "secrets": {"name": "hookgate-secrets", "external": {"enabled": True}},
}

# Values that must be refused, and a word of the complaint.
REFUSED = [
    ("a key that is not there", {"image": {"tagg": "1"}}, "tagg"),
    ("a key that hookgate does not have", {"config": {"redis": {"urls": "redis://redis"}}}, "urls"),
    ("a value of another type for hookgate", {"config": {"server": {"max_in_flight": "many"}}}, "max_in_flight"),
    ("no Redis", {"config": {"redis": {"url": None}}}, "/config/redis"),
    ("no NATS", {"config": {"nats": None}}, "/config"),
    ("a password in an address", {"config": {"redis": {"url": "redis://hookgate:secret@redis:6379/1"}}}, "redis/url"),
    ("another password in an address", {"config": {"nats": {"url": "nats://hookgate:secret@nats:4222"}}}, "nats/url"),
    ("a password in a variable", {"pod": {"env": [{"name": "HOOKGATE__REDIS__PASSWORD", "value": "secret"}]}}, "pod/env"),
    ("claims in memory", {"config": {"redis": {"url": "memory:"}}}, "redis/url"),
    ("an ingress that is not there", {"ingress": {"type": "haproxy"}}, "ingress/type"),
    ("two replicas", {"replicas": {"min": 2}}, "replicas/min"),
    ("fewer at most than at least", {"replicas": {"min": 5, "max": 4}}, "replicas.max"),
    ("out to anybody", {"networkPolicy": {"redisTo": None}}, "networkPolicy"),
    ("no limit of memory", {"resources": {"limits": {"memory": None}}}, "resources/limits"),
    ("a password in the address of the CRM", {"config": {"espocrm": {"url": "https://admin:secret@crm"}}}, "espocrm/url"),
    ("the CRM's jobs without a CRM", {"espocrm": {"reconcile": {"enabled": True}}}, "config.espocrm"),
    ("two runs at once, by a schedule that is none", {"espocrm": {"reconcile": {"schedule": "hourly"}}}, "reconcile/schedule"),
    ("a flag that reconcile does not have", {"espocrm": {"reconcile": {"args": ["--purge"]}}}, "reconcile/args"),
    ("a Secret without a name", {"secrets": {"external": {"enabled": True}}}, "secrets.name"),
]

# Addresses of Redis, and the ports that a replica needs for them.
REDIS_PORTS = [
    ("redis://redis:6380/1", [6380]),
    ("redis+sentinel://s-0:26379,s-1:26379,s-2:26379/main/1", [26379, 6379]),
    ("rediss+cluster://n-0:7000,n-1:7000", [7000]),
]


# Every value of the chart but `config`, as it is not by default.
EVERY = {
    "image": {"repository": "registry.example.com/other", "tag": "9.9.9", "pullPolicy": "Always", "pullSecrets": ["of-the-registry"]},
    "secrets": {"name": "other-secrets", "external": {
        "enabled": True, "store": {"kind": "SecretStore", "name": "other-store"}, "refreshInterval": "77m",
        "data": [{"secretKey": "other-key", "remoteRef": {"key": "other/key"}}],
    }},
    "ingress": {
        "type": "traefik", "host": "other.example.org", "className": "other-class", "tlsSecret": "other-tls",
        "gateway": {"name": "other-gateway", "namespace": "other-gateways", "sectionName": "other-section", "clientTrafficPolicy": False},
        "nginxImage": {"repository": "registry.example.com/nginx", "tag": "7.7.7"},
    },
    "networkPolicy": {
        "webhooksFrom": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "metricsFrom": [{"ipBlock": {"cidr": "192.0.2.2/32"}}],
        "redisTo": [{"ipBlock": {"cidr": "192.0.2.3/32"}}], "natsTo": [{"ipBlock": {"cidr": "192.0.2.4/32"}}],
        "moreEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.5/32"}}], "ports": [{"port": 4317, "protocol": "TCP"}]}],
    },
    "replicas": {"min": 7, "max": 17},
    "resources": {"requests": {"cpu": "377m", "memory": "333Mi"}, "limits": {"memory": "999Mi"}},
    "pod": {
        "annotations": {"example.com/noted": "yes"}, "nodeSelector": {"example.com/pool": "webhooks"},
        "tolerations": [{"key": "example.com/reserved", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "other-priority", "env": [{"name": "OTHER_VARIABLE", "value": "0"}],
    },
    "doctor": {"strict": True, "podLabels": {"example.com/may": "ask"}},
    "test": {"route": "other/of/test", "url": "https://test.example.org", "caFile": "/run/secrets/hookgate/other.crt"},
    "espocrm": {
        "secret": "other-espocrm", "to": [{"ipBlock": {"cidr": "192.0.2.6/32"}}],
        "reconcile": {"enabled": True, "schedule": "7 7 * * *", "args": ["--failed", "--dry-run"]},
        "metrics": {"enabled": True, "schedule": "8 8 * * *", "pushgateway": "http://other-gateway.example.org:9191",
                    "pushgatewayTo": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]},
    },
    "monitoring": {"podMonitor": True, "alerts": True, "dashboard": True, "labels": {"example.com/release": "other"}},
}
# These stay on: without them the objects that the others are in are not there.
STAY_ON = {"networkPolicy.enabled", "doctor.enabled", "test.enabled"}
PODS = {"Deployment/hookgate", "Job/hookgate-doctor", "Job/hookgate-test", "CronJob/hookgate-reconcile", "CronJob/hookgate-espocrm-metrics"}
MONITORS = {"PodMonitor/hookgate", "PrometheusRule/hookgate", "ConfigMap/hookgate-dashboard"}
STORE_WAYS = {"NetworkPolicy/hookgate", "NetworkPolicy/hookgate-reconcile"}
# A piece of each of them, and the objects that have it; no other has.
EVERYWHERE = {
    "registry.example.com/other:9.9.9": PODS, '"imagePullPolicy": "Always"': PODS, '"imagePullSecrets": [{"name": "of-the-registry"}]': PODS,
    '"secretName": "other-secrets"': PODS, '"nodeSelector": {"example.com/pool": "webhooks"}': PODS, "example.com/reserved": PODS,
    '"priorityClassName": "other-priority"': PODS, "OTHER_VARIABLE": PODS, "example.com/noted": {"Deployment/hookgate"},
    '{"kind": "SecretStore", "name": "other-store"}': {"ExternalSecret/other-secrets"}, '"77m"': {"ExternalSecret/other-secrets"},
    "other-key": {"ExternalSecret/other-secrets"}, "192.0.2.1/": {"NetworkPolicy/hookgate"}, "192.0.2.2/": {"NetworkPolicy/hookgate"},
    "192.0.2.3/": STORE_WAYS, "192.0.2.4/": STORE_WAYS, "192.0.2.5/": {"NetworkPolicy/hookgate"}, "4317": {"NetworkPolicy/hookgate"},
    "192.0.2.6/": {"NetworkPolicy/hookgate-reconcile", "NetworkPolicy/hookgate-espocrm-metrics"},
    "192.0.2.7/": {"NetworkPolicy/hookgate-espocrm-metrics"}, '"port": 9191': {"NetworkPolicy/hookgate-espocrm-metrics"},
    '"minReplicas": 7': {"HorizontalPodAutoscaler/hookgate"}, '"maxReplicas": 17': {"HorizontalPodAutoscaler/hookgate"},
    "377m": {"Deployment/hookgate"}, "333Mi": {"Deployment/hookgate"}, "999Mi": {"Deployment/hookgate"},
    '"--strict"': {"Job/hookgate-doctor"}, "example.com/may": {"Job/hookgate-doctor"},
    '"other/of/test"': {"Job/hookgate-test"}, "--url=https://test.example.org": {"Job/hookgate-test"},
    "--ca-file=/run/secrets/hookgate/other.crt": {"Job/hookgate-test"},
    '"secretName": "other-espocrm"': {"CronJob/hookgate-reconcile", "CronJob/hookgate-espocrm-metrics"},
    "7 7 * * *": {"CronJob/hookgate-reconcile"}, '"--failed", "--dry-run"': {"CronJob/hookgate-reconcile"},
    "8 8 * * *": {"CronJob/hookgate-espocrm-metrics"}, "--push-to=http://other-gateway.example.org:9191": {"CronJob/hookgate-espocrm-metrics"},
    "example.com/release": MONITORS,
}
# The same of each kind of ingress.
OF_INGRESS = {
    "traefik": {"other.example.org": {"Ingress/hookgate"}, '"ingressClassName": "other-class"': {"Ingress/hookgate"},
                '"secretName": "other-tls"': {"Ingress/hookgate"}, "registry.example.com/nginx:7.7.7": {"Deployment/hookgate-again"}},
    "nginx": {'"secretName": "other-tls"': {"Deployment/hookgate-nginx"}, "registry.example.com/nginx:7.7.7": {"Deployment/hookgate-nginx"}},
    "envoy-gateway": {"other.example.org": {"HTTPRoute/hookgate"}, '"sectionName": "other-section"': {"HTTPRoute/hookgate"},
                      '"name": "other-gateway", "namespace": "other-gateways"': {"HTTPRoute/hookgate"}, "ClientTrafficPolicy": set()},
}


class Chart:
    """The chart under one helm."""

    def __init__(self, helm, scratch):
        self.helm, self.scratch = helm, scratch

    def run(self, *arguments, values=None):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values or {}, file)
            file.flush()
            done = subprocess.run(
                [self.helm, *map(str, arguments), "--values", file.name] if values is not None else [self.helm, *map(str, arguments)],
                capture_output=True, text=True, timeout=60,
            )
        said = "\n".join(line for line in done.stderr.splitlines() if "found symbolic link" not in line)
        return done.returncode, done.stdout, said.strip()

    def render(self, values, namespace="hookgate", chart=FOLDER):
        """What an upgrade would apply, hooks included."""
        command = ["template", RELEASE, chart, "--is-upgrade", "-n", namespace, "--kube-version", KUBERNETES]
        code, text, said = self.run(*command, values=values)
        if code != 0 or said:
            raise SystemExit(f"helm template: {said}")
        return [document for document in yaml.load_all(text, Loader) if document]

    def refusal(self, values):
        code, _, said = self.run("template", RELEASE, FOLDER, "--kube-version", KUBERNETES, values=values)
        return said if code != 0 else ""


def checks(chart):
    """(name, what is wrong) of what needs no overlay."""
    code, text, said = chart.run("lint", "--strict", FOLDER, "--kube-version", KUBERNETES, values=production("envoy-gateway"))
    yield "helm lint --strict", [] if code == 0 else [text + said]
    about = yaml.safe_load((FOLDER / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    yield "its versions are that of Cargo.toml", [f"{key} is {about[key]}" for key in ("version", "appVersion") if about[key] != version]
    with tempfile.NamedTemporaryFile(suffix=".json") as made:
        subprocess.run([ROOT / "scripts/chart-schema.sh", made.name], check=True)
        same = Path(made.name).read_text() == (FOLDER / "values.schema.json").read_text()
    yield "values.schema.json is of config/schema.json", [] if same else ["it is not: run scripts/chart-schema.sh"]
    yield "packed it renders the same", packed(chart)
    for name, values, word in REFUSED:
        said = chart.refusal(values)
        yield f"refuses {name}", [] if word in said else [f"nobody said {word!r}, but: {said or 'nothing'}"]
    for ingress, offered, policy in itertools.product(INGRESSES, (True, False), (True, False)):
        values = production(ingress, OFFERED if offered else None) | {"networkPolicy": {"enabled": policy}}
        found = [problem for document in chart.render(values) for problem in against_schemas(document, (KUBERNETES,))]
        yield f"{ingress}{', all it offers' if offered else ''}{'' if policy else ', no network policy'}", found
    yield "no value of values.yaml is left as it is", left_alone()
    for ingress, more in OF_INGRESS.items():
        yield f"every value is in its objects: {ingress}", in_their_objects(chart, ingress, EVERYWHERE | more)
    for url, ports in REDIS_PORTS:
        yield f"the way to {url}", ways_to_redis(chart, url, ports)
    yield "TOML of every kind of value", toml(chart)
    _, text, _ = chart.run("template", RELEASE, FOLDER, "--kube-version", KUBERNETES, values=production("none", OFFERED))
    early = [title(d) for d in yaml.load_all(text, Loader) if d and d["metadata"]["name"] == "hookgate-doctor"]
    yield "an installation waits for no Secret that it makes itself", [f"{name} is a hook" for name in early]


def leaves(values, path=""):
    """The values by their paths; a list, or what has no keys yet, is one."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def left_alone():
    """Values that EVERY leaves as they are."""
    default = yaml.safe_load((FOLDER / "values.yaml").read_text())
    del default["config"]
    return [path for path, value in leaves(default) if path not in STAY_ON and at(EVERY, *path.split("."), default=value) == value]


def in_their_objects(chart, ingress, pieces):
    values = EVERY | {"config": tomllib.loads(offered_site()), "ingress": EVERY["ingress"] | {"type": ingress}}
    documents = chart.render(values)
    problems = [problem for document in documents for problem in against_schemas(document, (KUBERNETES,))]
    for piece, wanted in pieces.items():
        found = {title(document) for document in documents if piece in json.dumps(document)}
        if found != wanted:
            problems.append(f"{piece} is in {sorted(found)}, not in {sorted(wanted)}")
    return problems


def ways_to_redis(chart, url, ports):
    """Every network policy that lets out to Redis lets out to these ports."""
    values = production("none", OFFERED)
    values["config"] = values["config"] | {"redis": values["config"]["redis"] | {"url": url}}
    for document in chart.render(values):
        if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] in ("hookgate", "hookgate-reconcile"):
            found = [port["port"] for port in document["spec"]["egress"][1]["ports"]]
            if found != ports:
                return [f"{title(document)}: {found}, not {ports}"]
    return []


def packed(chart):
    chart.scratch.mkdir(parents=True, exist_ok=True)
    code, text, said = chart.run("package", FOLDER, "--destination", chart.scratch)
    if code != 0:
        return [said]
    values = production("nginx", OFFERED)
    same = chart.render(values, chart=text.rpartition(": ")[2].strip()) == chart.render(values)
    return [] if same else ["it does not"]


def toml(chart):
    """The file that hookgate reads says what the values say."""
    config = site("production") | {
        "server": {"max_body_bytes": 33554432, "max_buffered_bytes": 1 << 30, "request_deadline": "3s"},
        "log": {"filter": 'info,hookgate::entity=warn "<&>\\ ü'},
        "routes": [
            {"flow": "vmh", "entity": "beteiligte", "action": "update", "while_pending": "skip",
             "auth": [{"scheme": "espocrm", "id": "65f0", "secret_files": ["/run/secrets/hookgate/a", "/run/secrets/hookgate/b"]}]},
            {"flow": "vmh", "entity": "akte", "action": "create", "auth": []},
        ],
    }
    config["nats"] |= {"stream": {"create": False, "replicas": 3}}
    data = next(d["data"] for d in chart.render(production("none") | {"config": config}) if d["kind"] == "ConfigMap")
    found = tomllib.loads(data["site.toml"])
    return list(different(config, found, "site.toml"))


def places(chart, rendered):
    """(what the chart renders, the name of what the overlays render for it)."""
    likes = [("production", production("envoy-gateway"))]
    likes += [(f"production with {name}", production(name)) for name in INGRESSES if f"production with {name}" in rendered]
    likes += [("production with all it offers", production("envoy-gateway", OFFERED))]
    for like, values in likes:
        place = rendered[like]
        # The chart makes no namespace.
        documents = lasting(chart.render(values, place.namespace)) + [place.find("Namespace", place.namespace)]
        yield Place(f"chart, {like}", documents, place.namespace, place.given), like
    place = rendered["dev"]
    around = [d for d in place.documents if (d["kind"], d["metadata"]["name"]) in STORES or d["kind"] in ("Namespace", "Ingress")]
    yield Place("chart, dev", lasting(chart.render(DEV, place.namespace)) + around, place.namespace, place.given, ingress=False), "dev"


def lasting(documents):
    """Without the network policy of `helm test`, which is there while that runs."""
    return [d for d in documents if (d["kind"], d["metadata"]["name"]) != ("NetworkPolicy", "hookgate-test")]


def differences(overlay, chart):
    """Where the objects of the two differ. A hook has a counterpart only where the component is there."""
    wanted, found = [
        {identity(d): plain(d) for d in documents}
        for documents in (overlay, chart)
    ]
    hooks = {identity(d) for d in chart if is_hook(d)} - set(wanted)
    for key in sorted((set(wanted) | set(found)) - hooks, key=str):
        if key not in found or key not in wanted:
            yield f"{' '.join(map(str, key))} is only in the {'overlay' if key in wanted else 'chart'}"
        else:
            yield from different(wanted[key], found[key], title(wanted[key]))


def identity(document):
    document = json.loads(HASHED.sub(r"\1", json.dumps(document["metadata"]))) | {"kind": document["kind"]}
    return document["kind"], document.get("namespace"), document["name"]


def is_hook(document):
    return "helm.sh/hook" in document["metadata"].get("annotations", {})


def plain(document):
    """An object without what Helm or kustomize alone puts there."""
    document = json.loads(HASHED.sub(r"\1", json.dumps(copy.deepcopy(document))))
    metadata = document["metadata"]
    annotations = metadata.get("annotations", {})
    for name in ("helm.sh/hook", "helm.sh/hook-weight", "helm.sh/hook-delete-policy"):
        annotations.pop(name, None)
    if not annotations:
        metadata.pop("annotations", None)
    metadata["labels"] = {name: value for name, value in metadata.get("labels", {}).items() if name not in LABELS}
    if not metadata["labels"]:
        del metadata["labels"]
    # The same file, in other words.
    if text := at(document, "data", "site.toml"):
        document["data"]["site.toml"] = tomllib.loads(text)
    return document


def different(wanted, found, where):
    """The paths at which two values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(set(wanted) | set(found)):
            if key not in wanted or key not in found:
                yield f"{where}.{key} is only in the {'overlay' if key in wanted else 'chart'}"
            else:
                yield from different(wanted[key], found[key], f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, pair in enumerate(zip(wanted, found)):
            yield from different(*pair, f"{where}[{index}]")
    elif wanted != found:
        yield f"{where}: {wanted!r} in the overlay, {found!r} in the chart"
