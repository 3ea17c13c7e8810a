"""What the comparisons of several nodes share: child processes with a log, gateways on one engine, what their threads used.

In: a folder for logs and configuration; a configuration file of bench/scenarios; the port of a Redis or Valkey server.
Out: running processes, which are ended by their pid; numbers of /proc and /metrics.
"""
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import running
from running import BENCH

LOW_PORT = 10_000


def low_port(taken=set()):
    """A free port below those of outgoing connections: a node comes back to it while clients connect from everywhere."""
    below = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    span = below - LOW_PORT
    for step in range(span):
        port = LOW_PORT + (os.getpid() * 7919 + step) % span
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in taken:
            taken.add(port)
            return port
    sys.exit("no port is free")


class Process:
    """A child with a log file; ended by its pid."""

    def __init__(self, folder, name, command):
        self.name, self.command, self.log = name, [str(part) for part in command], folder / f"{name}.log"
        self.start()

    def start(self):
        with self.log.open("a") as log:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def until(self, what, condition, within=running.READY_S):
        end = time.monotonic() + within
        while not condition():
            if self.child.poll() is not None or time.monotonic() > end:
                sys.exit(f"{self.name}: not {what} within {within} s\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def end(self, how=signal.SIGTERM, within=120):
        if self.child.poll() is None:
            self.child.send_signal(how)
        try:
            return self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            sys.exit(f"{self.name}: did not end within {within} s\n{self.log.read_text()[-3000:]}")

    def kill(self):
        """Ends it if it still runs, whatever it does."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s*(\d+) kB", status).group(1)) * 1024


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def redis(folder, program="redis-server", name="redis"):
    """A server that keeps nothing on disk; returns it and its port."""
    port = low_port()
    server = Process(folder, name, [program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                                    "--dir", folder, "--stream-node-max-bytes", "512",
                                    "--client-output-buffer-limit", "pubsub 512mb 256mb 60"])
    server.until("listening", lambda: listens(port))
    return server, port


class Failover:
    """A primary with replicas, and three Sentinels that promote one when the primary is gone."""

    NAME = "ringway"

    def __init__(self, folder, started, replicas=2, down_after_ms=5000):
        """`started` gets every process as soon as it runs."""
        self.servers, self.sentinels, first = {}, {}, None
        for number in range(1 + replicas):
            place = folder / f"redis-{number}"
            place.mkdir()
            server, port = redis(place)
            started.append(server)
            self.servers[port] = server
            first = first or port
            if port != first:
                self.ask(port, "REPLICAOF", "127.0.0.1", first)
        for number in range(3):
            port, file = low_port(), folder / f"sentinel-{number}.conf"
            file.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {self.NAME} 127.0.0.1 {first} 2\n"
                            f"sentinel down-after-milliseconds {self.NAME} {down_after_ms}\n"
                            f"sentinel failover-timeout {self.NAME} 5000\nsentinel parallel-syncs {self.NAME} 1\n")
            sentinel = Process(folder, f"sentinel-{number}", ["redis-server", file, "--sentinel"])
            started.append(sentinel)
            sentinel.until("listening", lambda: listens(port))
            self.sentinels[port] = sentinel
        self.until_whole()

    def settings(self):
        """Of a node's configuration."""
        addresses = ", ".join(f'"127.0.0.1:{port}"' for port in self.sentinels)
        return {"engine": '"redis"', "mode": '"sentinel"', "addresses": f"[{addresses}]", "sentinel_name": f'"{self.NAME}"'}

    def primary(self):
        said = self.ask(next(iter(self.sentinels)), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
        return int(said.split()[1])

    def fail_over(self):
        """Kills the primary, and waits until another server is one; seconds."""
        old, began = self.primary(), time.monotonic()
        self.servers[old].kill()
        until(lambda: self.primary() != old and "role:master" in self.ask(self.primary(), "INFO", "replication"),
              "no other primary")
        return time.monotonic() - began

    def until_whole(self):
        """Starts who was killed, and waits until everybody follows the primary."""
        for server in self.servers.values():
            if server.child.poll() is not None:
                server.start()
        followers = f"connected_slaves:{len(self.servers) - 1}"
        synced = lambda port: port == self.primary() or "master_link_status:up" in self.ask(port, "INFO", "replication")
        until(lambda: followers in self.ask(self.primary(), "INFO", "replication") and all(map(synced, self.servers)),
              "the replicas do not follow")

    @staticmethod
    def ask(port, *words):
        return running.output_of("redis-cli", "-p", str(port), *map(str, words))


def until(condition, otherwise, within=60):
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{otherwise} within {within} s")
        time.sleep(0.05)


class Node:
    """One gateway: `settings` are lines in front of the configuration file, by section; a node with an engine's port shares
    its channels over it."""

    program = None  # another build of the gateway than the one that was just made

    def __init__(self, folder, name, template, settings, redis_port=None):
        self.name, self.ports = name, {key: low_port() for key in ("client", "control", "ingest")}
        sections = {section: dict(values) for section, values in settings.items()}
        for key, port in self.ports.items():
            sections.setdefault(key, {})["listen"] = f"\"127.0.0.1:{port}\""
        if redis_port:
            sections.setdefault("node", {})["name"] = f"\"{name}\""
            sections.setdefault("backplane", {}).update(
                engine='"redis"', mode='"single"', addresses=f"[\"127.0.0.1:{redis_port}\"]")
        text = (BENCH / "scenarios" / template).read_text()
        for section, values in sorted(sections.items()):
            lines = "".join(f"{key} = {value}\n" for key, value in values.items())
            if section == "":
                text = lines + text
            elif f"[{section}]\n" in text:
                text = text.replace(f"[{section}]\n", f"[{section}]\n{lines}", 1)
            else:
                text = re.sub(r"(?m)^\[", lambda _: f"[{section}]\n{lines}\n[", text, count=1)
        file = folder / f"{name}.toml"
        file.write_text(text)
        self.process = Process(folder, name, [self.program or running.programs() / "ringway", "--dev", "--config", file])
        self.wait_ready(1)

    def wait_ready(self, times):
        self.process.until("ready", lambda: self.process.log.read_text().count("ringway ready ") >= times)
        self.times = times

    def restart(self):
        self.process.start()
        self.wait_ready(self.times + 1)

    @property
    def pid(self):
        return self.process.child.pid

    def url(self):
        return f"ws://127.0.0.1:{self.ports['client']}/connection/websocket"

    def metrics(self):
        """The numbers by name, those of all shards and labels added up."""
        return running.metrics(f"control=127.0.0.1:{self.ports['control']}")
