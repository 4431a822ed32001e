"""Asks the real hookgate: what a ConfigMap amounts to, and which paths its addresses have."""

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from manifests import containers, pod

WITHIN = 20  # seconds


def environment(container=None):
    """The variables hookgate would see: the container's, and none of whoever runs this."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HOOKGATE__", "HOOKGATE_CONFIG"))}
    for variable in (container or {}).get("env", []):
        own[variable["name"]] = variable.get("value", "")
    return own


class Hookgate:
    """The binary under its container's arguments, with its mounts laid out in a folder."""

    def __init__(self, binary):
        self.binary = binary
        self.answers = {}

    def check(self, place, workload):
        """What `hookgate check` makes of the container: (effective configuration or None, complaint)."""
        container = containers(workload)[0]
        mounts, files = self.mounts(place, workload, container)
        asked = json.dumps([files, container.get("args", []), container.get("env", [])], sort_keys=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        if key not in self.answers:
            self.answers[key] = self.ask(container, mounts, files)
        return self.answers[key]

    def mounts(self, place, workload, container):
        """(paths of the mounts, path of a mounted file -> its text); a Secret's text is made up."""
        volumes = {v["name"]: v for v in pod(workload).get("volumes", [])}
        paths, files = [], {}
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            paths.append(mount["mountPath"])
            if "configMap" in volume:
                data = (place.find("ConfigMap", volume["configMap"]["name"]) or {}).get("data", {})
                files |= {f"{mount['mountPath']}/{key}": text for key, text in data.items()}
            if "secret" in volume:
                keys = place.keys("Secret", volume["secret"]["secretName"]) or ()
                files |= {f"{mount['mountPath']}/{key}": "made-up" for key in keys}
        return paths, files

    def ask(self, container, mounts, files):
        with tempfile.TemporaryDirectory() as folder:
            def moved(text):
                for mount in mounts:
                    text = text.replace(f"{mount}/", f"{folder}{mount}/")
                return text

            for path, text in files.items():
                file = Path(folder + path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(moved(text))
            arguments = [moved(argument) for argument in container.get("args", [])]
            command = [self.binary, "check", "--output", "json", *arguments]
            own = [v | {"value": moved(v.get("value", ""))} for v in container.get("env", [])]
            variables = environment({"env": own})
            done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, cwd=folder, env=variables)
            if done.returncode != 0:
                return None, done.stderr.strip().replace(folder, "")
            return json.loads(done.stdout.replace(folder, "")), None

    @functools.cached_property
    def admin(self):
        """Address of a running hookgate's admin side."""
        own = environment() | {
            "HOOKGATE__REDIS__URL": "memory:",
            "HOOKGATE__NATS__URL": "nats://127.0.0.1:9",  # nobody is there, and nobody needs to be
            "HOOKGATE__SERVER__LISTEN": "127.0.0.1:0",
            "HOOKGATE__ADMIN__LISTEN": "127.0.0.1:0",
            "HOOKGATE__LOG__FORMAT": "json",
        }
        log = tempfile.NamedTemporaryFile(mode="w+", suffix=".log")
        self.log = log
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", self.binary], env=own, stdin=subprocess.DEVNULL, stderr=log,
            cwd=tempfile.gettempdir(),
        )
        until = time.monotonic() + WITHIN
        while time.monotonic() < until:
            for line in Path(log.name).read_text().splitlines():
                found = re.search(r"127\.0\.0\.1:\d+", line)
                if found and "listening for probes" in line:
                    return found.group()
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(f"hookgate did not say where its admin address is:\n{Path(log.name).read_text()}")

    @functools.cache
    def has_path(self, path):
        """Whether the admin address knows a path: anything but 404."""
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{self.admin}{path}", timeout=5)
        except urllib.error.HTTPError as answer:
            return answer.code != 404
        return True

    def close(self):
        if "admin" in self.__dict__:
            self.process.terminate()
            try:
                self.process.wait(timeout=WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
