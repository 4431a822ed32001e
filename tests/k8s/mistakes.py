"""Planted mistakes: each a change of the rendered manifests that somebody could make, and words of the complaint that
has to follow. A mistake that nothing catches is a hole in the rules."""

from dataclasses import dataclass

from manifests import Place, containers, pod


@dataclass
class Mistake:
    """`place` is where it is planted, `plant` changes its documents, `caught` is part of the complaint."""

    name: str
    place: str
    plant: callable
    caught: str


def setting(kind, name, path, value):
    """Sets what a dotted path leads to; numbers are indexes, `-` appends."""

    def plant(place: Place):
        target, *steps, last = [place.find(kind, name), *path.split(".")]
        for step in steps:
            target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
        if last == "-":
            target.append(value)
        elif isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value

    return plant


def without(kind, name, path=""):
    """Takes away what a dotted path leads to, or the whole object."""

    def plant(place: Place):
        document = place.find(kind, name)
        if not path:
            place.documents.remove(document)
            return
        *steps, last = path.split(".")
        for step in steps:
            document = document[int(step)] if isinstance(document, list) else document[step]
        document.pop(int(last) if isinstance(document, list) else last)

    return plant


def config(key, old, new):
    """Replaces words in hookgate's ConfigMap."""

    def plant(place: Place):
        volume = next(v for v in pod(place.find("Deployment", "hookgate"))["volumes"] if v["name"] == "config")
        data = place.find("ConfigMap", volume["configMap"]["name"])["data"]
        assert old in data[key], f"{old!r} is not in {key}"
        data[key] = data[key].replace(old, new)

    return plant


def reference(old, new):
    """Replaces words in nginx's reference file."""

    def plant(place: Place):
        data = next(c["data"] for c in place.of_kind("ConfigMap") if "hookgate.conf" in c["data"])
        assert old in data["hookgate.conf"], f"{old!r} is not in hookgate.conf"
        data["hookgate.conf"] = data["hookgate.conf"].replace(old, new)

    return plant


def environment(name, value):
    return setting("Deployment", "hookgate", "spec.template.spec.containers.0.env.-", {"name": name, "value": value})


def file(old, new):
    """Another file of the configuration."""

    def plant(place: Place):
        [variable] = containers(place.find("Deployment", "hookgate"))[0]["env"]
        assert old in variable["value"], f"{old!r} is not in {variable}"
        variable["value"] = variable["value"].replace(old, new)

    return plant


HOOKGATE = ("Deployment", "hookgate")
ROUTE = ("HTTPRoute", "hookgate")
POLICY = ("BackendTrafficPolicy", "hookgate")
CLIENTS = ("ClientTrafficPolicy", "hookgate")
STATUSES = "spec.responseOverride.0.match.statusCodes"
POD = "spec.template.spec"
BOX = f"{POD}.containers.0"
ALL = "production with all it offers"
RECONCILE, METRICS = ("CronJob", "hookgate-reconcile"), ("CronJob", "hookgate-espocrm-metrics")
JOB = "spec.jobTemplate.spec.template.spec"
ANNOTATION = "nginx.ingress.kubernetes.io/"


def annotation(name, value):
    def plant(place: Place):
        place.find("Ingress", "hookgate")["metadata"]["annotations"][ANNOTATION + name] = value

    return plant


def lets_in(namespace):
    """The network policy names another namespace for the webhooks' way in."""
    return setting("NetworkPolicy", "hookgate", "spec.ingress.0.from", [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}])


MISTAKES = [
    # Written wrongly.
    Mistake("a misspelt field", "dev", setting(*HOOKGATE, f"{BOX}.readynessProbe", {}), "schema"),
    Mistake("a number as text", "dev", setting("Service", "hookgate", "spec.ports.0.port", "80"), "schema"),
    Mistake("an API version that is gone", "dev", setting("PodDisruptionBudget", "hookgate", "apiVersion", "policy/v1beta1"), "schema"),
    # Names that lead nowhere.
    Mistake("the Service selects nobody", "dev", setting("Service", "hookgate", "spec.selector", {"app": "hookgate"}), "selects"),
    Mistake("the Deployment selects others' pods", "dev", setting(*HOOKGATE, "spec.selector.matchLabels", {"app.kubernetes.io/name": "nats"}), "selects"),
    Mistake("the budget selects nobody", "dev", setting("PodDisruptionBudget", "hookgate", "spec.selector.matchLabels", {"app": "x"}), "selects"),
    Mistake("pods are spread by another's label", "dev", setting(*HOOKGATE, f"{POD}.topologySpreadConstraints.0.labelSelector.matchLabels", {"app": "x"}), "spreads"),
    Mistake("a ConfigMap under another name", "dev", setting(*HOOKGATE, f"{POD}.volumes.0.configMap.name", "hookgate-config"), "is made by nobody"),
    Mistake("a Secret under another name", "production", setting(*HOOKGATE, f"{POD}.volumes.1.secret.secretName", "hookgate"), "is made by nobody"),
    Mistake("a mount without a volume", "dev", setting(*HOOKGATE, f"{BOX}.volumeMounts.0.name", "configuration"), "there is none"),
    Mistake("no ServiceAccount", "dev", without("ServiceAccount", "hookgate"), "ServiceAccount"),
    Mistake("the autoscaler scales nobody", "dev", setting("HorizontalPodAutoscaler", "hookgate", "spec.scaleTargetRef.name", "proxy"), "is made by nobody"),
    Mistake("the Service leads to no port", "dev", setting("Service", "hookgate", "spec.ports.0.targetPort", "web"), "is none of"),
    Mistake("the Ingress names no Service", "dev", setting("Ingress", "hookgate", "spec.rules.0.http.paths.0.backend.service.name", "gate"), "is made by nobody"),
    Mistake("the Ingress names no port", "dev", setting("Ingress", "hookgate", "spec.rules.0.http.paths.0.backend.service.port", {"number": 3000}), "has no port"),
    Mistake("another namespace", "dev", setting("Service", "redis", "metadata.namespace", "default"), "is in namespace"),
    # Probes.
    Mistake("a probe of a port that is not there", "dev", setting(*HOOKGATE, f"{BOX}.livenessProbe.httpGet.port", 9091), "none of its own"),
    Mistake("a probe of the webhooks' port", "dev", setting(*HOOKGATE, f"{BOX}.readinessProbe.httpGet.port", "http"), "not admin"),
    Mistake("liveness looks at the stores", "dev", setting(*HOOKGATE, f"{BOX}.livenessProbe.httpGet.path", "/readyz"), "not /livez"),
    Mistake("a probe of a path that is not there", "dev", setting(*HOOKGATE, f"{BOX}.readinessProbe.httpGet.path", "/healthz"), "not /readyz"),
    Mistake("no readiness", "dev", without(*HOOKGATE, f"{BOX}.readinessProbe"), "readinessProbe"),
    Mistake("the port is renumbered", "dev", setting(*HOOKGATE, f"{BOX}.ports.0.containerPort", 8080), "hookgate listens on"),
    Mistake("the admin port in the Service", "dev", setting("Service", "hookgate", "spec.ports.-", {"name": "admin", "port": 9090, "targetPort": "admin"}), "admin port"),
    # Somebody always answers.
    Mistake("a rollout with a gap", "dev", setting(*HOOKGATE, "spec.strategy.rollingUpdate.maxUnavailable", 1), "maxUnavailable"),
    Mistake("all pods replaced at once", "dev", setting(*HOOKGATE, "spec.strategy", {"type": "Recreate"}), "maxUnavailable"),
    Mistake("no budget", "dev", without("PodDisruptionBudget", "hookgate"), "disruption budgets"),
    Mistake("a budget that lets one be left", "dev", setting("PodDisruptionBudget", "hookgate", "spec.minAvailable", 1), "fewer than two"),
    Mistake("a budget that lets no node be drained", "dev", setting("PodDisruptionBudget", "hookgate", "spec.minAvailable", 3), "no node can be drained"),
    Mistake("a minimum of one", "dev", setting("HorizontalPodAutoscaler", "hookgate", "spec.minReplicas", 1), "two are the minimum"),
    Mistake("replicas beside the autoscaler", "dev", setting(*HOOKGATE, "spec.replicas", 3), "undo the scaling"),
    Mistake("scaled by memory", "dev", setting("HorizontalPodAutoscaler", "hookgate", "spec.metrics.0.resource.name", "memory"), "something else than cpu"),
    Mistake("all on one node", "dev", without(*HOOKGATE, f"{POD}.topologySpreadConstraints"), "on one node"),
    Mistake("killed while draining", "dev", setting(*HOOKGATE, f"{POD}.terminationGracePeriodSeconds", 10), "terminationGracePeriodSeconds"),
    Mistake("a longer drain than the grace time", "dev", environment("HOOKGATE__SERVER__DRAIN_DELAY", "20s"), "terminationGracePeriodSeconds"),
    Mistake("no drain", "dev", environment("HOOKGATE__SERVER__DRAIN_DELAY", "0s"), "below 5 s"),
    Mistake("a preStop", "dev", setting(*HOOKGATE, f"{BOX}.lifecycle", {"preStop": {"sleep": {"seconds": 20}}}), "preStop"),
    # Security and resources.
    Mistake("root", "dev", setting(*HOOKGATE, f"{POD}.securityContext.runAsNonRoot", False), "as root"),
    Mistake("a root that can be written to", "dev", without(*HOOKGATE, f"{BOX}.securityContext.readOnlyRootFilesystem"), "write to its root"),
    Mistake("capabilities", "dev", without("StatefulSet", "nats", f"{BOX}.securityContext.capabilities"), "capabilities"),
    Mistake("no seccomp profile", "dev", without("StatefulSet", "redis", f"{POD}.securityContext.seccompProfile"), "seccompProfile"),
    Mistake("a token of the API", "dev", without(*HOOKGATE, f"{POD}.automountServiceAccountToken"), "token"),
    Mistake("pod security not enforced", "dev", without("Namespace", "hookgate-dev", "metadata.labels"), "does not enforce"),
    Mistake("too little memory", "dev", setting(*HOOKGATE, f"{BOX}.resources", {"requests": {"cpu": "250m", "memory": "128Mi"}, "limits": {"memory": "192Mi"}}), "memory limit"),
    Mistake("more buffered than memory", "dev", environment("HOOKGATE__SERVER__MAX_BUFFERED_BYTES", "1073741824"), "memory limit"),
    Mistake("no limit of memory", "dev", without(*HOOKGATE, f"{BOX}.resources.limits"), "resources lack"),
    Mistake("an image without a version", "dev", setting(*HOOKGATE, f"{BOX}.image", "hookgate"), "which version"),
    Mistake("an image of another version", "dev", setting(*HOOKGATE, f"{BOX}.image", "hookgate:0.0.9"), "of Cargo.toml"),
    # Configuration.
    Mistake("a key that is not there", "dev", config("site.toml", "[redis]", "[redis]\nurls = 1"), "hookgate check refuses"),
    Mistake("a wrong type", "dev", config("kubernetes.toml", "worker_threads = 2", 'worker_threads = "two"'), "hookgate check refuses"),
    Mistake("a variable that is not there", "dev", environment("HOOKGATE__REDIS__URI", "redis://redis"), "hookgate check refuses"),
    Mistake("a file that is not in the ConfigMap", "dev", file("/etc/hookgate/site.toml", "/etc/hookgate/dev.toml"), "hookgate check refuses"),
    Mistake("files that kubectl exec knows nothing of", "dev", setting(*HOOKGATE, f"{BOX}.args", ["--config=/etc/hookgate/default.toml"]), "kubectl exec"),
    Mistake("a secret that is not mounted", "production", config("site.toml", "hookgate/nats-password", "nats-password"), "hookgate check refuses"),
    Mistake("a kind of Redis that nobody knows", "production", config("site.toml", "redis://redis.", "redis+socket://redis."), "hookgate check refuses"),
    Mistake("a password in the ConfigMap", "dev", config("site.toml", "redis://redis", "redis://hookgate:secret@redis"), "holds a password"),
    Mistake("listening on loopback", "dev", environment("HOOKGATE__ADMIN__LISTEN", "127.0.0.1:9090"), "nobody outside"),
    # Stores.
    Mistake("Redis under another name", "dev", config("site.toml", "//redis:", "//cache:"), "no Service here"),
    Mistake("Redis evicts", "dev", setting("StatefulSet", "redis", f"{BOX}.args.11", "allkeys-lru"), "noeviction"),
    Mistake("Redis without a file", "dev", setting("StatefulSet", "redis", f"{BOX}.args.3", "no"), "--appendonly"),
    Mistake("Redis on the pod's own disk", "dev", without("StatefulSet", "redis", "spec.volumeClaimTemplates"), "no claimed volume"),
    Mistake("Redis in protected mode", "dev", setting("StatefulSet", "redis", f"{BOX}.args.13", "yes"), "protected-mode"),
    Mistake("NATS without its configuration", "dev", setting("StatefulSet", "nats", f"{BOX}.args", ["--jetstream"]), "reads no file"),
    Mistake("NATS without JetStream", "dev", setting("ConfigMap", "nats", "data", {"nats.conf": "port: 4222\n"}), "store_dir is None"),
    Mistake("NATS acknowledges before it syncs", "dev", setting("ConfigMap", "nats", "data", {"nats.conf": "jetstream {\n  store_dir: /data\n}\n"}), "sync_interval is None"),
    Mistake("NATS stores on no volume", "dev", setting("ConfigMap", "nats", "data", {"nats.conf": "jetstream {\n  store_dir: /tmp\n  sync_interval: always\n}\n"}), "store_dir is /tmp"),
    # Other replicas.
    Mistake("no name for the replicas", "dev", without("Service", "hookgate-replicas"), "a rollout with a mistyped store"),
    Mistake("replicas that nobody asks", "dev", config("kubernetes.toml", "replicas = \"hookgate-replicas:9090\"", ""), "a rollout with a mistyped store"),
    Mistake("one address for the replicas", "dev", without("Service", "hookgate-replicas", "spec.clusterIP"), "each of hookgate's pods"),
    Mistake("replicas that are not ready are asked", "dev", setting("Service", "hookgate-replicas", "spec.publishNotReadyAddresses", True), "not ready"),
    Mistake("replicas asked at the webhooks' port", "dev", config("kubernetes.toml", "replicas:9090", "replicas:3000"), "which is not admin"),
    Mistake("replicas may not be asked", "dev", without("NetworkPolicy", "hookgate", "spec.ingress.1.from.1"), "can't ask each other (ingress)"),
    Mistake("replicas may not ask", "dev", setting("NetworkPolicy", "hookgate", "spec.egress.3.to.0.podSelector.matchLabels", {"app": "x"}), "can't ask each other (egress)"),
    # Network.
    Mistake("no way to DNS", "dev", without("NetworkPolicy", "hookgate", "spec.egress.0"), "lets out"),
    Mistake("DNS over UDP alone", "dev", without("NetworkPolicy", "hookgate", "spec.egress.0.ports.1"), "lets out"),
    Mistake("no way to Redis", "dev", setting("NetworkPolicy", "hookgate", "spec.egress.1.ports.0.port", 6380), "lets out"),
    Mistake("the way to somebody else", "dev", setting("NetworkPolicy", "hookgate", "spec.egress.2.to.0.podSelector.matchLabels", {"app.kubernetes.io/name": "redis"}), "does not let hookgate reach"),
    Mistake("no way to the collector of traces", "dev", environment("HOOKGATE__TRACING__OTLP_ENDPOINT", "http://otel.monitoring.svc:4318"), "lets out"),
    Mistake("out to anywhere", "dev", without("NetworkPolicy", "hookgate", "spec.egress.2.to"), "to anybody"),
    Mistake("anybody comes in", "dev", without("NetworkPolicy", "hookgate", "spec.ingress.0.from"), "anybody in"),
    Mistake("one more port", "dev", setting("NetworkPolicy", "hookgate", "spec.ingress.1.ports.-", {"port": 22}), "lets in"),
    Mistake("one way only", "dev", setting("NetworkPolicy", "hookgate", "spec.policyTypes", ["Ingress"]), "both ways"),
    # Ingress.
    Mistake("no ingress settings", "ingress-nginx", setting("Ingress", "hookgate", "metadata.annotations", {}), "kinds of ingress settings"),
    Mistake("one try", "ingress-nginx", annotation("proxy-next-upstream-tries", "1"), "only one replica"),
    Mistake("POST is not tried again", "ingress-nginx", annotation("proxy-next-upstream", "error timeout"), "does not repeat POST"),
    Mistake("a try longer than the sender waits", "ingress-nginx", annotation("proxy-read-timeout", "60"), "the sender's"),
    Mistake("a try shorter than the deadline", "ingress-nginx", annotation("proxy-read-timeout", "3"), "request_deadline"),
    Mistake("the default deadline behind an ingress", "production", config("kubernetes.toml", '"3.5s"', '"8s"'), "request_deadline"),
    Mistake("504 reaches the sender", "ingress-nginx", annotation("custom-http-errors", "502"), "gives up"),
    Mistake("nobody says 503", "ingress-nginx", annotation("default-backend", "nobody"), "no such Service"),
    Mistake("http is redirected", "ingress-nginx", annotation("ssl-redirect", "true"), "EspoCRM takes as delivered"),
    Mistake("small bodies only", "ingress-nginx", annotation("proxy-body-size", "1m"), "takes bodies"),
    Mistake("no certificate", "production with ingress-nginx", setting("Ingress", "hookgate", "spec.tls.0.secretName", "hooks"), "is made by nobody"),
    Mistake("nginx: one failure takes a server out", "nginx", reference(" max_fails=0", ""), "max_fails"),
    Mistake("nginx: 502 passes", "nginx", reference("501 502 504", "504"), "gives up"),
    Mistake("nginx: POST is not tried again", "nginx", reference(" non_idempotent", ""), "does not repeat POST"),
    Mistake("nginx: a longer try", "nginx", reference("proxy_read_timeout 4s", "proxy_read_timeout 60s"), "the sender's"),
    Mistake("traefik: POST is not tried again", "traefik", setting("Middleware", "hookgate-two-tries", "spec.retry.retryNonIdempotentMethod", False), "not tried again"),
    Mistake("traefik: 504 passes", "traefik", without("Middleware", "hookgate-again", "spec.errors.statusRewrites.504"), "gives up"),
    Mistake("traefik: no status that is tried again", "traefik", without("Middleware", "hookgate-two-tries", "spec.retry.status"), "has no effect"),
    Mistake("ingress-nginx is locked out", "ingress-nginx", lets_in("ingress"), "locks the ingress out"),
    Mistake("traefik is locked out", "traefik", lets_in("ingress-nginx"), "locks the ingress out"),
    Mistake("gateway: it is locked out", "gateway-api", lets_in("ingress"), "locks the ingress out"),
    Mistake("gateway: a retry, which the standard channel does not know", "gateway-api", setting(*ROUTE, "spec.rules.0.retry", {"attempts": 1, "codes": [502, 504]}), "schema: HTTPRoute/hookgate"),
    Mistake("gateway: time-outs, after which it says 504", "gateway-api", setting(*ROUTE, "spec.rules.0.timeouts", {"request": "9s", "backendRequest": "4s"}), "answers 504"),
    Mistake("gateway: a Service that is not there", "gateway-api", setting(*ROUTE, "spec.rules.0.backendRefs.0.name", "gate"), "is made by nobody"),
    Mistake("Envoy Gateway: it is locked out", "production", lets_in("gateways"), "locks the ingress out"),
    Mistake("Envoy Gateway: a retry in the route, which overrides the policy", "production", setting(*ROUTE, "spec.rules.0.retry", {"attempts": 1}), "schema: HTTPRoute/hookgate"),
    Mistake("Envoy Gateway: time-outs in the route", "production", setting(*ROUTE, "spec.rules.0.timeouts", {"request": "9s"}), "answers 504"),
    Mistake("Envoy Gateway: a field that it does not know", "production", setting(*POLICY, "spec.retry.perRetry.timeOut", "4s"), "schema: BackendTrafficPolicy/hookgate"),
    Mistake("Envoy Gateway: an API version that is not there", "production", setting(*POLICY, "apiVersion", "gateway.envoyproxy.io/v1"), "schema: BackendTrafficPolicy/hookgate"),
    Mistake("Envoy Gateway: the policy of another route", "production", setting(*POLICY, "spec.targetRefs.0.name", "proxy"), "not one"),
    Mistake("Envoy Gateway: 502 passes", "production", without(*POLICY, f"{STATUSES}.0"), "[502] reach the sender"),
    Mistake("Envoy Gateway: 504 passes", "production", without(*POLICY, f"{STATUSES}.1"), "[504] reach the sender"),
    Mistake("Envoy Gateway: 507 passes", "production", without(*POLICY, f"{STATUSES}.2"), "[507] reach the sender"),
    Mistake("Envoy Gateway: no status is replaced", "production", without(*POLICY, "spec.responseOverride"), "[502, 504, 507] reach the sender"),
    Mistake("Envoy Gateway: replaced by another final one", "production", setting(*POLICY, "spec.responseOverride.0.response.statusCode", 500), "reach the sender"),
    Mistake("Envoy Gateway: a try without a time-out", "production", without(*POLICY, "spec.retry.perRetry"), "no time-out of its own"),
    Mistake("Envoy Gateway: a longer try", "production", setting(*POLICY, "spec.retry.perRetry.timeout", "8s"), "the sender's"),
    Mistake("Envoy Gateway: one try", "production", setting(*POLICY, "spec.retry.numRetries", 0), "only one replica"),
    Mistake("Envoy Gateway: three tries, by default", "production", without(*POLICY, "spec.retry.numRetries"), "the sender's"),
    Mistake("Envoy Gateway: less time than two tries take", "production", setting(*POLICY, "spec.timeout.http.requestTimeout", "7s"), "requestTimeout"),
    Mistake("Envoy Gateway: no second try after a frozen pod", "production", without(*POLICY, "spec.retry.retryOn.triggers.2"), "no second try after ['reset']"),
    Mistake("Envoy Gateway: nothing beside the Gateway", "production", without(*CLIENTS), "one try"),
    Mistake("Envoy Gateway: no buffer limit", "production", without(*CLIENTS, "spec.connection"), "one try"),
    Mistake("Envoy Gateway: a buffer for small bodies only", "production", setting(*CLIENTS, "spec.connection.bufferLimit", "1Mi"), "takes bodies"),
    Mistake("Envoy Gateway: the body is handed on while it comes", "production", without(*POLICY, "spec.requestBuffer"), "holds it for ever"),
    Mistake("Envoy Gateway: whole bodies, if they are small", "production", setting(*POLICY, "spec.requestBuffer.limit", "16Mi"), "takes bodies"),
    Mistake("Envoy Gateway: the buffer of another Gateway", "production", setting(*CLIENTS, "spec.targetRefs.0.name", "private"), "one try"),
    Mistake("Envoy Gateway: the buffer in hookgate's namespace", "production", setting(*CLIENTS, "metadata.namespace", "hookgate"), "one try"),
    # Components.
    Mistake("the monitor selects nobody", "podmonitor", setting("PodMonitor", "hookgate", "spec.selector.matchLabels", {"app": "x"}), "selects"),
    Mistake("the monitor scrapes the webhooks", "podmonitor", setting("PodMonitor", "hookgate", "spec.podMetricsEndpoints.0.port", "http"), "not /metrics of admin"),
    Mistake("a field the operator does not know", "podmonitor", setting("PodMonitor", "hookgate", "spec.podMetricsEndpoints.0.intervall", "15s"), "unknown to the operator"),
    Mistake("the wrong key from the vault", "external-secret", setting("ExternalSecret", "hookgate-secrets", "spec.data.0.secretKey", "password"), "lacks"),
    Mistake("a Secret that nobody mounts", "external-secret", setting("ExternalSecret", "hookgate-secrets", "spec.target.name", "hookgate"), "nobody mounts"),
    # The CronJobs that ask EspoCRM.
    Mistake("a CronJob with a misspelt field", ALL, setting(*RECONCILE, "spec.concurencyPolicy", "Forbid"), "schema"),
    Mistake("reconcile as hookgate's own user", ALL, without(*RECONCILE, f"{JOB}.containers.0.env.1"), "may not read the stream"),
    Mistake("reconcile as hookgate's own user of NATS", ALL, without(*RECONCILE, f"{JOB}.containers.0.env.3"), "may not read the stream"),
    Mistake("reconcile without its password", ALL, setting(*RECONCILE, f"{JOB}.containers.0.env.2.value", "/run/secrets/hookgate-espocrm/password"), "hookgate check refuses"),
    Mistake("reconcile without the CRM", ALL, config("site.toml", 'url = "https://crm.example.com"', ""), "espocrm.url is not set"),
    Mistake("reconcile by an API user", ALL, config("site.toml", 'user = "hookgate"\npassword_file = "/run/secrets/hookgate-espocrm/espocrm-password"', 'api_key_file = "/run/secrets/hookgate-espocrm/espocrm-password"'), "for administrators"),
    Mistake("a password of the CRM that is not mounted", ALL, config("site.toml", "/run/secrets/hookgate-espocrm/espocrm-password", "/run/secrets/hookgate/espocrm-password"), "which is not mounted"),
    Mistake("no webhook of the CRM", ALL, config("site.toml", 'espocrm_event = "CBeteiligte.create"', ""), "no route has espocrm_event"),
    Mistake("the CRM's Secret under another name", ALL, setting(*RECONCILE, f"{JOB}.volumes.2.secret.secretName", "hookgate-crm"), "is made by nobody"),
    Mistake("the CRM's credentials where webhooks come in", ALL, setting(*HOOKGATE, f"{POD}.volumes.-", {"name": "espocrm", "secret": {"secretName": "hookgate-espocrm"}}), "mounts the credentials of the CRM"),
    Mistake("two runs at once", ALL, setting(*RECONCILE, "spec.concurrencyPolicy", "Allow"), "two runs at once"),
    Mistake("a run without an end", ALL, without(*METRICS, "spec.jobTemplate.spec.activeDeadlineSeconds"), "a run that hangs"),
    Mistake("a job that runs as root", ALL, setting(*METRICS, f"{JOB}.securityContext.runAsNonRoot", False), "as root"),
    Mistake("a job of another version", ALL, setting(*METRICS, f"{JOB}.containers.0.image", "hookgate:0.0.9"), "is not hookgate's"),
    Mistake("a job without a network policy", ALL, without("NetworkPolicy", "hookgate-reconcile"), "0 network policies"),
    Mistake("no way to the CRM", ALL, without("NetworkPolicy", "hookgate-espocrm-metrics", "spec.egress.1"), "it needs"),
    Mistake("no way to a CRM at another port", ALL, config("site.toml", "https://crm.example.com", "https://crm.example.com:8443"), "it needs"),
    Mistake("no way to the Pushgateway", ALL, setting(*METRICS, f"{JOB}.containers.0.args.3", "--push-to=http://pushgateway.monitoring.svc"), "it needs"),
    Mistake("the Pushgateway's port to anybody", ALL, without("NetworkPolicy", "hookgate-espocrm-metrics", "spec.egress.2.to"), "to anybody"),
    Mistake("reconcile is let out to another Redis than hookgate", ALL, setting("NetworkPolicy", "hookgate-reconcile", "spec.egress.1.to", [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "redis"}}}]), "hookgate's to"),
    Mistake("somebody comes into a job", ALL, setting("NetworkPolicy", "hookgate-reconcile", "spec.ingress", [{}]), "lets something in"),
    Mistake("a job's pods behind the Service", ALL, setting(*RECONCILE, "spec.jobTemplate.spec.template.metadata.labels", {"app.kubernetes.io/name": "hookgate"}), "its pods are hookgate's"),
]
