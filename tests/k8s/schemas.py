"""Strict schemas of several Kubernetes versions: unknown keys, wrong types, missing fields."""

import warnings
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from manifests import title

VERSIONS = ("1.30", "1.32", "1.34", "1.37")
# Kinds of CRDs, which have no schema there.
CUSTOM = {"PodMonitor", "PrometheusRule", "ExternalSecret", "Middleware", "ServersTransport"}
# Those for which there is one beside this.
GATEWAY = yaml.safe_load(Path(__file__).with_name("gateway.yaml").read_text())


def problems(document, versions=VERSIONS):
    """What the schemas say about a document."""
    if document["kind"] in CUSTOM:
        return
    if document["kind"] in GATEWAY:
        yield from gateway(document, GATEWAY[document["kind"]])
        return
    for version in versions:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as problem:
                where = ".".join(str(step) for step in problem.path)
                yield f"schema {version}: {title(document)}: {where}: {problem.message}"
            except kubernetes_validate.SchemaNotFoundError:
                yield f"schema {version}: {title(document)}: no such kind in {document['apiVersion']}"


def gateway(document, wanted):
    """The same for kinds of the Gateway API and of Envoy Gateway."""
    if document["apiVersion"] != wanted["apiVersion"]:
        yield f"schema: {title(document)}: apiVersion {document['apiVersion']}, not {wanted['apiVersion']}"
    for problem in jsonschema.Draft202012Validator(wanted["spec"]).iter_errors(document.get("spec", {})):
        where = ".".join(["spec", *map(str, problem.path)])
        yield f"schema: {title(document)}: {where}: {problem.message}"
