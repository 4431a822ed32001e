"""Rules about what needs CRDs: its schemas as far as there are any, and what it refers to."""

from manifests import at, pod, title


def prometheus_operator(place, hookgate):
    """PodMonitor and PrometheusRule against the operator's models; a key that the model drops is unknown to it."""
    from cloudcoil.models.prometheus_operator import v1

    for document in place.of_kind("PodMonitor", "PrometheusRule"):
        model = getattr(v1, document["kind"])
        try:
            understood = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
        except ValueError as problem:
            yield f"{title(document)}: {problem}"
            continue
        yield from unknown(document["spec"], understood["spec"], f"{title(document)}: spec")


def unknown(written, understood, where):
    """Keys of the one that are not in the other."""
    if isinstance(written, dict) and isinstance(understood, dict):
        for key, value in written.items():
            if key not in understood:
                yield f"{where}.{key} is unknown to the operator"
            else:
                yield from unknown(value, understood[key], f"{where}.{key}")
    elif isinstance(written, list) and isinstance(understood, list):
        for index, (one, other) in enumerate(zip(written, understood)):
            yield from unknown(one, other, f"{where}[{index}]")


def external_secrets(place, hookgate):
    """An ExternalSecret makes what is mounted, under that name and with those keys."""
    mounted = {
        volume["secret"]["secretName"]: title(workload)
        for workload in place.workloads() for volume in pod(workload).get("volumes", []) if "secret" in volume
    }
    for external in place.of_kind("ExternalSecret"):
        name = at(external, "spec", "target", "name")
        if name not in mounted:
            yield f"{title(external)} makes Secret {name}, which nobody mounts"
        if not at(external, "spec", "secretStoreRef", "name") or not external["spec"].get("data"):
            yield f"{title(external)} names no store or no data"
        wanted = place.given.get(("Secret", name), set())
        got = {item["secretKey"] for item in external["spec"].get("data", [])}
        if not wanted <= got:
            yield f"{title(external)}: Secret {name} lacks {sorted(wanted - got)}"


RULES = [prometheus_operator, external_secrets]
