"""Renders every place, holds it against the schemas and the rules, and then plants mistakes that must be caught."""

import argparse
import copy
import os
import shutil
import sys
from pathlib import Path

import yaml

import chart
import rules
import rules_components
import rules_espocrm
import rules_hookgate
import rules_ingress
import schemas
from hookgate import Hookgate
from manifests import ROOT, Place, render
from mistakes import MISTAKES

# What production expects to be there (docs/operations.md, Secrets).
TLS = {("Secret", "hookgate-tls"): {"tls.crt", "tls.key"}}
# The ingress of the production overlay.
OVERLAYS_INGRESS = "envoy-gateway"
PRODUCTION = TLS | {
    ("Secret", "hookgate-secrets"): {"redis-password", "nats-password"},
    ("Secret", "hookgate-espocrm"): {"redis-password", "nats-password", "espocrm-password", "ca.crt"},
}


class Report:
    """A line a check; what failed is counted."""

    def __init__(self):
        self.passed = self.failed = 0

    def line(self, name, problems):
        if problems:
            self.failed += 1
            print(f"  FAILED  {name}", *(f"          {problem}" for problem in problems), sep="\n")
        else:
            self.passed += 1
            print(f"  ok      {name}")


def combine(scratch, name, overlay, components, namespace):
    """A kustomization of an overlay with components, as an operator would write it."""
    folder = scratch / name
    folder.mkdir(parents=True, exist_ok=True)

    def listed(paths):
        return "".join(f"  - {os.path.relpath(ROOT / path, folder)}\n" for path in paths)

    text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    text += f"namespace: {namespace}\nresources:\n{listed([f'k8s/overlays/{overlay}'])}components:\n{listed(components)}"
    (folder / "kustomization.yaml").write_text(text)
    return folder


def places(kubectl, scratch):
    """Every overlay, and each component on the one it belongs to."""
    dev, production = ROOT / "k8s/overlays/dev", ROOT / "k8s/overlays/production"
    yield Place("dev", render(kubectl, dev), "hookgate-dev", ingress=False)
    # What is applied beside the Gateway, by itself.
    beside = render(kubectl, ROOT / "k8s/ingress/envoy-gateway/gateway")
    yield Place("production", render(kubectl, production) + beside, "hookgate", PRODUCTION)
    yield Place("production with all it offers", render(kubectl, offered(scratch)) + beside, "hookgate", PRODUCTION)
    for kind in ("ingress", "components"):
        for component in sorted((ROOT / "k8s" / kind).iterdir()):
            # `again` is a part of others; `doctor`, `reconcile` and `espocrm-metrics` run the overlay's image.
            if component.name in ("again", "doctor", "reconcile", "espocrm-metrics") or not (component / "kustomization.yaml").exists():
                continue
            overlay = "dev" if kind == "ingress" else "production"
            # Traefik's annotations have the namespace in them, that of production.
            folder = combine(scratch, component.name, overlay, [component.relative_to(ROOT)], "hookgate")
            given = TLS if overlay == "dev" else PRODUCTION
            # Production is behind Envoy Gateway already.
            more = beside if overlay == "production" or component.name == OVERLAYS_INGRESS else []
            yield Place(component.name, render(kubectl, folder) + more, "hookgate", given)
            if kind == "ingress" and component.name != OVERLAYS_INGRESS:
                name = f"production with {component.name}"
                yield Place(name, render(kubectl, instead(scratch, component.name)), "hookgate", PRODUCTION)


def production(scratch, name, change):
    """The production overlay in a folder of its own, its kustomization changed as an operator would."""
    folder = scratch / name
    shutil.copytree(ROOT / "k8s/overlays/production", folder)
    kustomization = folder / "kustomization.yaml"
    text = change(kustomization.read_text())
    kustomization.write_text(text.replace("../../", os.path.relpath(ROOT / "k8s", folder) + "/"))
    return folder


def instead(scratch, ingress):
    """The production overlay with another ingress in the line that names one, as its comment says."""
    named = f"../../ingress/{OVERLAYS_INGRESS}"

    def change(text):
        assert text.count(named) == 1, f"the overlay names {named} once"
        return text.replace(named, f"../../ingress/{ingress}")

    return production(scratch, f"production-{ingress}", change)


def offered(scratch):
    """The production overlay with every component that it offers in a comment, as an operator would switch them on."""
    folder = production(scratch, "production-offers", lambda text: text.replace("  # - ../../", "  - ../../"))
    (folder / "site.toml").write_text(chart.offered_site())
    return folder


def problems(place, hookgate, before=()):
    """All that is wrong; documents that were right before are not held against the schemas again."""
    found = []
    for document in place.documents:
        if document not in before:
            found += schemas.problems(document)
    if any(found):
        return found
    for rule in rules.RULES:
        found += rule(place)
    for module in (rules_hookgate, rules_ingress, rules_components, rules_espocrm):
        for rule in module.RULES:
            found += rule(place, hookgate)
    return found


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kubectl", required=True)
    arguments.add_argument("--hookgate", required=True)
    arguments.add_argument("--helm", required=True)
    arguments.add_argument("--scratch", required=True, type=Path)
    asked = arguments.parse_args()
    hookgate, report, rendered = Hookgate(asked.hookgate), Report(), {}
    try:
        print(f"manifests: strict schemas of Kubernetes {', '.join(schemas.VERSIONS)}, and what schemas don't see")
        base = render(asked.kubectl, ROOT / "k8s/base")
        report.line("base", [problem for document in base for problem in schemas.problems(document)])
        consumer = list(yaml.safe_load_all((ROOT / "examples/consumer.yaml").read_text()))
        report.line("examples/consumer.yaml", [problem for document in consumer for problem in schemas.problems(document)])
        for place in places(asked.kubectl, asked.scratch):
            rendered[place.name] = place
            report.line(f"{place.name}: {len(place.documents)} objects", problems(place, hookgate))
        print("chart: its objects are those of the overlays, field by field")
        charts = chart.Chart(asked.helm, asked.scratch)
        for name, found in chart.checks(charts):
            report.line(f"chart: {name}", found)
        for place, like in chart.places(charts, rendered):
            found = list(chart.differences(rendered[like].documents, place.documents))
            report.line(f"{place.name}: {len(place.documents)} objects as {like}", found or problems(place, hookgate))
        kustomization = (ROOT / "k8s/overlays/production/kustomization.yaml").read_text()
        components = sorted(component.name for component in (ROOT / "k8s/components").iterdir())
        # It is retired: whoever still has it takes the component.
        report.line("no overlay includes ingress-nginx", [
            f"{path.relative_to(ROOT)} does" for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml")
            if "- ../../ingress/ingress-nginx" in path.read_text()
        ])
        report.line("production offers every component", [
            f"k8s/overlays/production names no {name}" for name in components
            if f"- ../../components/{name}\n" not in kustomization
        ])
        print(f"planted mistakes: {len(MISTAKES)}, each of which has to be caught")
        for mistake in MISTAKES:
            place = copy.deepcopy(rendered[mistake.place])
            mistake.plant(place)
            found = problems(place, hookgate, rendered[mistake.place].documents)
            said = [problem for problem in found if mistake.caught in problem]
            wrong = [] if said else [f"nobody said {mistake.caught!r}, but: {found or 'nothing'}"]
            report.line(f"{mistake.place}: {mistake.name}", wrong)
    finally:
        hookgate.close()
    print(f"{report.passed} passed, {report.failed} failed")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
