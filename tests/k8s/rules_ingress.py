"""Rules about the ingress: two tries, the ladder of time-outs, and no status that EspoCRM takes as final."""

import re

from manifests import at, quantity, seconds, title
from rules_hookgate import SENDER, proxy

# Made by every kind of ingress for a dead or slow server.
FINAL = {"502", "504"}
# By Envoy also for a body that did not fit into its buffer, when the first try failed.
ENVOY_FINAL = {502, 504, 507}
# Without each of these some way to fail has no second try.
TRIGGERS = {"connect-failure", "refused-stream", "reset"}
# Where the pods of each kind of ingress are.
ENVOY_GATEWAY = "envoy-gateway-system"


def ingress(place, hookgate):
    """Each way in has its part of the settings, and there is one."""
    effective, _ = hookgate.check(place, proxy(place))
    if not place.ingress or effective is None:
        return
    ways = 0
    for config in place.of_kind("ConfigMap"):
        if "hookgate.conf" in config["data"]:
            ways += 1
            yield from nginx(config["data"]["hookgate.conf"], effective)
    for document in place.of_kind("Ingress"):
        annotations = document["metadata"].get("annotations", {})
        if any(name.startswith("nginx.ingress.kubernetes.io/") for name in annotations):
            ways += 1
            yield from lets_in(place, "ingress-nginx")
            yield from ingress_nginx(place, annotations, effective)
        if "traefik.ingress.kubernetes.io/router.middlewares" in annotations:
            ways += 1
            yield from lets_in(place, "traefik")
            yield from traefik(place, annotations, effective)
    for route in place.of_kind("HTTPRoute"):
        ways += 1
        if any("timeouts" in rule for rule in route["spec"]["rules"]):
            yield f"{title(route)}: after its timeouts the gateway answers 504, and the sender gives up"
        policies = place.of_kind("BackendTrafficPolicy")
        if policies:
            yield from lets_in(place, ENVOY_GATEWAY)
            yield from envoy_gateway(place, route, policies, effective)
        else:
            yield from lets_in(place, at(route, "spec", "parentRefs", 0, "namespace"))
    if ways != 1:
        yield f"{ways} kinds of ingress settings, not one: dead pods would be answered with 502, which loses batches"


def lets_in(place, namespace):
    """The network policy knows where the ingress's pods are."""
    for policy in place.of_kind("NetworkPolicy"):
        for rule in policy["spec"]["ingress"] if policy["metadata"]["name"] == "hookgate" else ():
            named = [at(peer, "namespaceSelector", "matchLabels", "kubernetes.io/metadata.name") for peer in rule.get("from", ())]
            if 3000 in [port["port"] for port in rule["ports"]] and namespace not in named:
                yield f"network policy locks the ingress out: its pods are in {namespace}, it lets in {named}"


def envoy_gateway(place, route, policies, effective):
    """Envoy Gateway's two policies, beside the route and beside its Gateway."""
    mine = [p for p in policies if ("HTTPRoute", route["metadata"]["name"]) in targets(p)]
    if len(mine) != 1:
        yield f"{len(mine)} BackendTrafficPolicies for {title(route)}, not one"
        return
    spec, who = mine[0]["spec"], title(mine[0])
    parents = {(p.get("namespace", place.namespace), p["name"]) for p in route["spec"]["parentRefs"]}
    limits = [
        at(p, "spec", "connection", "bufferLimit") for p in place.of_kind("ClientTrafficPolicy")
        for kind, name in targets(p) if kind == "Gateway" and (p["metadata"]["namespace"], name) in parents
    ]
    if not limits or None in limits:
        yield f"no ClientTrafficPolicy gives the Gateway of {title(route)} a bufferLimit: bodies above 32 KiB have one try"
    one = seconds(at(spec, "retry", "perRetry", "timeout", default=0))
    if not one:
        yield f"{who}: a try has no time-out of its own (retry.perRetry.timeout): a frozen pod takes all the time there is"
    tries = 1 + at(spec, "retry", "numRetries", default=2 if "retry" in spec else 0)
    buffered = at(spec, "requestBuffer", "limit")
    if not buffered:
        yield f"{who}: without requestBuffer a frozen pod that stops reading a long body holds it for ever"
    bodies = min((quantity(limit) for limit in [*limits, buffered] if limit), default=None)
    yield from ladder(effective, one, tries, bodies)
    if not one * tries < seconds(at(spec, "timeout", "http", "requestTimeout", default=0)) < SENDER:
        yield f"{who}: requestTimeout lies not between its tries and the sender's {SENDER} s"
    missing = TRIGGERS - set(at(spec, "retry", "retryOn", "triggers", default=()))
    if missing:
        yield f"{who}: no second try after {sorted(missing)}"
    mapped = {
        status["value"] for override in spec.get("responseOverride", ())
        for status in override["match"].get("statusCodes", ()) if override["response"].get("statusCode") == 503
    }
    if not ENVOY_FINAL <= mapped:
        yield f"{who}: {sorted(ENVOY_FINAL - mapped)} reach the sender, which gives up after them"


def targets(policy):
    return {(target["kind"], target["name"]) for target in policy["spec"]["targetRefs"]}


def ladder(effective, one, tries, body=None):
    """deadline < one try, all tries < the sender's patience, bodies that hookgate takes get through."""
    deadline = seconds(effective["server"]["request_deadline"])
    if not deadline < one:
        yield f"request_deadline {deadline:g} s is not below one try of the ingress, {one:g} s"
    if tries < 2:
        yield "the ingress tries only one replica"
    if not one * tries < SENDER:
        yield f"{tries} tries of {one:g} s are not below the sender's {SENDER} s"
    if body is not None and body <= effective["server"]["max_body_bytes"]:
        yield f"the ingress takes bodies up to {body} bytes, hookgate up to {effective['server']['max_body_bytes']}"


def megabytes(text):
    return quantity(text.upper().replace("M", "Mi"))


def nginx(text, effective):
    """The reference file, by its directives."""
    text = re.sub(r"#.*", "", text)

    def said(name):
        return [line.split() for line in re.findall(rf"\b{name}\s+([^;{{}}]+);", text)]

    one, tries = seconds(said("proxy_read_timeout")[0][0]), int(said("proxy_next_upstream_tries")[0][0])
    yield from ladder(effective, one, tries, megabytes(said("client_max_body_size")[0][0]))
    servers = said("server")
    if len(servers) < 2 or any("max_fails=0" not in server for server in servers):
        yield "nginx: two servers with max_fails=0 are needed for a second try"
    if not {"error", "timeout", "non_idempotent"} <= set(said("proxy_next_upstream")[0]):
        yield "nginx: proxy_next_upstream does not repeat POST after errors and time-outs"
    mapped = {status for line in said("error_page") if "=503" in line for status in line}
    if not FINAL <= mapped:
        yield f"nginx: {sorted(FINAL - mapped)} reach the sender, which gives up after them"
    if seconds(effective["server"]["header_read_timeout"]) <= 60:
        yield "server.header_read_timeout is not above nginx's keep-alive of 60 s"
    if re.search(r"\breturn\s+30\d|\brewrite\b.*\b(redirect|permanent)\b", text):
        yield "nginx: a redirect is taken as delivered"


def ingress_nginx(place, annotations, effective):
    """The same in the annotations of ingress-nginx."""
    def said(name, default=""):
        return annotations.get(f"nginx.ingress.kubernetes.io/{name}", default)

    body = megabytes(said("proxy-body-size", "1m"))
    yield from ladder(effective, seconds(said("proxy-read-timeout", "60")), int(said("proxy-next-upstream-tries", "3")), body)
    if not {"error", "timeout", "non_idempotent"} <= set(said("proxy-next-upstream").split()):
        yield "ingress-nginx: proxy-next-upstream does not repeat POST after errors and time-outs"
    if not FINAL <= set(said("custom-http-errors").split(",")):
        yield "ingress-nginx: custom-http-errors leaves 502 or 504 to the sender, which gives up after them"
    if not place.find("Service", said("default-backend")):
        yield f"ingress-nginx: default-backend {said('default-backend') or 'is missing'}: no such Service, so nobody says 503"
    if said("ssl-redirect") != "false" or said("force-ssl-redirect") != "false":
        yield "ingress-nginx: redirects http, which EspoCRM takes as delivered"


def traefik(place, annotations, effective):
    """The same in Traefik's middlewares."""
    names = annotations["traefik.ingress.kubernetes.io/router.middlewares"].split(",")
    found = {f"{place.namespace}-{m['metadata']['name']}@kubernetescrd": m["spec"] for m in place.of_kind("Middleware")}
    for name in names:
        if name not in found:
            yield f"traefik: middleware {name} is made by nobody"
    specs = [found.get(name, {}) for name in names]
    retry = next((s["retry"] for s in specs if "retry" in s), {})
    transport = at(place.of_kind("ServersTransport"), 0, "spec", "forwardingTimeouts", "responseHeaderTimeout", default=0)
    yield from ladder(effective, seconds(transport), retry.get("attempts", 1), retry.get("maxRequestBodyBytes"))
    if retry.get("retryNonIdempotentMethod") is not True:
        yield "traefik: POST is not tried again"
    if not FINAL <= set(retry.get("status", [])):
        yield "traefik: without `status: [502, 504]` retryNonIdempotentMethod has no effect: POST is not tried again"
    errors = next((s["errors"] for s in specs if "errors" in s), {})
    mapped = {status for status, to in errors.get("statusRewrites", {}).items() if to == 503}
    if not FINAL <= mapped & set(errors.get("status", [])):
        yield "traefik: 502 or 504 reach the sender, which gives up after them"
    if errors and not place.find("Service", errors["service"]["name"]):
        yield f"traefik: Service {errors['service']['name']} is made by nobody"


RULES = [ingress]
