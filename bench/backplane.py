#!/usr/bin/env python3
"""What the backplane's scripts cost at the engine: CPU of the server process per publish, and memory per channel.

In: a scenario; the scripts as the program has them (src/gateway/backplane/lua). Out: rows on standard output, and with
--save a dated page. A plain client speaks the engine's protocol in pipelines; subscribers are connections that read and
forget. CPU is the server's main thread from /proc/<pid>/schedstat, in nanoseconds, divided by publishes; cases are
interleaved within a repeat and medians taken over repeats.
"""
import argparse
import os
import pathlib
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import running

LUA = running.ROOT / "src/gateway/backplane/lua"
ENGINES = {"redis": "/usr/bin/redis-server", "valkey": str(running.ROOT / "tests/backplane/.valkey/valkey-server")}
ABOVE_NEVER = 1_000_000
# What a call costs that does nothing, and one that only numbers, keeps and publishes to one: no epochs, no repeats, no routing.
EMPTY = "#!lua\nreturn { 'a', 'b', 0 }"
PLAIN = """#!lua
local n = redis.call('HINCRBY', KEYS[1], 's', 1)
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[7], n .. '-0', 'd', ARGV[14])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
redis.call('PUBLISH', 'plain:1', ARGV[14])
return n
"""

# Engine work in the style of Centrifugo: a hash that counts, a stream of exact length, both with a time to live, a result kept
# under the publication's key, one PUBLISH to whoever has subscribed to the channel.
# KEYS: 1 hash, 2 stream, 3 result of the key (if there is one). ARGV: 1 payload, 2 publications kept, 3 for how long in s,
# 4 channel, 5 life of the hash in s, 6 epoch if there is none, 7 life of the key's result in s.
STYLE = """#!lua
if KEYS[3] then
    local was = redis.call('HMGET', KEYS[3], 'e', 's')
    if was[1] then
        return { was[2], was[1], '1' }
    end
end
local epoch = redis.call('HGET', KEYS[1], 'e')
if not epoch then
    epoch = ARGV[6]
    redis.call('HSET', KEYS[1], 'e', epoch)
end
local top = redis.call('HINCRBY', KEYS[1], 's', 1)
redis.call('EXPIRE', KEYS[1], ARGV[5])
if top == 1 then
    redis.call('DEL', KEYS[2])
end
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[2], top .. '-0', 'd', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('PUBLISH', ARGV[4], '__p1:' .. top .. ':' .. epoch .. '__' .. ARGV[1])
if KEYS[3] then
    redis.call('HSET', KEYS[3], 'e', epoch, 's', top)
    redis.call('EXPIRE', KEYS[3], ARGV[7])
end
return { top, epoch, '0' }
"""
WRITER = 7  # of the batches; any


def script(name):
    parts = {"publish": ["position", "spread", "publish"], "follow": ["position", "kept", "follow"]}[name]
    return "".join((LUA / f"{part}.lua").read_text() for part in parts)


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
    def __init__(self, name, core):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            ["taskset", "-c", core, ENGINES[name], "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--stream-node-max-bytes", "512", "--dir", self.folder.name],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.client = Client(self.port)
                self.client.ask("PING")
                break
            except OSError:
                time.sleep(0.02)
        self.readers = []

    def cpu_ns(self):
        pid = self.process.pid
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])

    def memory(self):
        info = self.client.ask("INFO", "memory").decode()
        return int(next(line for line in info.splitlines() if line.startswith("used_memory:")).split(":")[1])

    def subscribe(self, command, channels):
        """A connection that holds these channels; what comes is read and forgotten."""
        reader = Client(self.port)
        for begin in range(0, len(channels), 1000):
            part = channels[begin:begin + 1000]
            reader.socket.sendall(packed(command, *part))
            for _ in part:
                reader.reply()
        self.readers.append(reader.socket)
        return reader

    def end(self):
        self.process.kill()
        self.process.wait()
        for reader in self.readers:
            reader.close()


def publish_command(sha, keys, channel, payload, batch, number, kept, above):
    """A call of the program's publish script with `batch` equal publications; `keys` are hash, stream, interest set."""
    tail = f"{len(channel)}" + f" {len(payload)}" * batch + f"\n{channel}"
    return packed("EVALSHA", sha, len(keys), *keys, "abcdefabcdef", 0, "1k.1", 604_800_000, "p1", f"{WRITER:08x}{number:012x}",
                  kept, 600_000, 300_000, "ringway:{b}i", "ringway:{b}b", above, tail, *[payload] * batch)


def style_command(sha, channel, payload, kept, key=None):
    """A call of the script in Centrifugo's style."""
    keys = [f"style:meta:{channel}", f"style:stream:{channel}"] + ([f"style:result:{channel}:{key}"] if key else [])
    return packed("EVALSHA", sha, len(keys), *keys, payload, kept, 600, f"style:{channel}", 604_800, "abcdefgh", 300)


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


class Bench:
    def __init__(self, engine, scenario, drain):
        self.engine, self.scenario = engine, scenario
        client = engine.client
        self.publish = client.ask("SCRIPT", "LOAD", script("publish"))
        self.follow = client.ask("SCRIPT", "LOAD", script("follow"))
        self.empty, self.plain, self.style = [client.ask("SCRIPT", "LOAD", text) for text in (EMPTY, PLAIN, STYLE)]
        self.number = 0
        for node in range(1, 9):
            reader = engine.subscribe("SSUBSCRIBE", ["ringway:{b}i%d" % (1000 + node), "ringway:{b}b"])
            drain.selector.register(reader.socket, selectors.EVENT_READ)
            plain = engine.subscribe("SUBSCRIBE", [f"plain:{k}" for k in (1, 3, 8) if node <= k])
            drain.selector.register(plain.socket, selectors.EVENT_READ)
            # A node of Centrifugo subscribes to each channel.
            channels = [f"style:k{k}:{n}" for k in (1, 3, 8) if node <= k for n in range(scenario["channels"])]
            style = engine.subscribe("SUBSCRIBE", channels)
            drain.selector.register(style.socket, selectors.EVENT_READ)

    def keys(self, channel):
        return [f"ringway:{{b}}{letter}{channel}" for letter in "msn"]

    def publish_command(self, channel, batch, key, history, above, sha=None):
        self.number += 1
        payload = b"x" * self.scenario["payload_bytes"]
        keys = self.keys(channel)
        if key:
            keys.append(f"ringway:{{b}}k{len(channel)}:{channel}:{self.number}")
        return publish_command(sha or self.publish, keys, channel, payload, batch, self.number, history, above)

    def style_command(self, channel, key):
        self.number += 1
        payload = b"x" * self.scenario["payload_bytes"]
        return style_command(self.style, channel, payload, self.scenario["history_size"], self.number if key else None)

    def follow_command(self, channel, generation):
        return packed("EVALSHA", self.follow, 3, *self.keys(channel), "abcdefabcdef", 0, "1k.1", 604_800_000, generation,
                      0, "", "", "ringway:{b}i")

    def cases(self):
        """Name, commands of one repeat, publications of one command."""
        scenario = self.scenario
        count, channels = scenario["publishes"], scenario["channels"]
        payload = b"x" * scenario["payload_bytes"]
        for k in (0, 1, 3, 8):
            yield f"bare PUBLISH to {k}", lambda k=k: [packed("PUBLISH", f"plain:{k}", payload)] * count, 1
        history = scenario["history_size"]

        def scripted(name, k, batch=1, key=False, kept=history, above=ABOVE_NEVER, sha=None):
            def commands():
                return [self.publish_command(f"k{k}:{n % channels}", batch, key, kept, above, sha)
                        for n in range(max(1, count // batch))]
            return name, commands, batch

        yield scripted("a script that does nothing", "none", sha=self.empty)
        yield scripted("a script that only numbers, keeps and publishes to 1", "plain", sha=self.plain)
        for k, key in ((1, False), (3, False), (8, False), (1, True)):
            name = f"Centrifugo-style script, {k} node{'s' if k > 1 else ''}{', key' if key else ''}"
            yield name, lambda k=k, key=key: [self.style_command(f"k{k}:{n % channels}", key) for n in range(count)], 1
        for k in (0, 1, 3, 8):
            yield scripted(f"script, {k} node{'' if k == 1 else 's'}", k)
        yield scripted("script, 8 nodes, one bucket publish", 8, above=2)
        yield scripted("script, 1 node, key", 1, key=True)
        yield scripted("script, 1 node, nothing kept", 1, kept=0)
        yield scripted("script, 1 node, batch of 8", 1, batch=8)
        yield scripted("script, 1 node, batch of 64", 1, batch=64)

    def prepare(self):
        follows = [self.follow_command(f"k{k}:{n}", 1000 + node)
                   for k in (1, 3, 8) for n in range(self.scenario["channels"]) for node in range(1, k + 1)]
        self.engine.client.pipeline(follows, self.scenario["pipeline"])

    def measure(self, repeats):
        self.prepare()
        results = {}
        for _ in range(repeats):
            for name, commands, batch in self.cases():
                commands = commands()
                before = self.engine.cpu_ns()
                self.engine.client.pipeline(commands, self.scenario["pipeline"])
                spent_us = (self.engine.cpu_ns() - before) / 1000
                one = results.setdefault(name, {"us_per_command": [], "us_per_publication": []})
                one["us_per_command"].append(round(spent_us / len(commands), 2))
                one["us_per_publication"].append(round(spent_us / len(commands) / batch, 2))
        return results


def memory(name, scenario):
    """Bytes of the engine's memory per channel."""
    drain, engine = Drain(), Engine(name, scenario["server_core"])
    try:
        bench = Bench(engine, scenario, drain)
        rows = {}
        for label, count, publishes in (("one interested node, never published", scenario["memory_channels"], 0),
                                        ("the same, one publication of 200 B kept", scenario["memory_history_channels"], 1)):
            before = engine.memory()
            for begin in range(0, count, 10_000):
                names = [f"{'seen' if publishes else 'idle'}:{n:07}" for n in range(begin, min(begin + 10_000, count))]
                engine.client.pipeline([bench.follow_command(one, 1001) for one in names], scenario["pipeline"])
                if publishes:
                    commands = [bench.publish_command(one, 1, False, scenario["history_size"], ABOVE_NEVER) for one in names]
                    engine.client.pipeline(commands, scenario["pipeline"])
            rows[label] = {"channels": count, "bytes_per_channel": round((engine.memory() - before) / count)}
        return rows
    finally:
        drain.is_over = True
        engine.end()


def page(known, runs):
    lines = ["# The backplane's scripts at the engine", "", running.machine(known), "",
             f"{known['scenario']['payload_bytes']} B per publication, {known['scenario']['channels']} channels, history "
             f"{known['scenario']['history_size']}, {known['scenario']['pipeline']} commands in a pipeline. CPU of the server's "
             "main thread per publication; medians over repeats, with the smallest and the largest. The machine is shared: ratios "
             "within a run count.", ""]
    for engine, run in runs.items():
        lines += [f"## {engine} {known['versions'][engine]}", "", "| case | µs per publication | beside the script that only numbers |",
                  "|---|---|---|"]
        bare = statistics.median(run["cpu"]["a script that only numbers, keeps and publishes to 1"]["us_per_publication"])
        for name, result in run["cpu"].items():
            each = result["us_per_publication"]
            lines.append(f"| {name} | {statistics.median(each):.2f} ({min(each):.2f}, {max(each):.2f}) | "
                         f"{statistics.median(each) / bare:.2f}× |")
        lines += ["", "| memory | channels | bytes of the engine per channel |", "|---|---|---|"]
        lines += [f"| {label} | {row['channels']} | {row['bytes_per_channel']} |" for label, row in run["memory"].items()]
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="backplane")
    parser.add_argument("--engines", default="redis,valkey")
    running.add_arguments(parser, "backplane")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    os.sched_setaffinity(0, {scenario["client_core"]})
    versions, runs = {}, {}
    for name in arguments.engines.split(","):
        versions[name] = running.output_of(ENGINES[name], "--version").split("v=")[-1].split()[0]
        drain = Drain()
        engine = Engine(name, scenario["server_core"])
        try:
            cpu = Bench(engine, scenario, drain).measure(arguments.repeats)
        finally:
            drain.is_over = True
            engine.end()
        runs[name] = {"cpu": cpu, "memory": memory(name, scenario)}
    known = running.facts(scenario, arguments, versions)
    text = page(known, runs)
    print(text)
    if arguments.save:
        running.save("backplane", known, runs, text)


if __name__ == "__main__":
    main()
