"""What the pages have operators type, as it is written there, while webhooks come; and that one sees what the pages say."""

import json
import re

import pages
from backup import follow, prepare
from cluster import PENDING, eventually, here, is_ready, pods, progress, published, ready, redis, run
from production import SITE, as_written, expect

# hookgate with its own rights, as for everybody who may exec.
PLAIN = 'hookgate() { kubectl exec -n hookgate deploy/hookgate -- /hookgate "$@"; }\n'
SELECTED = ("-l", "app.kubernetes.io/name=hookgate")
ANOTHER_FILTER = 'log.filter = "info,hookgate::entity=warn"'


def as_operator(command, more="", **place):
    """With the operators' rights. `more` is what a person would confirm or choose, `place` what the pages have a word for."""
    if command not in pages.written():
        raise SystemExit(f"the pages do not have this command: {command}")
    for word, here_it_is in place.items():
        if word not in command:
            raise SystemExit(f"no {word} in {command}")
        command = command.replace(word, here_it_is)
    return follow(f"{command} {more}")


def rows(said):
    return [json.loads(line) for line in said.splitlines()]


def curl():
    """Its patience until a port is forwarded, as a file that it reads."""
    SITE.mkdir(parents=True, exist_ok=True)
    (SITE / ".curlrc").write_text("silent\nshow-error\nretry = 30\nretry-delay = 1\nretry-connrefused\nnoproxy = localhost\n")
    return {"CURL_HOME": str(SITE)}


def first_steps(sender):
    """The dev overlay's, once it is applied."""
    expect("successfully rolled out", as_written("kubectl -n hookgate-dev rollout status deployment/hookgate"))
    answer = as_written("""
kubectl -n hookgate-dev port-forward deployment/hookgate 3000:3000 &
curl -X POST http://localhost:3000/vmh/webhook/beteiligte/create -d '[{"id": "test-123"}]'
""", then="kill %1", **curl())
    expect('"new_ids_count":1', answer)
    expect("test-123", as_written("kubectl -n hookgate-dev exec redis-0 -- redis-cli -n 1 SMEMBERS vmh:beteiligte:create_pending"))
    progress(sender, 100)


def operated(sender):
    """Production's, from looking to changing."""
    prepare()
    progress(sender, 300)
    looked_at(sender)
    one_id(sender)
    rejected_item(sender)
    nothing_odd()
    configuration_changed(sender)
    expect("restarted", as_written("kubectl -n hookgate rollout restart deployment/hookgate"))
    expect("successfully rolled out", as_written("kubectl -n hookgate rollout status deployment/hookgate"))
    ready()
    expect("rolled back", as_written("kubectl -n hookgate rollout undo deployment/hookgate"))
    ready()
    certificate()


def looked_at(sender):
    expect("/vmh/webhook/beteiligte/create", as_written(f"{PLAIN}hookgate routes"))
    as_written(f"{PLAIN}hookgate outbox count")
    as_written(f"{PLAIN}hookgate outbox list")
    if bad := [line for line in as_operator("hookgate doctor").splitlines() if line.startswith("FAIL")]:
        raise SystemExit(f"hookgate doctor: {bad}")
    as_operator("hookgate consumers list")
    if (shown := as_operator("hookgate tail --last 20").count('"entity_id"')) != 20:
        raise SystemExit(f"hookgate tail --last 20: {shown} events")
    expect("Received on", as_operator("hookgate tail", "| head -n 1"))
    as_operator("hookgate outbox relay")
    [counted] = rows(as_operator("hookgate pending count", "--output json"))
    scard = "redis-cli -n 1 SCARD vmh:beteiligte:create_pending"
    first = int(as_operator(scard))
    if min(counted["pending"], first) < 300:
        raise SystemExit(f"hookgate pending count says {counted['pending']}, SCARD {first}; 300 and more were accepted")
    progress(sender, 200)
    if (second := int(as_operator(scard))) <= first:
        raise SystemExit(f"SCARD: {first}, then {second}, although nobody releases")


def one_id(sender):
    seen, released, again, taken = sorted(sender.sent.accepted.copy())[:4]
    route = "vmh/beteiligte/create"
    expect(seen, as_operator("hookgate tail --id 65f0c1", **{"65f0c1": seen}))
    expect("pending", as_operator("hookgate why 65f0c1", **{"65f0c1": seen}))
    expect("in HOOKGATE, stored", as_operator("hookgate why ID", ID=seen))
    expect("vmh", as_operator("hookgate pending list --sort age", "| head -n 20"))
    listed = as_operator("hookgate pending list --route ROUTE --sort age --count 20", "--output json", ROUTE=route)
    if len(rows(listed)) != 20:
        raise SystemExit(f"hookgate pending list --count 20: {listed}")
    as_operator("hookgate pending release ROUTE ID", "--yes", ROUTE=route, ID=released)
    as_operator("hookgate pending republish ROUTE ID", "--yes", ROUTE=route, ID=again)
    expect("1", as_operator("redis-cli -n 1 SREM vmh:beteiligte:create_pending test-123", **{"test-123": taken}))
    left = set(redis("SMEMBERS", PENDING).split())
    if left & {released, taken} or again not in left:
        raise SystemExit(f"of {released}, {taken} and {again} the last one alone should be pending")
    if published().count(again) != 2:
        raise SystemExit(f"{again} was to be published again")
    expect("0", as_operator("redis-cli -n 1 HDEL '{vmh:beteiligte:create_pending}:outbox' <id>", **{"<id>": seen}))
    expect("0", as_operator("redis-cli -n 1 DEL '{<pending key>}:outbox'", **{"<pending key>": "vmh:nobody:create_pending"}))


def rejected_item(sender):
    if sender.send([None]) != "delivered":
        raise SystemExit("a batch with an item without an id has to be answered 200")
    letters = eventually("the letter is there", lambda: rows(as_operator("hookgate dead-letters list", "--output json")), within=30)
    expect("null", follow(f"hookgate dead-letters show {letters[0]['entry']}"))
    as_operator("hookgate dead-letters replay --reason gave_up")


def nothing_odd():
    """In what the cluster says of the pods."""
    listed = as_written("kubectl -n hookgate get pods")
    if len(re.findall(r"^hookgate-\w+-\w+ +1/1 +Running +0 ", listed, re.MULTILINE)) < 3:
        raise SystemExit(f"kubectl get pods: {listed}")
    expect("hookgate", as_written("kubectl -n hookgate describe pod"))
    described = here("describe", "pod", *SELECTED)
    if odd := [line.strip() for line in described.splitlines() if re.search(r"OOMKilled|BackOff|Unhealthy|Evicted", line)]:
        raise SystemExit(f"kubectl describe pod: {odd}")
    as_written("kubectl -n hookgate logs deploy/hookgate")
    for pod in pods():
        said = here("logs", pod["metadata"]["name"], "--since=2m")
        if odd := [line for line in said.splitlines() if '"ERROR"' in line]:
            raise SystemExit(f"the log of {pod['metadata']['name']}: {odd[:3]}")
    top = eventually("the pods' metrics are there", lambda: (said := here("top", "pod", *SELECTED, check=False)).count("Mi") >= 3 and said, within=60)
    if high := [mebibytes for mebibytes in re.findall(r"(\d+)Mi", top) if int(mebibytes) > 100]:
        raise SystemExit(f"kubectl top pods: {high} Mi")


def configuration_changed(sender):
    """In place, by an editor; and back."""
    editor = SITE / "editor"
    show = "kubectl -n hookgate logs -l app.kubernetes.io/name=hookgate --since 3m --tail=-1 | grep 'configuration'"
    same = {pod["metadata"]["uid"] for pod in pods()}
    for number, change in enumerate((rf"/^  site.toml: |/a\    {ANOTHER_FILTER}", rf"/^    {ANOTHER_FILTER}/d"), start=1):
        editor.write_text(f"#!/bin/sh\nexec sed -i '{change}' \"$1\"\n")
        editor.chmod(0o755)
        expect("edited", as_written("""
kubectl -n hookgate edit configmap "$(kubectl -n hookgate get deploy/hookgate \\
  -o jsonpath='{.spec.template.spec.volumes[?(@.name=="config")].configMap.name}')"
""", KUBE_EDITOR=str(editor)))
        # The kubelet looks at once at a pod that changed, else once a minute.
        here("annotate", "pods", *SELECTED, f"e2e=edit-{number}", "--overwrite")
        eventually("every log says that it is in force", lambda: as_written(show, check=False).count("is in force") >= number * len(same))
    said = as_written("""
kubectl -n hookgate port-forward deployment/hookgate 9090 &
curl -s localhost:9090/v1/status | jq .configuration
""", then="kill %1", **curl())
    expect('"in_force_since"', said)
    expect('"problems": []', said)
    if {pod["metadata"]["uid"] for pod in pods() if is_ready(pod)} != same:
        raise SystemExit("a configuration changed in place replaced pods")
    progress(sender, 200)


def certificate():
    """The Secret that nginx, Traefik and ingress-nginx need."""
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=hooks.example.com", "-keyout", SITE / "tls.key", "-out", SITE / "tls.crt")
    expect("created", as_written("kubectl -n hookgate create secret tls hookgate-tls --cert=tls.crt --key=tls.key"))
    here("delete", "secret", "hookgate-tls")


def edited_streams(sender):
    """The runbooks' for whoever may change streams, which the users of k8s/privileges may not."""
    prepare()
    progress(sender, 100)
    expect("HOOKGATE", as_operator("nats stream info HOOKGATE"))
    expect("30d", as_operator("nats stream edit HOOKGATE --max-age 30d", "--force"))
    follow("hookgate consumers add edited --route vmh/beteiligte/create")
    expect("100", as_operator("nats consumer edit HOOKGATE NAME --sample 100", "--force", NAME="edited"))
    expect("edited", as_operator("nats consumer info", "HOOKGATE edited"))
    follow("nats consumer rm HOOKGATE edited --force")
    before = len(published())
    as_operator("nats stream purge HOOKGATE --keep", "1000000 --force")
    if len(published()) < before:
        raise SystemExit("a purge that was to keep all took events away")
    if bad := [line for line in follow("hookgate doctor").splitlines() if line.startswith("FAIL")]:
        raise SystemExit(f"hookgate doctor: {bad}")
    progress(sender, 100)
