"""Checks what promtool alone can't: real metrics, the names in rules and panels, the dashboard, the runbooks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from servers import World, crm_metrics, until

WORK = Path(sys.argv[1])
NAME = re.compile(r"\b(?:hookgate|process)_\w+")
STORE_GAUGES = ("hookgate_outbox_", "hookgate_pending_", "hookgate_orphaned_", "hookgate_consumer_", "hookgate_espocrm_")
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}
passed = 0


def check(what, problems):
    """Prints a line, and ends the test if there are problems."""
    global passed
    problems = list(problems)
    if problems:
        sys.exit("\n  ".join([f"FAILED  {what}", *problems]))
    passed += 1
    print(f"ok      {what}")


# A consumer has series where a route names it.
ROUTES = """
[[routes]]
flow = "vmh"
entity = "beteiligte"
action = "create"
consumers = ["case-sync"]
espocrm_event = "CBeteiligte.create"
"""


def real_metrics():
    with World(ROUTES) as world:
        world.post('[{"id":"a"},{"id":""}]')

        def look():
            return world.look("/metrics", lambda answer: (answer.headers["content-type"], answer.read().decode()))

        # Only there while a route that was removed has something left.
        until("the removed route is named", lambda: "hookgate_orphaned_outbox_entries{" in look()[1])
        return look()


def parsed(text):
    """The families; the parser is strict, and says what is wrong."""
    return list(text_string_to_metric_families(text))


def refused(text):
    try:
        parsed(text)
    except ValueError:
        return True
    return False


content_type, text = real_metrics()
families = parsed(text)
check("/metrics is OpenMetrics for a parser of others", [] if families else ["no family"])
check("and is announced as what it is",
      [] if content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8" else [content_type])
spoiled = {
    "no end": text.replace("# EOF\n", ""),
    "a counter without _total": text.replace("hookgate_shed_total{", "hookgate_shed{"),
    "a family that comes twice": text.replace("# EOF\n", "# TYPE hookgate_shed counter\n# EOF\n"),
    "a negative counter": re.sub(r'(hookgate_shed_total\{reason="outbox_full"\}) 0', r"\1 -1", text),
    "buckets that fall": re.sub(r'(hookgate_http_request_duration_seconds_bucket\{le="\+Inf",route="vmh[^}]*\}) \d+', r"\1 0", text),
    "a unit that is not in the name": text.replace("# UNIT hookgate_outbox_oldest_age_seconds seconds", "# UNIT hookgate_outbox_oldest_age_seconds bytes"),
}
check("the parser refuses what is spoiled", [what for what, bad in spoiled.items() if bad == text or not refused(bad)])
check("every family says what it is and counts in base units", [
    family.name for family in families
    if not family.documentation or family.type == "unknown"
    or ("duration" in family.name or "age" in family.name.split("_")) and family.unit != "seconds"
])

of_crm = list(plain_families(crm_metrics(ROUTES)))
check("what doctor says of the CRM is Prometheus' text format for a parser of others",
      [f"{family.name}: {family.type}" for family in of_crm if family.type != "gauge" or not family.documentation or not family.samples]
      or ([] if of_crm else ["no family"]))
listed = set(NAME.findall(Path("docs/espocrm.md").read_text().split("## Metrics of the CRM")[1].split("\n## ")[0]))
check("docs/espocrm.md names each of them, and no other", sorted(listed ^ {family.name for family in of_crm}))

known = {family.name for family in of_crm} | {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}
rules = yaml.safe_load((WORK / "rules.yaml").read_text())
manifest = yaml.safe_load(Path("k8s/components/alerts/prometheusrule.yaml").read_text())
alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
check("the rule file is the manifest's", [] if rules == manifest["spec"] else ["they differ"])
check(f"every metric of the {len(alerts)} alerts exists",
      [f"{alert}: {name}" for alert, rule in alerts.items() for name in NAME.findall(rule["expr"]) if name not in known])

documented = set(NAME.findall(Path("docs/status.md").read_text().split("## `/metrics`")[1]))
shown = {family.name + ("" if family.type == "histogram" else SUFFIXES[family.type][0]) for family in families}
check("docs/status.md names every metric, and no other", sorted(documented ^ shown))

tests = yaml.safe_load((WORK / "rules_test.yaml").read_text())["tests"]
tried = [case for test in tests for case in test["alert_rule_test"]]
check("every alert is tried both ways", [
    f"{alert}: {'never fires' if fires else 'never stays quiet'}" for alert in alerts for fires in (True, False)
    if not any(case["alertname"] == alert and bool(case["exp_alerts"]) == fires for case in tried)
])
check("every trial is of an alert", [case["alertname"] for case in tried if case["alertname"] not in alerts])

runbook = Path("docs/alerts.md").read_text()
sections = {part.split("\n", 1)[0]: part for part in runbook.split("\n## ")[1:] if part.startswith("Hookgate")}
check("every alert has its runbook, and every runbook its alert", sorted(set(alerts) ^ set(sections)))
check("every runbook says what it means, where to look first and what to do", [
    f"{alert}: {part}" for alert, section in sections.items()
    for part in ("**Means**", "**Look first**", "**Do**") if part not in section
])
check("every alert leads to its runbook and says how urgent it is", [
    alert for alert, rule in alerts.items()
    if rule["annotations"].get("runbook") != f"docs/alerts.md#{alert.lower()}"
    or rule["labels"].get("severity") not in ("critical", "warning")
    or not rule["annotations"].get("summary") or not rule["annotations"].get("description")
])

dashboard = json.loads(Path("k8s/components/dashboard/hookgate.json").read_text())
# Each query of a panel with the data source it names, so that the model reads it as one of Prometheus.
register_default_plugins()
again = json.loads(json.dumps(Dashboard.from_json(json.loads(json.dumps(dashboard))), cls=JSONEncoder))


def lost(before, after, place="dashboard"):
    """What did not survive being read and written by Grafana's own model: a key that it does not know."""
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(after, dict) or key not in after:
                if value is not None:
                    yield f"{place}.{key}"
            else:
                yield from lost(value, after[key], f"{place}.{key}")
    elif isinstance(before, list):
        if len(before) != len(after):
            yield f"{place}: {len(before)} and {len(after)}"
        for index, (one, other) in enumerate(zip(before, after)):
            yield from lost(one, other, f"{place}[{index}]")
    elif before != after:
        yield f"{place}: {before!r} became {after!r}"


check("Grafana's model reads all of the dashboard and writes the same", lost(dashboard, again))
panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
places = [(p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy) for p in dashboard["panels"]
          for dx in range(p["gridPos"]["w"]) for dy in range(p["gridPos"]["h"])]
ids = [panel["id"] for panel in dashboard["panels"]]
check("no panel lies on another, sticks out, or has another's id", [
    *(["they overlap"] if len(places) != len(set(places)) else []),
    *(["wider than 24"] if max(x for x, _ in places) >= 24 else []),
    *(["ids repeat"] if len(ids) != len(set(ids)) else []),
])
queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
check(f"every metric of its {len(panels)} panels exists",
      [f"{title}: {name}" for title, expr in queries for name in NAME.findall(expr) if name not in known])
variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
check("every variable in a query exists", [
    f"{title}: ${name}" for title, expr in queries for name in re.findall(r"\$\{?(\w+)", expr) if name not in variables
])
check("what all replicas see in the store is never added up", [
    f"{title}: {expr}" for title, expr in [*queries, *((alert, rule["expr"]) for alert, rule in alerts.items())]
    for gauge in STORE_GAUGES
    for at in re.finditer(gauge, expr)
    if not re.search(r"max( by \([\w, ]+\))? \($|max\($", expr[:at.start()])
])
check("counters are rates", [
    f"{title}: {expr}" for title, expr in queries
    for at in re.finditer(r"hookgate_\w+_(?:total|bucket)\b|process_\w+_total", expr)
    if not re.search(r"(rate|increase)\($", expr[:at.start()])
])
plain = [expr.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$job", ".*").replace("$route", ".*")
         for _, expr in queries]
recorded = {"groups": [{"name": "panels", "rules": [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(plain)]}]}
(WORK / "panels.yaml").write_text(yaml.safe_dump(recorded))
said = subprocess.run([os.environ["PROMTOOL"], "check", "rules", WORK / "panels.yaml"], capture_output=True, text=True)
check(f"Prometheus can parse all {len(plain)} queries", [] if said.returncode == 0 else [said.stdout + said.stderr])
print(f"{passed + 1} passed, 0 failed")
