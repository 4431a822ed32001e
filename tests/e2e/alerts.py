"""Each alert is made to fire by what it is for, and none fires while all is well; then each query of the dashboard is asked."""

import json
import time
from contextlib import ExitStack, contextmanager

from cluster import (
    NAMESPACE, PENDING, asked, configmap, configurations, eventually, in_place, named, pods, progress, ready, redis, waited, without,
)
from worker import Worker, changed, deleted, made
from monitoring import COMPONENTS, JOB, MONITORING, SCRAPED_EVERY, groups, look_at_crm, monitored
from sender import signature

# The times of the rules, and nothing else of them, so that hours are seconds.
SHORTER = {
    "HookgateLosesBatches": {"[10m]": "[30s]"},
    "HookgateRefuses": {"[10m]": "[30s]", "5m": "10s"},
    "HookgateRefusesForLong": {"[10m]": "[30s]", "20m": "30s"},
    "HookgateRedisDown": {"2m": "10s"},
    "HookgateNatsDown": {"2m": "10s"},
    "HookgateOutboxOld": {"> 120": "> 20", "1m": "5s"},
    "HookgateOutboxStuck": {"> 1200": "> 40"},
    "HookgateOutboxOrphaned": {"10m": "10s"},
    "HookgateConfigReloadFailed": {"5m": "10s"},
    "HookgateDeadLetters": {"[15m]": "[30s]"},
    "HookgateSignatureFailures": {"[15m]": "[30s]", "5m": "5s"},
    "HookgateQuarantine": {"5m": "10s"},
    "HookgateQuarantineFull": {"[15m]": "[30s]"},
    "HookgatePendingGrows": {"offset 1h": "offset 30s", "[1h]": "[30s]", "30m": "15s"},
    "HookgateConsumerLags": {"30m": "30s"},
    "HookgatePendingOld": {"> 86400": "> 45", "30m": "5s"},
    "HookgateGivenUp": {"[15m]": "[30s]"},
    "HookgateAnswersLost": {"[1h]": "[40s]", "15m": "10s"},
    "HookgateCrmSilent": {"> 2 * 3600": "> 20", "15m": "10s"},
    "HookgateCrmFailing": {"30m": "10s"},
    "HookgateCrmGaveUp": {"2h": "10s"},
    "HookgateAbsent": {"5m": "10s"},
}
CREATE, UPDATE, DELETE, LEFT = (f"vmh/{name}" for name in ("beteiligte/create", "beteiligte/update", "beteiligte/delete", "left/create"))
# What has to fire in each part, with these labels, and what may fire beside it.
MISTAKES = {
    "HookgateLosesBatches": {"route": UPDATE, "code": "400"},
    "HookgateDeadLetters": {"route": UPDATE},
    "HookgateSignatureFailures": {"route": DELETE, "reason": "wrong"},
    "HookgateQuarantine": {"namespace": NAMESPACE, "job": JOB},
    "HookgateQuarantineFull": {"route": DELETE},
    "HookgateGivenUp": {"route": UPDATE, "consumer": "unsampled"},
    "HookgateAnswersLost": {"route": UPDATE},
    "HookgatePendingGrows": {"route": CREATE},
    "HookgateConsumerLags": {"route": CREATE, "consumer": "releasing"},
    "HookgatePendingOld": {"route": CREATE},
    "HookgateConfigReloadFailed": {"namespace": NAMESPACE, "job": JOB},
    "HookgateCrmSilent": {"route": UPDATE},
    "HookgateCrmFailing": {"instance": "hookgate"},
    "HookgateCrmGaveUp": {"route": CREATE},
}
NATS_AWAY = {
    "HookgateNatsDown": {"namespace": NAMESPACE, "job": JOB},
    "HookgateRefuses": {"route": CREATE},
    "HookgateRefusesForLong": {"route": CREATE},
    "HookgateOutboxOld": {"route": CREATE},
    "HookgateOutboxStuck": {"route": CREATE},
    "HookgateOutboxOrphaned": {"route": LEFT},
}
REDIS_AWAY = {"HookgateRedisDown": {"namespace": NAMESPACE, "job": JOB}}
NOBODY_THERE = {"HookgateAbsent": {"severity": "critical"}}
PARTS = (MISTAKES, NATS_AWAY, REDIS_AWAY, NOBODY_THERE)
# Alerts that can't be made to fire here, and why.
IMPOSSIBLE = {}
# Nobody releases what no consumer gets.
NOT_RELEASED = {"HookgatePendingGrows", "HookgateConsumerLags", "HookgatePendingOld"}
WEBHOOK, SECRET = "65f0c1d2e3a4b5c6d", "0123456789abcdef0123456789abcdef"
UNDISTURBED = 40  # seconds


def site(base, *, left=True, mistyped=False):
    """Routes whose consumers release, one that asks for a signature, and the CRM."""
    routes = [
        {"entity": "beteiligte", "action": "create", "release": "ack", "consumers": ["releasing"], "espocrm_event": "CBeteiligte.create"},
        {"entity": "beteiligte", "action": "update", "release": "ack", "consumers": ["unsampled"], "espocrm_event": "CBeteiligte.update"},
        {"entity": "beteiligte", "action": "delete", "quarantine": True,
         "auth": [{"scheme": "espocrm", "id": WEBHOOK, "secret_files": ["/etc/hookgate/secret"]}]},
        *([{"entity": "left", "action": "create"}] if left else []),
    ]

    def toml(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
        return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)

    tables = "".join("\n[[routes]]\nflow = \"vmh\"\n" + "".join(f"{key} = {toml(value)}\n" for key, value in route.items()) for route in routes)
    crm = f'\n[espocrm]\nurl = "http://crm-well.{MONITORING}.svc:443"\nuser = "admin"\npassword_file = "/run/secrets/hookgate-espocrm/espocrm-password"\n'
    return f"{base}\n[quarantine]\nmax_entries = 2\n{crm}{tables}" + ("\n[log]\nmistyped = \"info\"\n" if mistyped else "")


def post(route, body, key=None):
    """Straight to a pod, whatever it answers."""
    flow, entity, action = route.split("/")
    headers = {"Signature": signature(key, body.encode())} if key else {}
    return asked(pods()[0], 3000, "POST", f"/{flow}/webhook/{entity}/{action}", body.encode(), headers)[0]


def items(name, count):
    return json.dumps([{"id": f"{name}-{number}"} for number in range(count)])


class Trial:
    """What fires, part by part."""

    def __init__(self, prometheus, configmap, base):
        self.prometheus, self.configmap, self.base = prometheus, configmap, base
        self.problems = []

    def configure(self, secret, **how):
        before = [one["in_force_since"] for one in configurations() if not one["problems"]]
        in_place(self.configmap, {"site.toml": site(self.base, **how), "secret": secret})
        if not how.get("mistyped"):
            eventually("it is in force everywhere", lambda: all(
                not one["problems"] and one["in_force_since"] not in before for one in configurations()
            ))

    def quiet(self):
        try:
            eventually("no alert fires", lambda: not self.prometheus.firing(), within=180)
        except SystemExit as problem:
            raise SystemExit(f"{problem}: {', '.join(sorted(self.prometheus.firing()))}") from None

    def fires(self, wanted, cause, may=(), within=150):
        """Waits until all of them have fired, and says when."""
        began, seen = time.monotonic(), {}
        with ExitStack() as stack:
            stack.enter_context(cause)
            until = began + within
            while (missing := set(wanted) - set(seen)) and time.monotonic() < until:
                for labels in self.prometheus.fired(began):
                    name = labels["alertname"]
                    if wanted.get(name, {}).items() <= labels.items():
                        seen.setdefault(name, time.monotonic() - began)
                time.sleep(0.5)
        for name in wanted:
            print(f"    {name:<26} " + (f"fired after {seen[name]:.0f} s" if name in seen else "DID NOT FIRE"), flush=True)
        self.problems += [f"{name} did not fire" for name in sorted(missing)]
        self.problems += [f"{name} fired too" for name in sorted(set(seen) - set(wanted) - set(may))]


@contextmanager
def mistakes(trial, releasing):
    """Of senders, consumers, the CRM and whoever edits the configuration. Then all of them are mended."""
    releasing.paused.set()
    # A configuration in place has another secret than the CRM; its share of the quarantine holds one body.
    for number in range(2):
        post(DELETE, items(f"signed-{number}", 1), (WEBHOOK, SECRET))
    post(UPDATE, "no batch")
    post(UPDATE, items("given-up", 1))
    post(UPDATE, items("unsampled", 30))
    look_at_crm("wrong")
    trial.configure("mistyped", mistyped=True)
    yield
    releasing.paused.clear()
    changed("unsampled", sample_freq="100")
    trial.configure(SECRET)
    # What was kept is published now, and no consumer releases it.
    eventually("what was in quarantine is pending", lambda: redis("SREM", f"{DELETE.replace('/', ':')}_pending", "signed-0-0") == "1")
    look_at_crm("well")


@contextmanager
def nats_away(trial):
    """What is claimed meanwhile waits in the outbox; the route of some of it is removed."""
    with without(("statefulset", "nats"), "-n", NAMESPACE):
        post(LEFT, items("left", 3))
        trial.configure(SECRET, left=False)
        yield


def subject(route):
    return route.replace("/", ".")


def undisturbed(trial):
    began = time.monotonic()
    waited(UNDISTURBED)
    if fired := {labels["alertname"] for labels in trial.prometheus.fired(began)}:
        trial.problems.append(f"fired while nothing was wrong: {', '.join(sorted(fired))}")
    print(f"    {UNDISTURBED} s of load: {', '.join(sorted(fired)) or 'no alert'} fired", flush=True)


def dashboard(prometheus, since):
    """Each query, as Grafana asks it, over all that happened."""
    panels = json.loads((COMPONENTS / "dashboard/hookgate.json").read_text())["panels"]
    variables = {"$namespace": NAMESPACE, "$job": JOB, "$route": ".*", "$__rate_interval": f"{4 * SCRAPED_EVERY}s"}
    end, problems, count = time.time(), [], 0
    for title, expression in ((panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        count += 1
        if not prometheus.ask("query_range", query=expression, start=end - since, end=end, step="5")["result"]:
            problems.append(f"the dashboard's {title!r} shows nothing: {expression}")
    print(f"    {count - len(problems)} of {count} queries of the dashboard show something", flush=True)
    return problems


def all_are_tried():
    there = {rule["alert"] for group in groups(SHORTER) for rule in group["rules"]}
    tried = {name for part in PARTS for name in part} | set(IMPOSSIBLE)
    if there != tried:
        raise SystemExit(f"alerts that are not tried, or not there: {', '.join(sorted(there ^ tried))}")
    for name, why in IMPOSSIBLE.items():
        print(f"    {name:<26} left out: {why}", flush=True)


def alerts(sender):
    """All of them."""
    all_are_tried()
    began = time.monotonic()
    config = configmap()
    base = named("configmap", config)["data"]["site.toml"]
    # What others have left pending: nobody will release it.
    redis("EVAL", "for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do if id:sub(1, #ARGV[1]) ~= ARGV[1] then redis.call('SREM', KEYS[1], id) end end",
          "1", PENDING, f"{sender.name}-")
    with ExitStack() as afterwards:
        afterwards.callback(ready)
        afterwards.callback(in_place, config, {"site.toml": base, "secret": None})
        # hookgate learns of an acknowledgement if it is sampled.
        for name, route, more in (("releasing", CREATE, {"sample_freq": "100"}), ("unsampled", UPDATE, {})):
            made(name, subject(route), **more)
            afterwards.callback(deleted, name)
        trial = Trial(afterwards.enter_context(monitored(SHORTER)), config, base)
        trial.configure("mistyped")
        # Not before: an acknowledgement to which hookgate does not listen yet is a lost one.
        workers = [Worker("releasing", lambda event: "+ACK"),
                   Worker("unsampled", lambda event: "+TERM" if event["entity_id"].startswith("given-up") else "+ACK")]
        for worker in workers:
            afterwards.callback(worker.stop)
        look_at_crm("well")
        eventually("each pod is scraped", lambda: len(trial.prometheus.query(f'up{{job="{JOB}"}} == 1')) == len(pods()))
        trial.quiet()
        undisturbed(trial)
        for wanted, cause, may in (
            (MISTAKES, mistakes(trial, workers[0]), NOT_RELEASED),
            (NATS_AWAY, nats_away(trial), NOT_RELEASED),
            (REDIS_AWAY, without(("statefulset", "redis"), "-n", NAMESPACE), ()),
            (NOBODY_THERE, without(("deployment", "hookgate"), "-n", NAMESPACE), ()),
        ):
            trial.fires(wanted, cause, may)
            ready()
            trial.quiet()
        progress(sender, 300)
        trial.problems += dashboard(trial.prometheus, time.monotonic() - began)
    if trial.problems:
        raise SystemExit("; ".join(trial.problems))
