"""Starts what compose.yaml describes, without containers; see `run`."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from ruamel.yaml import YAML

from servers import free_port, listens, until

failed = 0
compose = YAML(typ="safe").load(Path("compose.yaml"))
services, configs = compose["services"], compose["configs"]


def check(what, right, found=""):
    global failed
    failed += not right
    print(f"{'ok     ' if right else 'FAILED '} {what}" + ("" if right else f": {found}"), flush=True)


version = re.search(r'^version = "(.*)"', Path("Cargo.toml").read_text(), re.MULTILINE)[1]
hookgate = services["hookgate"]
named = (hookgate["image"], hookgate["build"]["args"]["VERSION"])
check("the image has the version of Cargo.toml", named == (f"hookgate:{version}", version), named)
overlay = YAML(typ="safe").load(Path("k8s/overlays/dev/kustomization.yaml"))
tags = {image["name"]: image["newTag"] for image in overlay["images"]}
for name in ("redis", "nats"):
    check(f"{name} has the version of the dev overlay", services[name]["image"] == f"{name}:{tags[name]}", services[name]["image"])
files = [hookgate["build"]["dockerfile"], *(config["file"] for config in configs.values() if "file" in config)]
check("the files that it names are there", all(Path(file).is_file() for file in files), files)
mounts = {mount["source"]: mount["target"] for service in services.values() for mount in service.get("configs", [])}
check("each config is mounted", set(mounts) == set(configs), mounts)
check("each volume is used, for /data", {mount for service in services.values() for mount in service.get("volumes", [])} == {f"{name}:/data" for name in compose["volumes"]})

with tempfile.TemporaryDirectory() as scratch:
    scratch, children = Path(scratch), []
    redis, nats, monitor, webhooks, admin = (free_port() for _ in range(5))

    def start(program, *arguments, port, **more):
        command = ["setpriv", "--pdeathsig", "KILL", program, *arguments]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
        children.append(child)
        until(f"{program} listens", lambda: child.poll() is None and listens(port))

    try:
        # Options are the file's; only addresses and folders are those of this test.
        program, *options = services["redis"]["command"]
        check("Redis's command is its server", program == "redis-server", program)
        start(os.environ["REDIS_SERVER"], *options, "--bind", "127.0.0.1", "--port", str(redis), "--dir", str(scratch), port=redis)
        text = configs["nats"]["content"]
        check("NATS stores on its volume", "store_dir: /data" in text, text)
        (scratch / "nats.conf").write_text(text.replace("/data", str(scratch / "nats")))
        given = services["nats"]["command"]
        check("NATS reads the mounted file", given == ["--config", mounts["nats"]], given)
        start(os.environ["NATS_SERVER"], "--config", str(scratch / "nats.conf"), "-a", "127.0.0.1", "-p", str(nats), "-m", str(monitor), port=nats)
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/jsz") as answer:
            config = json.load(answer)["config"]
            check("NATS syncs before it acknowledges", config.get("sync_always") is True, config)

        environment = dict(hookgate["environment"])
        for name, port, there in [("REDIS", redis, "redis:6379"), ("NATS", nats, "nats:4222")]:
            variable = f"HOOKGATE__{name}__URL"
            check(f"{variable} names the service", there in environment[variable], environment[variable])
            environment[variable] = environment[variable].replace(there, f"127.0.0.1:{port}")
        environment |= {"HOOKGATE__SERVER__LISTEN": f"127.0.0.1:{webhooks}", "HOOKGATE__ADMIN__LISTEN": f"127.0.0.1:{admin}"}
        arguments = [argument.replace(mounts["routes"], configs["routes"]["file"]) for argument in hookgate["command"]]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOOKGATE__")} | environment
        start(os.environ["HOOKGATE"], *arguments, port=webhooks, env=environment)

        def status():
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/v1/status") as answer:
                return json.load(answer)

        until("hookgate is ready", lambda: status()["ready"])
        url = f"http://127.0.0.1:{webhooks}{status()['routes'][0]['path']}"
        with urllib.request.urlopen(url, data=b'[{"id": "a"}]') as answer:
            check("a webhook gets through", json.load(answer)["new_ids_count"] == 1)
        doctor = subprocess.run([os.environ["HOOKGATE"], "doctor", *arguments], capture_output=True, text=True, env=environment)
        check("hookgate doctor finds nothing wrong", doctor.returncode == 0, doctor.stdout + doctor.stderr)
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()

sys.exit(failed > 0)
