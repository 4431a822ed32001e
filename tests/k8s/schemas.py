"""Strict schemas of several Kubernetes versions: unknown keys, wrong types, missing fields."""

import warnings

import kubernetes_validate

from manifests import title

VERSIONS = ("1.30", "1.32", "1.34", "1.37")
# Kinds of CRDs, which have no schema there.
CUSTOM = {"PodMonitor", "PrometheusRule", "ExternalSecret", "HTTPRoute", "Middleware", "ServersTransport"}


def problems(document, versions=VERSIONS):
    """What the schemas say about a document."""
    if document["kind"] in CUSTOM:
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
