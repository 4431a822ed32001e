"""Rules about hookgate itself: its configuration, its two addresses, its way out, and the ingress before it."""

import re
import tomllib

from manifests import ROOT, at, containers, pod, pod_labels, port_of, quantity, seconds, title

# What hookgate may take after its deadline: settling, dead letters, connections (2 s each), and one to spare.
RESERVE = 8
# What the process takes besides buffered bodies: the fault tests hold it to 64 MiB; as much again is room.
BESIDES = 128 * 2**20
# EspoCRM gives up then.
SENDER = 10
# hookgate's version; images are named after it.
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def proxy(place):
    return place.find("Deployment", "hookgate")


def configuration(place, hookgate):
    """`hookgate check` takes the very files and arguments of the container."""
    workload = proxy(place)
    effective, complaint = hookgate.check(place, workload)
    if complaint:
        yield f"hookgate check refuses the configuration: {complaint}"
    if containers(workload)[0].get("args"):
        yield "hookgate has arguments: its commands in `kubectl exec` would not know them; name the files in HOOKGATE_CONFIG"
    if any("valueFrom" in v or "__PASSWORD" in v["name"] for v in containers(workload)[0].get("env", [])):
        yield "a secret comes as a variable of the environment; mount it as a file"
    for config in place.of_kind("ConfigMap"):
        for key, text in config.get("data", {}).items():
            if re.search(r"://[^/\s\"]*:[^/\s\"@]+@", text):
                yield f"{title(config)}: {key} holds a password"
    if containers(workload)[0]["image"].rpartition(":")[2] != VERSION:
        yield f"image {containers(workload)[0]['image']} is not version {VERSION} of Cargo.toml"


def addresses(place, hookgate):
    """The ports are those hookgate listens on, the probes' paths exist, and the admin address is in no Service."""
    workload = proxy(place)
    effective, _ = hookgate.check(place, workload)
    for name, section in (("http", "server"), ("admin", "admin")) if effective else ():
        host, _, number = effective[section]["listen"].rpartition(":")
        if port_of(workload, name) != int(number):
            yield f"port {name} is {port_of(workload, name)}, hookgate listens on {number}"
        if host not in ("0.0.0.0", "[::]"):
            yield f"{section}.listen is {host}: nobody outside the pod gets there"
    container = containers(workload)[0]
    wanted = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for probe, path in wanted.items():
        asked = at(container, probe, "httpGet", default={})
        if asked.get("path") != path:
            yield f"{probe} asks {asked.get('path')}, not {path}"
        elif not hookgate.has_path(path):
            yield f"{probe}: hookgate has no {path}"
        if asked.get("port") != "admin":
            yield f"{probe} asks port {asked.get('port')}, not admin"
    admin = port_of(workload, "admin")
    for service in place.of_kind("Service"):
        for port in service["spec"].get("ports", []) if workload in place.selected(service["spec"]["selector"]) else ():
            if port_of(workload, port.get("targetPort", port["port"])) == admin:
                yield f"{title(service)} has the admin port: it could get behind an ingress"
    for monitor in place.of_kind("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if (endpoint["port"], endpoint.get("path", "/metrics")) != ("admin", "/metrics"):
                yield f"{title(monitor)} scrapes {endpoint}, not /metrics of admin"
            elif not hookgate.has_path("/metrics"):
                yield f"{title(monitor)}: hookgate has no /metrics"


def leaving(place, hookgate):
    """SIGTERM leaves room for everything, and nothing delays it."""
    workload = proxy(place)
    effective, _ = hookgate.check(place, workload)
    if effective:
        needed = seconds(effective["server"]["drain_delay"]) + seconds(effective["server"]["request_deadline"]) + RESERVE
        grace = pod(workload).get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            yield f"terminationGracePeriodSeconds is {grace}, drain delay, deadline and {RESERVE} s are {needed:g}"
        if seconds(effective["server"]["drain_delay"]) < 5:
            yield "server.drain_delay is below 5 s: endpoints take that long to learn of it"
    if "preStop" in at(containers(workload)[0], "lifecycle", default={}):
        yield "a preStop takes from the grace time what the drain needs; hookgate accepts until the end by itself"
    for budget in place.of_kind("PodDisruptionBudget"):
        if workload in place.selected(budget["spec"]["selector"]["matchLabels"]) and budget["spec"]["minAvailable"] < 2:
            yield f"{title(budget)}: fewer than two replicas may be left"


def memory(place, hookgate):
    """The limit leaves room for all bodies and for the process."""
    workload = proxy(place)
    effective, _ = hookgate.check(place, workload)
    limit = at(containers(workload)[0], "resources", "limits", "memory")
    if effective and limit and quantity(limit) < effective["server"]["max_buffered_bytes"] + BESIDES:
        yield f"memory limit {limit} is below max_buffered_bytes and {BESIDES >> 20} MiB for the process"


def stores(place, hookgate):
    """What the overlay brings along as stores forgets nothing, and the names hookgate has for them exist."""
    effective, _ = hookgate.check(place, proxy(place))
    for host, port in targets(effective) if effective else ():
        service = place.find("Service", host)
        if "." not in host and (service is None or port not in [p["port"] for p in service["spec"]["ports"]]):
            yield f"hookgate looks for {host}:{port}, which is no Service here"
    redis, nats = place.find("StatefulSet", "redis"), place.find("StatefulSet", "nats")
    if redis:
        arguments = containers(redis)[0]["args"]
        said = dict(zip(arguments[::2], arguments[1::2]))
        # Without a password protected mode lets in nobody but Redis' own pod; Docker Hub's image alone is built without.
        for key, value in (("--appendonly", "yes"), ("--maxmemory-policy", "noeviction"), ("--protected-mode", "no")):
            if said.get(key) != value:
                yield f"redis: {key} is {said.get(key)}, not {value}"
        limit = quantity(containers(redis)[0]["resources"]["limits"]["memory"])
        if int(said.get("--maxmemory", "0mb").removesuffix("mb")) * 2**20 * 2 > limit or "--maxmemory" not in said:
            yield "redis: --maxmemory is above half of its limit: rewriting the file could get it killed"
    if nats:
        yield from syncing(place, nats)
    for store in filter(None, (redis, nats)):
        mounted = {m["mountPath"] for m in containers(store)[0].get("volumeMounts", [])}
        claims = {c["metadata"]["name"] for c in at(store, "spec", "volumeClaimTemplates", default=[])}
        if "/data" not in mounted or not claims & {m["name"] for m in containers(store)[0]["volumeMounts"]}:
            yield f"{title(store)} keeps its data in no claimed volume"


def syncing(place, nats):
    """NATS stores on its volume and syncs before it acknowledges, by the file that it reads."""
    flag, _, file = " ".join(containers(nats)[0]["args"]).partition(" ")
    folder, _, name = file.rpartition("/")
    volumes = [m["name"] for m in containers(nats)[0].get("volumeMounts", []) if m["mountPath"] == folder]
    maps = [v["configMap"]["name"] for v in pod(nats).get("volumes", []) if v["name"] in volumes and "configMap" in v]
    data = at(place.find("ConfigMap", maps[0]), "data", default={}) if maps else {}
    if flag != "--config" or name not in data:
        yield f"nats: reads no file of a ConfigMap: {containers(nats)[0]['args']}"
        return
    block = re.search(r"^jetstream \{(.*?)^\}", data[name], re.MULTILINE | re.DOTALL)
    said = dict(line.split(": ", 1) for line in map(str.strip, block[1].splitlines()) if ": " in line) if block else {}
    # A server that loses power would lose what it acknowledged.
    for key, value in (("store_dir", "/data"), ("sync_interval", "always")):
        if said.get(key) != value:
            yield f"nats: jetstream {key} is {said.get(key)}, not {value}"


def replicas(place, hookgate):
    """A new replica can ask all those that are ready, and nobody else can get at what answers."""
    workload = proxy(place)
    effective, _ = hookgate.check(place, workload)
    if effective is None:
        return
    host, _, port = effective["admin"].get("replicas", "").rpartition(":")
    service = place.find("Service", host)
    if service is None:
        yield f"admin.replicas is {host or 'not set'}, which is no Service here: a rollout with a mistyped store would go on"
        return
    spec = service["spec"]
    if spec.get("clusterIP") != "None" or workload not in place.selected(spec.get("selector", {})):
        yield f"{title(service)} does not resolve to each of hookgate's pods (clusterIP: None, and their labels)"
    if spec.get("publishNotReadyAddresses"):
        yield f"{title(service)} also names replicas that are not ready"
    if int(port) != port_of(workload, "admin"):
        yield f"admin.replicas asks port {port}, which is not admin"
    for policy in place.of_kind("NetworkPolicy"):
        if workload not in place.selected(at(policy, "spec", "podSelector", "matchLabels", default={})):
            continue
        for way, peers in (("ingress", "from"), ("egress", "to")):
            allowed = [
                at(peer, "podSelector", "matchLabels", default={}) for rule in policy["spec"][way]
                if int(port) in [p["port"] for p in rule.get("ports", [])] for peer in rule.get(peers, [])
            ]
            if not any(labels and labels.items() <= pod_labels(workload).items() for labels in allowed):
                yield f"network policy: replicas can't ask each other ({way})"


def targets(effective):
    """(host, port) of every store in the configuration, and of the collector of traces."""
    collector = [url] if (url := at(effective, "tracing", "otlp_endpoint")) else []
    for url in [effective["redis"]["url"], *effective["nats"]["url"].split(","), *collector]:
        address = url.split("://")[1].rpartition("@")[2].split("/")[0]
        host, _, port = address.partition(":")
        yield host, int(port)


def network(place, hookgate):
    """The policy lets through what is used, and nothing else."""
    workload = proxy(place)
    effective, _ = hookgate.check(place, workload)
    policies = [
        p for p in place.of_kind("NetworkPolicy")
        if workload in place.selected(at(p, "spec", "podSelector", "matchLabels", default={}))
    ]
    if len(policies) != 1 or sorted(policies[0]["spec"].get("policyTypes", [])) != ["Egress", "Ingress"]:
        yield f"{len(policies)} network policies for hookgate, or not for both ways"
        return
    spec = policies[0]["spec"]
    inside = [(port["port"], rule.get("from")) for rule in spec["ingress"] for port in rule.get("ports", [{"port": "*"}])]
    wanted = {port_of(workload, "http"), port_of(workload, "admin")}
    if {port for port, _ in inside} != wanted:
        yield f"network policy lets in ports {sorted(str(p) for p, _ in inside)}, hookgate serves {sorted(wanted)}"
    for port, whom in inside:
        if not whom or any(peer == {} or at(peer, "namespaceSelector") == {} for peer in whom):
            yield f"network policy lets anybody in at {port}"
    outside = [
        (f"{port['port']}/{port.get('protocol', 'TCP')}", rule.get("to"))
        for rule in spec["egress"] for port in rule.get("ports", [{"port": "*"}])
    ]
    asked = at(effective, "admin", "replicas", default="") if effective else ""
    others = {f"{asked.rpartition(':')[2]}/TCP"} if asked else set()
    used = {"53/UDP", "53/TCP"} | others | {f"{port}/TCP" for _, port in targets(effective)} if effective else None
    if used and {port for port, _ in outside} != used:
        yield f"network policy lets out {sorted(port for port, _ in outside)}, hookgate needs {sorted(used)}"
    for port, whom in outside:
        if not whom:
            yield f"network policy lets out {port} to anybody"
    for host, port in targets(effective) if effective else ():
        service = place.find("Service", host)
        if service is None:
            continue
        for store in place.selected(service["spec"]["selector"]):
            peers = [peer for name, whom in outside if name == f"{port}/TCP" for peer in whom or ()]
            labels = [at(peer, "podSelector", "matchLabels", default={}) for peer in peers]
            if not any(wanted and wanted.items() <= pod_labels(store).items() for wanted in labels):
                yield f"network policy does not let hookgate reach {host}:{port}"


RULES = [configuration, addresses, leaving, memory, stores, replicas, network]
