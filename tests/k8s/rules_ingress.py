"""Rules about the ingress: two tries, the ladder of time-outs, and no status that EspoCRM takes as final."""

import re

from manifests import at, quantity, seconds, title
from rules_hookgate import SENDER, proxy

# Made by every kind of ingress for a dead or slow server.
FINAL = {"502", "504"}


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
            yield from ingress_nginx(place, annotations, effective)
        if "traefik.ingress.kubernetes.io/router.middlewares" in annotations:
            ways += 1
            yield from traefik(place, annotations, effective)
    for route in place.of_kind("HTTPRoute"):
        ways += 1
        for rule in route["spec"]["rules"]:
            timeouts, tries = rule.get("timeouts", {}), 1 + at(rule, "retry", "attempts", default=0)
            yield from ladder(effective, seconds(timeouts.get("backendRequest", 0)), tries)
            if not seconds(timeouts.get("backendRequest", 0)) * tries < seconds(timeouts.get("request", 0)) < SENDER:
                yield f"{title(route)}: timeouts.request lies not between its tries and the sender's {SENDER} s"
    if ways != 1:
        yield f"{ways} kinds of ingress settings, not one: dead pods would be answered with 502, which loses batches"


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
    errors = next((s["errors"] for s in specs if "errors" in s), {})
    mapped = {status for status, to in errors.get("statusRewrites", {}).items() if to == 503}
    if not FINAL <= mapped & set(errors.get("status", [])):
        yield "traefik: 502 or 504 reach the sender, which gives up after them"
    if errors and not place.find("Service", errors["service"]["name"]):
        yield f"traefik: Service {errors['service']['name']} is made by nobody"


RULES = [ingress]
