"""Rules about the CronJobs that ask EspoCRM: their configuration, their users, their way out."""

import copy
from urllib.parse import urlsplit

from manifests import at, containers, pod, pod_labels, title
from rules_hookgate import targets

# Where pods that take webhooks never look.
OF_THE_CRM = "/run/secrets/hookgate-espocrm/"
PORTS = {"http": 80, "https": 443}


def jobs(place):
    return place.of_kind("CronJob")


def asked(place, hookgate, job):
    """(what `hookgate check` makes of its configuration, complaint)."""
    bare = copy.deepcopy(job)
    # The command and its flags are no flags of `check`.
    containers(bare)[0].pop("args", None)
    return hookgate.check(place, bare)


def configuration(place, hookgate):
    """It knows the CRM, and which of its webhooks feeds which route."""
    for job in jobs(place):
        who = title(job)
        effective, complaint = asked(place, hookgate, job)
        if complaint:
            yield f"{who}: hookgate check refuses the configuration: {complaint}"
            continue
        crm = effective.get("espocrm", {})
        if not crm.get("url"):
            yield f"{who}: espocrm.url is not set"
        if not crm.get("user") or not crm.get("password_file"):
            yield f"{who}: the queue is for administrators: espocrm.user and espocrm.password_file are not set"
        _, files = hookgate.mounts(place, job, containers(job)[0])
        for key in ("password_file", "api_key_file", "ca_file"):
            if crm.get(key, "") and crm[key] not in files:
                yield f"{who}: espocrm.{key} is {crm[key]}, which is not mounted"
        if not any(route.get("espocrm_event") for route in effective["routes"]):
            yield f"{who}: no route has espocrm_event, so there is nothing to ask for"
        image = containers(place.find("Deployment", "hookgate"))[0]["image"]
        if containers(job)[0]["image"] != image:
            yield f"{who}: image {containers(job)[0]['image']} is not hookgate's, {image}"


def users(place, hookgate):
    """What asks the CRM has credentials of its own, and what takes webhooks has none of them."""
    serving, _ = hookgate.check(place, place.find("Deployment", "hookgate"))
    for job in jobs(place):
        if "reconcile" not in containers(job)[0]["args"]:
            continue
        effective, _ = asked(place, hookgate, job)
        for store, key in (("redis", "username"), ("nats", "user")):
            if effective and serving and effective[store].get(key) == serving[store].get(key):
                yield f"{title(job)} is {effective[store].get(key)!r} for {store}, as hookgate is, who may not read the stream"
    names = {at(v, "secret", "secretName") for job in jobs(place) for v in pod(job)["volumes"] if v["name"] == "espocrm"}
    for volume in pod(place.find("Deployment", "hookgate")).get("volumes", []):
        if at(volume, "secret", "secretName") in names:
            yield "Deployment/hookgate mounts the credentials of the CRM"
    for workload in place.workloads():
        mounted = [m["mountPath"] + "/" for c in containers(workload) for m in c.get("volumeMounts", [])]
        if OF_THE_CRM in mounted and workload not in jobs(place):
            yield f"{title(workload)} mounts the credentials of the CRM"


def schedule(place, hookgate):
    """One run at a time, which ends before it is forgotten."""
    for job in jobs(place):
        spec = job["spec"]
        if spec.get("concurrencyPolicy") != "Forbid":
            yield f"{title(job)}: two runs at once would ask the CRM for everything twice"
        if not at(spec, "jobTemplate", "spec", "activeDeadlineSeconds"):
            yield f"{title(job)}: a run that hangs keeps all others from starting (activeDeadlineSeconds)"
        if "restartPolicy" not in pod(job) or pod(job)["restartPolicy"] != "Never":
            yield f"{title(job)}: a pod that is restarted has no log of its failure"


def network(place, hookgate):
    """Nothing comes in; what goes out is names, the CRM, and what the command needs besides."""
    for job in jobs(place):
        who = title(job)
        policies = [
            p for p in place.of_kind("NetworkPolicy")
            if job in place.selected(at(p, "spec", "podSelector", "matchLabels", default={}))
        ]
        if len(policies) != 1 or sorted(policies[0]["spec"].get("policyTypes", [])) != ["Egress", "Ingress"]:
            yield f"{who}: {len(policies)} network policies, or not for both ways"
            continue
        spec = policies[0]["spec"]
        if spec.get("ingress"):
            yield f"{who}: network policy lets something in"
        effective, _ = asked(place, hookgate, job)
        if not effective or not at(effective, "espocrm", "url"):
            continue
        arguments = containers(job)[0]["args"]
        urls = [effective["espocrm"]["url"], *(a.removeprefix("--push-to=") for a in arguments if a.startswith("--push-to="))]
        parts = [urlsplit(url) for url in urls]
        needed = {f"{part.port or PORTS[part.scheme]}/TCP" for part in parts} | {"53/UDP", "53/TCP"}
        if "reconcile" in arguments:
            needed |= {f"{port}/TCP" for _, port in targets(effective)}
        let_out = [
            (f"{port['port']}/{port.get('protocol', 'TCP')}", rule.get("to"))
            for rule in spec.get("egress", []) for port in rule.get("ports", [{"port": "*"}])
        ]
        if {port for port, _ in let_out} != needed:
            yield f"{who}: network policy lets out {sorted(port for port, _ in let_out)}, it needs {sorted(needed)}"
        crm = f"{parts[0].port or PORTS[parts[0].scheme]}/TCP"
        for port, whom in let_out:
            # Where the CRM is, nobody knows here.
            if not whom and port != crm:
                yield f"{who}: network policy lets out {port} to anybody"
        # Where the stores are, hookgate's own policy says.
        own = place.find("NetworkPolicy", "hookgate")
        stores = {f"{port}/TCP" for _, port in targets(effective)} & needed
        for port in stores if own else ():
            mine = [whom for name, whom in let_out if name == port]
            theirs = [rule["to"] for rule in own["spec"]["egress"] for p in rule["ports"] if f"{p['port']}/TCP" == port]
            if mine != theirs:
                yield f"{who}: network policy lets out {port} to {mine}, hookgate's to {theirs}"


def labels(place, hookgate):
    """Nobody takes its pods for hookgate's."""
    for job in jobs(place):
        if pod_labels(job).get("app.kubernetes.io/name") == "hookgate":
            yield f"{title(job)}: its pods are hookgate's for Service and disruption budget"


RULES = [configuration, users, schedule, network, labels]
