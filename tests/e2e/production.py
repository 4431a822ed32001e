"""The production overlay, by the numbered checklist of docs/operations.md: its commands as they are written there. Only names,
the namespace and addresses are this cluster's. Beside it a Redis that syncs each write and three NATS, with the users of
k8s/privileges and passwords."""

import os
import re
import shutil
import subprocess
from secrets import token_hex

import pages
from backup import here_is
from cluster import (
    HOST, NAMESPACE, OPERATOR, PENDING, ROOT, SCRATCH, addresses, apply, authority, eventually, gateway_service, here, named, redis, run,
)
from stores import stores

PAGE = pages.OPERATIONS
SITE = SCRATCH / "site"
PASSWORDS = {"hookgate": f"h{token_hex(16)}", "hookgate-reconcile": f"r{token_hex(16)}"} | dict([OPERATOR] if OPERATOR else [])

STORES = """
- target: {{kind: StatefulSet, name: redis}}
  patch: |-
    - {{op: test, path: /spec/template/spec/containers/0/args/5, value: everysec}}
    - {{op: replace, path: /spec/template/spec/containers/0/args/5, value: always}}
    - {{op: add, path: /spec/template/spec/containers/0/args/-, value: --aclfile}}
    - {{op: add, path: /spec/template/spec/containers/0/args/-, value: /etc/redis/redis.acl}}
    - {{op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {{name: users, mountPath: /etc/redis, readOnly: true}}}}
    - {{op: add, path: /spec/template/spec/volumes, value: [{{name: users, secret: {{secretName: users}}}}]}}
- target: {{kind: StatefulSet, name: nats}}
  patch: |-
    - {{op: replace, path: /spec/replicas, value: 3}}
    - {{op: add, path: /spec/podManagementPolicy, value: Parallel}}
    - {{op: replace, path: /spec/template/spec/containers/0/args, value: [--config, /etc/nats/nats-server.conf]}}
    - op: add
      path: /spec/template/spec/containers/0/env
      value:
        - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: HOOKGATE_NATS_PASSWORD, valueFrom: {{secretKeyRef: {{name: users, key: hookgate}}}}}}
        - {{name: HOOKGATE_OPERATOR_NATS_PASSWORD, valueFrom: {{secretKeyRef: {{name: users, key: hookgate-operator}}}}}}
        - {{name: HOOKGATE_RECONCILE_NATS_PASSWORD, valueFrom: {{secretKeyRef: {{name: users, key: hookgate-reconcile}}}}}}
        - {{name: CASE_SYNC_NATS_PASSWORD, valueFrom: {{secretKeyRef: {{name: users, key: hookgate-reconcile}}}}}}
    - {{op: replace, path: /spec/template/spec/containers/0/volumeMounts, value: [{{name: data, mountPath: /data}}, {{name: users, mountPath: /etc/nats, readOnly: true}}]}}
    - {{op: replace, path: /spec/template/spec/volumes, value: [{{name: users, secret: {{secretName: users}}}}]}}
- target: {{kind: Service, name: nats}}
  patch: |-
    - {{op: add, path: /spec/clusterIP, value: None}}
    - {{op: add, path: /spec/publishNotReadyAddresses, value: true}}
"""
SERVER = """server_name: $POD
port: 4222
http_port: 8222
jetstream { store_dir: /data }
cluster { name: stores, port: 6222, routes: [nats://nats-0.nats:6222, nats://nats-1.nats:6222, nats://nats-2.nats:6222] }
include nats.conf
"""


def as_written(command, check=True, then="", **environment):
    """Runs a command of the pages, whose lines have to be there, in the folder of the site."""
    there = pages.written()
    for line in pages.lines(command):
        if line not in there:
            raise SystemExit(f"the pages do not have this command: {line}")
    SITE.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["bash", "-c", f"{here_is(command)}\n{then}"], cwd=SITE, env=os.environ | environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=300)
    if check and done.returncode:
        raise SystemExit(f"{command}: {done.stderr.strip()}\n{done.stdout.strip()}")
    return done.stdout + done.stderr


def expect(what, seen):
    if what not in seen:
        raise SystemExit(f"not seen: {what}, but: {seen}")


def edit(name, *changes):
    file = SITE / "k8s/overlays/site" / name
    text = file.read_text()
    for old, new in changes:
        if old not in text:
            raise SystemExit(f"{file}: no {old!r}")
        text = text.replace(old, new)
    file.write_text(text)


def site():
    """Steps 1 and 2: a copy, with what belongs to this cluster."""
    shutil.rmtree(SITE, ignore_errors=True)
    for folder in ("k8s", "config"):
        shutil.copytree(ROOT / folder, SITE / folder)
    as_written("cp -r k8s/overlays/production k8s/overlays/site")
    text = (SITE / "k8s/overlays/site/site.toml").read_text()
    head, crm = text.split("# [espocrm]\n")
    (SITE / "k8s/overlays/site/site.toml").write_text(head + "[espocrm]\n" + re.sub(r"(?m)^# ?", "", crm))
    edit("site.toml", ("stores.svc", f"{NAMESPACE}.svc"))
    edit("network-policy.yaml", ("kubernetes.io/metadata.name: stores", f"kubernetes.io/metadata.name: {NAMESPACE}"))
    edit("namespace.yaml", ("name: hookgate\n", f"name: {NAMESPACE}\n"))
    edit("kustomization.yaml", ("namespace: hookgate\n", f"namespace: {NAMESPACE}\n"),
         *((f"# - ../../components/{name}\n", f"- ../../components/{name}\n") for name in ("doctor", "reconcile", "espocrm-metrics")))
    left = as_written("kubectl kustomize k8s/overlays/site | grep -nE 'example\\.com|stores|gateways|image:'")
    expect("image: hookgate:0.2.0", left)
    expect(HOST, left)


def users():
    """Step 3, and the stores that have them."""
    acl = (ROOT / "k8s/privileges/redis.acl").read_text()
    for user, password in PASSWORDS.items():
        acl = acl.replace(f"user {user} on resetpass", f"user {user} on >{password}")
    acl += everybody_else()
    here("create", "secret", "generic", "users", f"--from-literal=redis.acl={acl}", f"--from-literal=nats-server.conf={SERVER}",
         f"--from-file={ROOT / 'k8s/privileges/nats.conf'}", *(f"--from-literal={user}={password}" for user, password in PASSWORDS.items()))
    stores(STORES)


def everybody_else():
    """The page's line for Redis' user `default`."""
    return re.search(r"^ *(user default .*)$", PAGE.read_text(), re.MULTILINE).group(1) + "\n"


def secret():
    """Step 5, with the operators' part."""
    operator = re.search(r"```toml\n(# operator\.toml\n.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    (SITE / "operator.toml").write_text(operator)
    for name, user in (("redis-password", "hookgate"), ("nats-password", "hookgate"), ("operator-redis-password", OPERATOR[0]),
                       ("operator-nats-password", OPERATOR[0]), ("reconcile-redis-password", "hookgate-reconcile"),
                       ("reconcile-nats-password", "hookgate-reconcile")):
        (SITE / name).write_text(PASSWORDS[user])
    as_written("""
kubectl -n hookgate create secret generic hookgate-secrets \\
  --from-file=redis-password=./redis-password --from-file=nats-password=./nats-password \\
  --from-file=operator.toml --from-file=operator-redis-password --from-file=operator-nats-password
""")
    expect(" 5 ", as_written("kubectl -n hookgate get secret hookgate-secrets"))
    (SITE / "espocrm-password").write_text("unused")
    (SITE / "ca.crt").write_text(authority())
    as_written("""
kubectl -n hookgate create secret generic hookgate-espocrm --from-file=espocrm-password=./espocrm-password \\
  --from-file=ca.crt=./ca.crt --from-file=redis-password=./reconcile-redis-password \\
  --from-file=nats-password=./reconcile-nats-password
""")


def gateway(had):
    """Step 6."""
    if not had:
        as_written("kubectl apply -k k8s/ingress/envoy-gateway/gateway")
    eventually("the Gateway's policy is accepted", lambda: "Accepted" in as_written("kubectl -n gateways get clienttrafficpolicy hookgate -o yaml"))


def doctor_as_job():
    """Before anything is changed."""
    as_written("""
kubectl -n hookgate delete job hookgate-doctor --ignore-not-found
kubectl apply -k k8s/overlays/site -l 'app.kubernetes.io/component in (configuration,doctor)'
""")
    done = as_written("kubectl -n hookgate wait --for=condition=Complete job/hookgate-doctor --timeout=130s", check=False)
    said = as_written("kubectl -n hookgate logs job/hookgate-doctor")
    expect("condition met", f"{done}{said}")
    as_written("kubectl -n hookgate delete job hookgate-doctor --ignore-not-found")


def applied():
    """Steps 7 to 10."""
    expect("kind: Deployment", as_written("kubectl diff -k k8s/overlays/site", check=False))
    as_written("kubectl apply -k k8s/overlays/site")
    expect("successfully rolled out", as_written("kubectl -n hookgate rollout status deployment/hookgate"))
    seen = as_written("kubectl -n hookgate get httproute,backendtrafficpolicy -o yaml")
    if seen.count("type: Accepted") < 2:
        raise SystemExit(f"the route and its policy are not accepted: {seen}")


def hookgate(*arguments):
    """The page's shell function with the operators' user."""
    function = re.search(r"```sh\n(hookgate\(\) \{\n.*?\n\}\n)", PAGE.read_text(), re.DOTALL).group(1)
    return run("bash", "-c", function.replace("-n hookgate", f"-n {NAMESPACE}") + 'hookgate "$@"', "bash", *arguments)


def webhook():
    """Step 11, through the ingress, to the event: signed from a pod that has the configuration, and by curl."""
    command = "hookgate send vmh/beteiligte/create --id test-123 --url https://hooks.example.com"
    expect(command, PAGE.read_text())
    sent(command.split()[1:])
    (SITE / "ingress.crt").write_text(authority())
    address, port = addresses()[0]
    command = """curl -i https://hooks.example.com/vmh/webhook/beteiligte/create -d '[{"id": "test-123"}]'"""
    expect(command, PAGE.read_text())
    there = f"--cacert ingress.crt --connect-to {HOST}:443:{address}:{port}"
    answer = run("bash", "-c", command.replace("curl -i", f"curl -sS -i {there}"), cwd=SITE)
    expect('"new_ids_count":1', answer)
    expect("test-123", hookgate("tail", "--last", "5"))
    redis("SREM", PENDING, "test-123")


def sent(arguments):
    """`hookgate send` where the host's name leads to the ingress, and its event."""
    spec = named("deployment", "hookgate")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
        container.pop(probe)
    container["args"] = [*arguments, "--ca-file", "/ca/tls.crt"]
    container["volumeMounts"].append({"name": "ca", "mountPath": "/ca", "readOnly": True})
    spec["volumes"].append({"name": "ca", "configMap": {"name": "ingress"}})
    spec |= {"restartPolicy": "Never", "hostAliases": [{"ip": gateway_service()["spec"]["clusterIP"], "hostnames": [HOST]}]}
    spec.pop("topologySpreadConstraints")
    here("create", "configmap", "ingress", f"--from-literal=tls.crt={authority()}")
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "send", "namespace": NAMESPACE}, "spec": spec})
    phase = eventually("hookgate send ends", lambda: (now := named("pod", "send")["status"]["phase"]) in ("Succeeded", "Failed") and now, within=60)
    said = here("logs", "send")
    if phase != "Succeeded":
        raise SystemExit(f"hookgate send: {said}")
    expect("test-123", hookgate("tail", "--last", "1"))
    redis("SREM", PENDING, "test-123")
    here("delete", "pod/send", "configmap/ingress")


def production(had):
    """From an empty namespace to the first event."""
    site()
    as_written("kubectl apply -f k8s/overlays/site/namespace.yaml")
    users()
    secret()
    gateway(had)
    doctor_as_job()
    applied()
    print(as_written("""
hookgate() { kubectl exec -n hookgate deploy/hookgate -- /hookgate "$@"; }
hookgate doctor
"""), flush=True)
    webhook()


def jobs_without_crm(_sender):
    """The CronJobs' pods start beside the stores, and their log names what is not there: the CRM, and the Pushgateway."""
    as_written("kubectl -n hookgate create job --from=cronjob/hookgate-reconcile reconcile-by-hand")
    here("create", "job", "--from=cronjob/hookgate-espocrm-metrics", "metrics-by-hand")
    crm, gateway = "https://crm.example.com", "http://prometheus-pushgateway.monitoring"
    for job, missed in (("reconcile-by-hand", [crm]), ("metrics-by-hand", [crm, gateway])):
        here("wait", "--for=condition=Failed", f"job/{job}", "--timeout=120s")
        said = here("logs", f"job/{job}")
        for one in missed:
            expect(one, said)
    expect("https://crm.example.com", as_written("kubectl -n hookgate logs -f job/reconcile-by-hand"))
    as_written("kubectl -n hookgate patch cronjob hookgate-reconcile -p '{\"spec\":{\"suspend\":true}}'")
    expect("True", here("get", "cronjob", "hookgate-reconcile"))
