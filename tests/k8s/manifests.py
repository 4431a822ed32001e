"""Rendered manifests: loading, looking things up in them, and the units they are written in. Knows no rule."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
# They end, and select their own pods by labels that the cluster makes.
JOBS = ("Job", "CronJob")


class Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, as it is for the API server's strict validation."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"keys that stand twice: {sorted(twice)}, {node.start_mark}")
        return super().construct_mapping(node, deep)


def render(kubectl, folder):
    """What `kubectl apply -k` would send."""
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise SystemExit(f"kubectl kustomize {folder} failed:\n{done.stderr}")
    if done.stderr.strip():
        raise SystemExit(f"kubectl kustomize {folder} warns:\n{done.stderr}")
    return [document for document in yaml.load_all(done.stdout, Loader) if document]


def at(value, *path, default=None):
    """The value at a path of keys and indexes, or the default."""
    for step in path:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return default
    return value


@dataclass
class Place:
    """One rendering, and what is around it without being part of it."""

    name: str
    documents: list
    namespace: str
    # Objects that somebody else makes: (kind, name) -> keys.
    given: dict = field(default_factory=dict)
    # Whether the ingress's part has to be there.
    ingress: bool = True

    def of_kind(self, *kinds):
        return [document for document in self.documents if document["kind"] in kinds]

    def find(self, kind, name):
        found = [d for d in self.of_kind(kind) if d["metadata"]["name"] == name]
        return found[0] if found else None

    def keys(self, kind, name):
        """The keys of a ConfigMap or Secret; None if nobody makes it."""
        document = self.find(kind, name)
        if document is not None:
            return set(document.get("data") or {}) | set(document.get("stringData") or {})
        for external in self.of_kind("ExternalSecret") if kind == "Secret" else []:
            if at(external, "spec", "target", "name") == name:
                return {item["secretKey"] for item in external["spec"]["data"]}
        return self.given.get((kind, name))

    def workloads(self):
        return self.of_kind(*WORKLOADS)

    def selected(self, labels):
        """The workloads whose pods carry all these labels; no label selects nothing here."""
        return [w for w in self.workloads() if labels and labels.items() <= pod_labels(w).items()]

    def replicas(self, workload):
        """The least number of pods there is when nothing is wrong."""
        for scaler in self.of_kind("HorizontalPodAutoscaler"):
            if at(scaler, "spec", "scaleTargetRef", "name") == workload["metadata"]["name"]:
                return at(scaler, "spec", "minReplicas", default=1)
        return at(workload, "spec", "replicas", default=1)


def title(document):
    return f"{document['kind']}/{document['metadata']['name']}"


def template(workload):
    """What its pods are made from. A CronJob makes Jobs first."""
    spec = workload["spec"]
    return (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]


def pod(workload):
    return template(workload)["spec"]


def pod_labels(workload):
    return at(template(workload), "metadata", "labels", default={})


def containers(workload):
    return pod(workload).get("initContainers", []) + pod(workload)["containers"]


def named_ports(workload):
    """name -> number of the container ports."""
    return {p["name"]: p["containerPort"] for c in containers(workload) for p in c.get("ports", [])}


def port_of(workload, port):
    """The number that a port is, by number or by name, if a container has it."""
    ports = named_ports(workload)
    return ports.get(port) if isinstance(port, str) else next((n for n in ports.values() if n == port), None)


SIZES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
TIMES = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def quantity(text):
    """Bytes of a Kubernetes quantity."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text)).groups()
    return int(number) * SIZES[unit]


def seconds(text):
    """Seconds of `3500ms`, `1m 30s`, `4s`; without a unit they are seconds already."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", str(text))
    return sum(float(number) * TIMES[unit or "s"] for number, unit in parts)
