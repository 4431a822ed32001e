"""Rules about manifests of any kind: what belongs together fits together. Each yields what is wrong, in words."""

from manifests import JOBS, at, containers, named_ports, pod, pod_labels, port_of, quantity, title

CLUSTER_WIDE = {"Namespace"}
# Those that are applied beside an object of somebody else's, in its namespace.
ELSEWHERE = {"ClientTrafficPolicy"}


def names_and_namespaces(place):
    """Each object once, and all in the namespace that enforces pod security."""
    seen = set()
    for document in place.documents:
        key = (document["apiVersion"].split("/")[0], title(document))
        if key in seen:
            yield f"{title(document)} is there twice"
        seen.add(key)
        namespace = document["metadata"].get("namespace")
        if document["kind"] not in CLUSTER_WIDE | ELSEWHERE and namespace != place.namespace:
            yield f"{title(document)} is in namespace {namespace}, not {place.namespace}"
    labels = at(place.find("Namespace", place.namespace), "metadata", "labels", default={})
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"namespace {place.namespace} does not enforce pod security `restricted`"


def selectors(place):
    """Whoever selects pods finds the pods of one workload."""
    for workload in place.workloads():
        wanted = at(workload, "spec", "selector", "matchLabels", default={})
        if workload["kind"] in JOBS:
            wanted = pod_labels(workload)
        if not wanted or not wanted.items() <= pod_labels(workload).items():
            yield f"{title(workload)} selects {wanted}, its pods carry {pod_labels(workload)}"
        if len(place.selected(wanted)) > 1:
            yield f"{title(workload)} selects the pods of others too: {wanted}"
        for spread in pod(workload).get("topologySpreadConstraints", []):
            labels = at(spread, "labelSelector", "matchLabels", default={})
            if not labels or not labels.items() <= pod_labels(workload).items():
                yield f"{title(workload)} spreads pods with {labels}, not its own"
        service = at(workload, "spec", "serviceName")
        if service and not place.find("Service", service):
            yield f"{title(workload)} names Service {service}, which nobody makes"
    where = {
        "Service": ("spec", "selector"),
        "PodDisruptionBudget": ("spec", "selector", "matchLabels"),
        "NetworkPolicy": ("spec", "podSelector", "matchLabels"),
        "PodMonitor": ("spec", "selector", "matchLabels"),
    }
    for document in place.of_kind(*where):
        labels = at(document, *where[document["kind"]], default={})
        found = [title(w) for w in place.selected(labels)]
        if len(found) != 1:
            yield f"{title(document)} selects {labels}: pods of {found or 'nobody'}, not of one workload"


def references(place):
    """ConfigMaps, Secrets, service accounts, volumes and scale targets that are named exist."""
    for workload in place.workloads():
        spec, who = pod(workload), title(workload)
        volumes = {v["name"] for v in spec.get("volumes", [])}
        claims = {c["metadata"]["name"] for c in at(workload, "spec", "volumeClaimTemplates", default=[])}
        for volume in spec.get("volumes", []):
            wanted = {"configMap": ("ConfigMap", "name"), "secret": ("Secret", "secretName")}
            for source, (kind, field) in wanted.items():
                if source not in volume:
                    continue
                keys = place.keys(kind, volume[source][field])
                if keys is None:
                    yield f"{who}: {kind} {volume[source][field]} is made by nobody"
                for item in volume[source].get("items", []):
                    if item["key"] not in (keys or set()):
                        yield f"{who}: {kind} {volume[source][field]} has no key {item['key']}"
        for container in containers(workload):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes | claims:
                    yield f"{who}: volume {mount['name']} is mounted, and there is none"
            for variable in container.get("env", []):
                for source, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                    named = at(variable, "valueFrom", source)
                    if named and named["key"] not in (place.keys(kind, named["name"]) or ()):
                        yield f"{who}: {variable['name']} comes from {kind} {named['name']}, which lacks {named['key']}"
        account = spec.get("serviceAccountName")
        if account and not place.find("ServiceAccount", account):
            yield f"{who}: ServiceAccount {account} is made by nobody"
    for scaler in place.of_kind("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if not place.find(target["kind"], target["name"]):
            yield f"{title(scaler)}: {target['kind']} {target['name']} is made by nobody"


def ports(place):
    """Whoever names a port finds it: Services, ingresses, probes, monitors."""
    for service in place.of_kind("Service"):
        for workload in place.selected(at(service, "spec", "selector", default={})):
            for port in service["spec"].get("ports", []):
                if port_of(workload, port.get("targetPort", port["port"])) is None:
                    yield f"{title(service)}: port {port.get('targetPort')} is none of {title(workload)}'s"
    for ingress in place.of_kind("Ingress"):
        for rule in ingress["spec"].get("rules", []):
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                yield from service_port(place, title(ingress), backend["name"], backend["port"])
        for entry in at(ingress, "spec", "tls", default=[]):
            if not {"tls.crt", "tls.key"} <= (place.keys("Secret", entry["secretName"]) or set()):
                yield f"{title(ingress)}: Secret {entry['secretName']} is made by nobody"
    for route in place.of_kind("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield from service_port(place, title(route), backend["name"], {"number": backend["port"]})
    for monitor in place.of_kind("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for workload in place.selected(monitor["spec"]["selector"]["matchLabels"]):
                if endpoint["port"] not in named_ports(workload):
                    yield f"{title(monitor)}: {title(workload)} has no port named {endpoint['port']}"
    for workload in place.workloads():
        for container in containers(workload):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = at(container, probe, "httpGet", "port")
                if port is not None and port_of(workload, port) is None:
                    yield f"{title(workload)}: {probe} asks port {port}, which is none of its own"
            if "readinessProbe" not in container and workload["kind"] not in JOBS:
                yield f"{title(workload)}: container {container['name']} has no readinessProbe"


def service_port(place, who, name, port):
    service = place.find("Service", name)
    if service is None:
        yield f"{who}: Service {name} is made by nobody"
    elif not any(p.get("name") == port.get("name") or p["port"] == port.get("number") for p in service["spec"].get("ports", [])):
        yield f"{who}: Service {name} has no port {port}"


def security(place):
    """Pod security `restricted`, and what it does not ask for: a read-only root and no token."""
    for workload in place.workloads():
        spec, who = pod(workload), title(workload)
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{who} mounts a token of the API"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{who} shares the node's namespaces"
        if any("hostPath" in volume for volume in spec.get("volumes", [])):
            yield f"{who} mounts the node's files"
        for container in containers(workload):
            pod_wide, own = spec.get("securityContext", {}), container.get("securityContext", {})
            both = pod_wide | own
            where = f"{who}, container {container['name']}"
            if both.get("runAsNonRoot") is not True or not both.get("runAsUser"):
                yield f"{where} may run as root"
            if at(both, "seccompProfile", "type") != "RuntimeDefault":
                yield f"{where}: seccompProfile is not RuntimeDefault"
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{where} may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where} can write to its root"
            if at(own, "capabilities", "drop") != ["ALL"] or at(own, "capabilities", "add"):
                yield f"{where} keeps capabilities"


def resources(place):
    """Requests that the scheduler can count on, a limit of memory, an image that says which."""
    for workload in place.workloads():
        for container in containers(workload):
            where = f"{title(workload)}, container {container['name']}"
            asked = at(container, "resources", "requests", default={})
            limit = at(container, "resources", "limits", "memory")
            if "cpu" not in asked or "memory" not in asked or limit is None:
                yield f"{where}: resources lack requests of cpu or memory, or a limit of memory"
            elif quantity(asked["memory"]) > quantity(limit):
                yield f"{where}: asks for {asked['memory']} of memory, may take {limit}"
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if not name or tag in ("", "latest"):
                yield f"{where}: image {container['image']} does not say which version; name it in images:"


def disruptions(place):
    """Somebody always answers: rollouts, drained nodes, the autoscaler's lowest point."""
    for workload in place.of_kind("Deployment"):
        who, replicas = title(workload), place.replicas(workload)
        rolling = at(workload, "spec", "strategy", "rollingUpdate", default={})
        if at(workload, "spec", "strategy", "type") != "RollingUpdate" or rolling.get("maxUnavailable") != 0:
            yield f"{who}: a rollout takes pods away before new ones are there (maxUnavailable is not 0)"
        if replicas < 2:
            yield f"{who}: {replicas} replica at least; two are the minimum"
        budgets = [
            b for b in place.of_kind("PodDisruptionBudget")
            if workload in place.selected(at(b, "spec", "selector", "matchLabels", default={}))
        ]
        if len(budgets) != 1:
            yield f"{who}: {len(budgets)} disruption budgets, not one"
        for budget in budgets:
            least = at(budget, "spec", "minAvailable", default=0)
            if not isinstance(least, int) or least < 1:
                yield f"{title(budget)}: minAvailable is {least}: all pods may go at once"
            elif least >= replicas:
                yield f"{title(budget)}: minAvailable {least} of {replicas} replicas: no node can be drained"
        if not pod(workload).get("topologySpreadConstraints"):
            yield f"{who}: its pods may all be on one node"
    for scaler in place.of_kind("HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        workload = place.find(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        if spec.get("minReplicas", 1) > spec["maxReplicas"]:
            yield f"{title(scaler)}: minReplicas is above maxReplicas"
        if "replicas" in at(workload, "spec", default={}):
            yield f"{title(scaler)}: {title(workload)} sets replicas too: each apply would undo the scaling"
        for metric in spec["metrics"]:
            if at(metric, "resource", "name") != "cpu":
                yield f"{title(scaler)}: scales on something else than cpu: {metric}"


RULES = [names_and_namespaces, selectors, references, ports, security, resources, disruptions]
