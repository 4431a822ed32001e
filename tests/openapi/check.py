"""Checks both documents of a running hookgate; see `run`."""

import asyncio
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import nats
import openapi_spec_validator

from servers import World

# Schemathesis makes up requests for as long as it may, all in all.
SECONDS = {"webhooks": 15, "admin": 6}
VERBOSE = "VERBOSE" in os.environ
ROUTES = """
admin.token_file = "SECRET"
[[routes]]
flow = "vmh"
entity = "open"
action = "create"
[[routes]]
flow = "vmh"
entity = "bearer"
action = "update"
while_pending = "skip"
auth = [ { scheme = "bearer", secret_files = ["SECRET"] } ]
[[routes]]
flow = "vmh"
entity = "signed"
action = "create"
path = "/signed"
auth = [
  { scheme = "espocrm", id = "65f0c1d2e3a4b5c6d", secret_files = ["SECRET"] },
  { scheme = "standard-webhooks", secret_files = ["SECRET"] },
  { scheme = "github", secret_files = ["SECRET"] },
]
"""
KEY = "d2hvZXZlciByZWFkcyB0aGlz"
failed = 0


def check(what, right, found=""):
    global failed
    failed += not right
    print(f"{'ok     ' if right else 'FAILED '} {what}" + ("" if right else f": {found}"), flush=True)


def schemathesis(folder, document, tag, port, *more):
    """Runs on one of the two addresses; the folder keeps what it leaves behind."""
    (folder / "openapi.json").write_text(json.dumps(document))
    command = [
        sys.executable, os.environ["SCHEMATHESIS"], "run", str(folder / "openapi.json"),
        "--url", f"http://127.0.0.1:{port}", "--include-tag", tag, "--header", f"Authorization: Bearer {KEY}",
        "--max-time", str(SECONDS[tag]), "--seed", "1", "--request-timeout", "10",
        "--phases", "examples,coverage,fuzzing", "--max-examples", "60", "--no-color", *more,
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def holds(folder, document, tag, port):
    run = schemathesis(folder, document, tag, port, "--continue-on-failure")
    if run.returncode or VERBOSE:
        print(run.stdout, run.stderr)
    summary = [line.strip() for line in run.stdout.splitlines() if "generated" in line]
    check(f"Schemathesis, {tag}: {' '.join(summary)}", run.returncode == 0, "see above")


def finds(folder, document, what, tag, port, change):
    """What is wrong in the document has to be found, or nothing above says much."""
    document = copy.deepcopy(document)
    change(document)
    run = schemathesis(folder, document, tag, port, "--max-failures", "1")
    check(f"Schemathesis finds a planted mistake: {what}", run.returncode == 1, run.stdout)


async def event_of(world):
    """A webhook's event, as it comes out of NATS."""
    connection = await nats.connect(f"nats://127.0.0.1:{world.nats}")
    subscription = await connection.subscribe("vmh.open.create")
    await connection.flush()
    world.post('[{"id": "id of the event"}]', "/vmh/webhook/open/create")
    message = await subscription.next_msg(timeout=10)
    await connection.close()
    return message


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "secret").write_text(KEY)
    with World(ROUTES.replace("SECRET", str(folder / "secret"))) as world:
        openapi, asyncapi = (world.look(f"/{kind}.json", json.load) for kind in ("openapi", "asyncapi"))
        errors = list(openapi_spec_validator.OpenAPIV31SpecValidator(openapi).iter_errors())
        check("/openapi.json is valid OpenAPI 3.1", not errors, errors)
        parser = subprocess.run(["node", "tests/openapi/asyncapi.mjs"], input=json.dumps(asyncapi), capture_output=True, text=True)
        check("/asyncapi.json is valid AsyncAPI 3", parser.returncode == 0, parser.stdout + parser.stderr)

        message = asyncio.run(event_of(world))
        channel = asyncapi["channels"]["vmh.open.create"]
        check("the channel is the subject", message.subject == channel["address"], message.subject)
        described = channel["messages"]["event"]
        for what, schema, instance in [
            ("headers", described["headers"], message.headers),
            ("payload", {**described["payload"], "components": asyncapi["components"]}, json.loads(message.data)),
            ("payload, by docs/event.schema.json", json.loads(Path("docs/event.schema.json").read_text()), json.loads(message.data)),
        ]:
            errors = list(jsonschema.Draft7Validator(schema).iter_errors(instance))
            check(f"an event is as described: {what}", not errors, errors)

        holds(folder, openapi, "webhooks", world.webhooks)
        holds(folder, openapi, "admin", world.admin)
        for what, tag, port, change in [
            ("a member of another type", "webhooks", world.webhooks,
             lambda document: document["components"]["schemas"]["Received"]["properties"]["new_ids_count"].update(type="string")),
            ("a status that is not described", "webhooks", world.webhooks,
             lambda document: [path["post"]["responses"].pop("400") for path in document["paths"].values() if "post" in path]),
            ("a code that is not described", "webhooks", world.webhooks,
             lambda document: document["components"]["responses"]["400"]["content"]["application/json"]["schema"]["properties"]["error"].update(enum=["not_json"])),
            ("a webhook that takes anything", "webhooks", world.webhooks,
             lambda document: document["components"]["schemas"]["Batch"].update(type="string")),
            ("a member that is missing", "admin", world.admin,
             lambda document: document["components"]["schemas"]["Status"]["required"].append("weather")),
        ]:  # fmt: skip
            finds(folder, openapi, what, tag, port, change)

sys.exit(failed > 0)
