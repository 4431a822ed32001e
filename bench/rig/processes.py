"""Processes that the rig starts: each dies with it, and says what it used."""
import os
import pathlib
import signal
import socket
import subprocess
import time

LOOPBACK = "127.0.0.1"
# Where the stores are, and how a process is started there: elsewhere only behind a slow network (net.py).
STORES_HOST = os.environ.get("BENCH_STORES_HOST", LOOPBACK)
STORES_START = ["ip", "netns", "exec", os.environ["BENCH_STORES_NS"]] if "BENCH_STORES_NS" in os.environ else []


class RigError(Exception):
    """Something the rig needs did not happen; the message says what to do."""


def free_port():
    """A port that nobody has at this moment."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]


class Process:
    """A server of ours, its log beside its data."""

    running = []                       # all of them, oldest first

    def __init__(self, name, command, folder, env=None):
        self.name, self.log = name, pathlib.Path(folder) / f"{name}.log"
        self.begun = time.monotonic()
        with self.log.open("ab") as log:
            # Dies with the rig, even if that is killed; not in reach of the terminal's Ctrl-C, so that the rig
            # decides on the order.
            self.child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], cwd=folder,
                                          env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          start_new_session=True)
        Process.running.append(self)

    def cpu(self):
        """CPU seconds of all its threads, ended ones too: the process's own clock, which counts nanoseconds.

        It is what utime and stime in /proc/PID/stat are made of, without their rounding to 10 ms.
        """
        return time.clock_gettime((~self.child.pid << 3) | 2)

    def forget_peak(self):
        """Lets the peak of memory begin anew."""
        pathlib.Path(f"/proc/{self.child.pid}/clear_refs").write_text("5", encoding="ascii")

    def peak_mib(self):
        """The most memory it has had resident since then."""
        for line in pathlib.Path(f"/proc/{self.child.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RigError(f"{self.name} has no VmHWM: it has ended, see its log:\n{self.tail()}")

    def tail(self):
        """The end of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])

    def wait_until(self, condition, what, seconds=20):
        """Until the condition holds; an error if the process ends before or takes longer."""
        end = time.monotonic() + seconds
        while not condition():
            if self.child.poll() is not None:
                raise RigError(f"{self.name} ended with {self.child.returncode} before {what}:\n{self.tail()}")
            if time.monotonic() > end:
                raise RigError(f"{self.name}: not {what} within {seconds} s:\n{self.tail()}")
            time.sleep(0.001)

    def stop(self):
        """SIGTERM, and SIGKILL for who is not gone 10 s later."""
        if self in Process.running:
            Process.running.remove(self)
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait(10)


def stop_all():
    """Youngest first: servers settle what they have in hand while their stores are still there."""
    for process in reversed(list(Process.running)):
        process.stop()


def accepts(port, host=LOOPBACK):
    """Whether somebody listens on a port."""
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def environment(**more):
    """This process's environment without what somebody has set for a hookgate of their own."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("HOOKGATE__")}, **more}
