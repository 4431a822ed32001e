"""Runs the ingress files that are deployed, with real nginx, HAProxy and Envoy before two real hookgates, and tries each way
in which a replica fails. What counts is the status: EspoCRM gives up on a batch for good after most of them."""

import argparse
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from check import Report
from hookgate import environment
from manifests import ROOT

WITHIN = 20  # seconds, for anything to come up
LADDER = 9  # seconds, two tries of 4 s and some slack; below the sender's 10
PATH = "/vmh/webhook/beteiligte/create"


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def eventually(what, condition):
    until = time.monotonic() + WITHIN
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.05)
    raise SystemExit(f"{what}: not within {WITHIN} s")


class Process:
    """A server that ends with this program."""

    running = []

    def __init__(self, folder, name, command, env=None):
        self.log = Path(folder, f"{name}.log")
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=folder,
            )
        Process.running.append(self)

    def signal(self, number):
        self.child.send_signal(number)

    def kill(self):
        self.child.kill()
        self.child.wait()
        Process.running.remove(self)


def exchange(port, head, body=b"", tls=None):
    """(status or None, seconds, head of the answer). Goes on reading when the other side stops reading."""
    began, answer = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        connection = tls.wrap_socket(plain, server_hostname="hooks.example.com") if tls else plain

        def send():
            try:
                connection.sendall(head + body)
            except OSError:
                pass  # an early answer; it is read below

        # Beside the reading, for answers that come early; a TLS socket is not made for that.
        sender = threading.Thread(target=send)
        sender.start()
        if tls:
            sender.join()
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                found = re.match(rb"HTTP/1\.1 (\d+)[^\n]*\n.*?\r\n\r\n", answer, re.DOTALL)
                if found and found.group(1) != b"100":
                    break
        except OSError:
            pass
        took = time.monotonic() - began
        try:
            plain.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sender.join()
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return (int(found.group(1)) if found else None), took, answer.decode("latin-1")


def request(method="POST", path=PATH, body=b"[]", more=""):
    head = f"{method} {path} HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode(), body


class World:
    """NATS, two hookgates, and the ingress before them."""

    def __init__(self, folder, binaries):
        self.folder, self.binaries, self.ids = folder, binaries, 0
        self.nats, self.ports = free_port(), [free_port(), free_port()]
        self.admin = [free_port(), free_port()]
        Process(folder, "nats", [binaries["nats"], "-js", "-sd", f"{folder}/nats", "-a", "127.0.0.1", "-p", self.nats])
        self.replicas = [None, None]
        for place in (0, 1):
            self.start(place)

    def start(self, place):
        own = environment() | {
            "HOOKGATE__REDIS__URL": "memory:",
            "HOOKGATE__NATS__URL": f"nats://127.0.0.1:{self.nats}",
            "HOOKGATE__SERVER__LISTEN": f"127.0.0.1:{self.ports[place]}",
            "HOOKGATE__ADMIN__LISTEN": f"127.0.0.1:{self.admin[place]}",
        }
        config = ["--config", ROOT / "config/default.toml", "--config", ROOT / "k8s/base/kubernetes.toml"]
        self.replicas[place] = Process(self.folder, f"hookgate-{place}", [self.binaries["hookgate"], *config], own)
        eventually(f"replica {place} is ready", lambda: self.ready(place))

    def ready(self, place):
        try:
            return exchange(self.admin[place], *request("GET", "/readyz", b""))[0] == 200
        except OSError:
            return False

    def signal(self, number, *places):
        for place in places:
            self.replicas[place].signal(number)

    def kill(self, *places):
        for place in places:
            self.replicas[place].kill()

    def batch(self):
        self.ids += 1
        return json.dumps([{"id": f"id-{os.getpid()}-{self.ids}"}]).encode()


def nginx(world, name, text, extra=""):
    """nginx with a file of k8s/ingress as its only server."""
    port, folder = free_port(), Path(world.folder, name)
    folder.mkdir()
    for place in world.ports:
        text = text.replace("server hookgate:80", f"server 127.0.0.1:{place}", 1)
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/etc/nginx/hookgate.d", f"{folder}/more")
    (folder / "hookgate.conf").write_text(text)
    if extra:
        (folder / "more").mkdir()
        (folder / "more/tls.conf").write_text(extra)
    (folder / "nginx.conf").write_text((ROOT / "tests/faults/nginx.conf").read_text())
    Process(folder, "nginx", [world.binaries["nginx"], "-p", folder, "-c", folder / "nginx.conf", "-e", "error.log"])
    eventually(f"{name} listens", lambda: listens(port))
    return port


def haproxy(world):
    port, folder = free_port(), Path(world.folder, "haproxy")
    folder.mkdir()
    text = (ROOT / "k8s/ingress/haproxy/haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{port}")
    for place, number in enumerate(world.ports):
        text = text.replace(f"hookgate-{place}:3000", f"127.0.0.1:{number}")
    (folder / "haproxy.cfg").write_text(text)
    Process(folder, "haproxy", [world.binaries["haproxy"], "-db", "-f", folder / "haproxy.cfg"])
    eventually("haproxy listens", lambda: listens(port))
    return port


def envoy(world):
    port, file = free_port(), Path(world.folder, "envoy.yaml")
    text = (ROOT / "k8s/ingress/envoy/envoy.yaml").read_text()
    text = text.replace("address: 0.0.0.0, port_value: 8080", f"address: 127.0.0.1, port_value: {port}")
    for place, number in enumerate(world.ports):
        text = text.replace(f"address: hookgate-{place}, port_value: 3000", f"address: 127.0.0.1, port_value: {number}")
    file.write_text(text)
    Process(world.folder, "envoy", [world.binaries["envoy"], "-c", file, "--disable-hot-restart", "--concurrency", 2])
    eventually("envoy listens", lambda: listens(port))
    return port


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def trials(world, report, name, port, refused):
    """Each failure and what the sender is told. Leaves both replicas as they were."""

    def expect(what, status, *asked, times=1, longest=LADDER):
        wrong = []
        for _ in range(times):
            got, took, answer = exchange(port, *(asked or request(body=world.batch())))
            if got != status or took > longest:
                wrong.append(f"{got} after {took:.1f} s, expected {status} within {longest} s: {answer[:200]!r}")
        report.line(f"{name}: {what}: {status}", wrong)

    expect("a batch", 200)
    expect("hookgate's own 400", 400, *request(body=b"{"))
    expect("hookgate's own 404", 404, *request(path="/nothing"))
    expect("hookgate's own 405", 405, *request("GET", body=b""))
    got, took, answer = exchange(port, *request(body=b" " * (17 << 20)))
    wrong = [] if got in refused and took <= LADDER else [f"{got} after {took:.1f} s: {answer[:200]!r}"]
    report.line(f"{name}: 17 MiB, which hookgate refuses before it has read them: one of {refused}", wrong)
    expect("a batch after that", 200)
    expect("60 kB", 200, *request(body=json.dumps([{"id": "long", "name": "x" * 60_000}]).encode()))
    world.kill(0)
    expect("one replica dead", 200, times=8)
    world.start(0)
    world.signal(signal.SIGSTOP, 1)
    expect("one replica frozen", 200, times=4)
    expect("one replica frozen, 60 kB", 200, *request(body=json.dumps([{"id": "longer", "name": "x" * 60_000}]).encode()), times=2)
    world.signal(signal.SIGSTOP, 0)
    expect("both frozen", 503)
    world.signal(signal.SIGCONT, 0, 1)
    world.kill(0, 1)
    expect("both dead", 503, times=3)
    world.start(0)
    world.start(1)
    expect("both back", 200, times=4)


def long_bodies(world, report, name, port):
    """A body that fits into no socket's buffer, where a replica reads nothing of it."""
    wrong = []
    world.signal(signal.SIGSTOP, 1)
    for number in range(4):
        body = json.dumps([{"id": f"{name}-{number}", "name": "x" * (15 << 20)}]).encode()
        got, took, answer = exchange(port, *request(body=body))
        if got != 200 or took > LADDER:
            wrong.append(f"{got} after {took:.1f} s: {answer[:200]!r}")
    world.signal(signal.SIGCONT, 1)
    report.line(f"{name}: one replica frozen, 15 MiB: 200", wrong)


def certificate(folder):
    key, cert = Path(folder, "tls.key"), Path(folder, "tls.crt")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.example.com"]
    command += ["-addext", "subjectAltName=DNS:hooks.example.com", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert


def main():
    arguments = argparse.ArgumentParser()
    for name in ("hookgate", "nats", "nginx", "haproxy", "envoy"):
        arguments.add_argument(f"--{name}", required=True)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder, vars(arguments.parse_args()))
        reference = (ROOT / "k8s/ingress/nginx/hookgate.conf").read_text()
        print("ingress: the deployed files under real nginx, HAProxy and Envoy")
        cert, tls = certificate(folder), free_port()
        extra = (ROOT / "k8s/ingress/nginx/tls.conf").read_text().replace("/run/secrets/tls", folder)
        port = nginx(world, "nginx", reference, extra.replace("listen 8443", f"listen 127.0.0.1:{tls}"))
        # hookgate says 413 early and reads on, but no more than of a body that it takes (16 MiB). Whoever still writes then
        # sees the answer or a broken connection: nginx makes two failed tries of that, HAProxy passes it on.
        trials(world, report, "nginx", port, (413, 503))
        long_bodies(world, report, "nginx", port)
        for what, asked in {
            "nginx's own 413, 65 MiB": request(body=b" " * (65 << 20)),
            "nginx's own 400, a head of 200 kB": request(more="".join(f"X-{n}: {'x' * 20_000}\r\n" for n in range(10))),
            "nginx's own 414, a path of 50 kB": request(path="/" + "x" * 50_000),
        }.items():
            got, _, answer = exchange(port, *asked)
            wrong = [] if got == 503 and "Retry-After" in answer else [f"{got}: {answer[:300]!r}"]
            report.line(f"nginx: {what}: 503 and Retry-After", wrong)
        got, _, answer = exchange(tls, *request(body=world.batch()), tls=ssl.create_default_context(cafile=cert))
        report.line("nginx: over TLS: 200", [] if got == 200 else [f"{got}: {answer[:200]!r}"])
        again = nginx(world, "again", (ROOT / "k8s/ingress/again/again.conf").read_text())
        for what, asked in {"a batch": request(), "65 MiB": request(body=b" " * (65 << 20)), "GET /": request("GET", "/", b"")}.items():
            got, _, answer = exchange(again, *asked)
            wrong = [] if got == 503 and "Retry-After" in answer else [f"{got}: {answer[:300]!r}"]
            report.line(f"again: {what}: 503 and Retry-After", wrong)
        trials(world, report, "haproxy", haproxy(world), (413, 503, None))
        port = envoy(world)
        trials(world, report, "envoy", port, (413, 503))
        long_bodies(world, report, "envoy", port)
        for what, asked in {
            "Envoy's own 413, 65 MiB": request(body=b" " * (65 << 20)),
            "Envoy's own 400, a head that is none": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b""),
            "Envoy's own 431, a head of 200 kB": request(more="".join(f"X-{n}: {'x' * 20_000}\r\n" for n in range(10))),
        }.items():
            got, _, answer = exchange(port, *asked)
            wrong = [] if got == 503 and "Retry-After" in answer.title() else [f"{got}: {answer[:300]!r}"]
            report.line(f"envoy: {what}: 503 and Retry-After", wrong)
        for process in Process.running[::-1]:
            process.kill()
    print(f"{report.passed} passed, {report.failed} failed")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
