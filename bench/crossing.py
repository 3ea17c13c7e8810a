#!/usr/bin/env python3
"""Counts the messages that cross the engine for each publish, with real nodes: one in, one out to each interested node.

In: bench/scenarios/crossing.toml, the built programs, redis-server. Out: tables, and with --save a dated pair of files in
bench/results. Exit code 2 when a count is not the one that must be.

For each number N of nodes and each k of 0 to N, a channel has one subscriber at each of k nodes; the last node publishes to
it over its HTTP API, the next publication when the last one is acknowledged. Counted at the engine (INFO commandstats): script
calls, and SPUBLISH commands, which the script makes. Counted at the nodes (/metrics): messages that came in their inboxes.
Counted at the subscribers: publications. Up to max(N / 3, 2) interested nodes each has a message of its own; over that it
is one message for the whole bucket, which every node hears. Then some channels are published to over ingest as fast as
acknowledgements come: publications that wait for one channel travel as a batch, one script call each.
"""
import argparse
import base64
import http.client
import json
import os
import pathlib
import re
import select
import socket
import subprocess
import sys
import tempfile
import time

import fleet
import running
from engines import Client

# Nodes publish their numbers ten times a second.
SETTLE_S = 0.4
WAIT_S = 20
THRESHOLD_MIN, THRESHOLD_SHARE = 2, 3
# A subscriber here reads slower than a node publishes in batches.
SETTINGS = {"": {"shards": 1}, "limits": {"outbox_bytes_max": 64 << 20}}


class Subscriber:
    """A client of one node, subscribed to one channel; counts publications."""

    def __init__(self, node, channel):
        self.socket = socket.create_connection(("127.0.0.1", node.ports["client"]))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET /connection/websocket HTTP/1.1\r\nHost: ringway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        self.bytes, self.publications = b"", 0
        while b"\r\n\r\n" not in self.bytes:
            self.read(WAIT_S)
        head, self.bytes = self.bytes.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            sys.exit(f"{node.name}: {head.decode()}")
        commands = [{"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": channel}}]
        self.send("\n".join(json.dumps(command) for command in commands).encode())
        self.answers = {}
        self.until(lambda: 2 in self.answers, f"the subscribe to {channel} at {node.name}")
        if "error" in self.answers[2]:
            sys.exit(f"{node.name}: {self.answers[2]}")

    def send(self, payload):
        """One masked text frame; the mask is zero."""
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        self.socket.sendall(b"\x81" + length + bytes(4) + payload)

    def read(self, wait_s):
        if select.select([self.socket], [], [], wait_s)[0]:
            got = self.socket.recv(1 << 18)
            if not got:
                sys.exit("a node has closed a subscriber")
            self.bytes += got
            return True
        return False

    def take_frames(self):
        got, at = self.bytes, 0
        while len(got) >= at + 2:
            length, body = got[at + 1] & 0x7f, at + 2
            if length >= 126:
                body += 2 if length == 126 else 8
                length = int.from_bytes(got[at + 2:body], "big")
            if len(got) < body + length:
                break
            if got[at] & 0x0f == 1:
                self.take_message(got[body:body + length])
            at = body + length
        self.bytes = got[at:]

    def take_message(self, message):
        for line in message.split(b"\n"):
            if line == b"{}":
                self.send(b"{}")
            elif line.startswith(b'{"push"'):
                self.publications += line.count(b'"pub":{')
            else:
                answer = json.loads(line)
                self.answers[answer["id"]] = answer

    def until(self, condition, what):
        end = time.monotonic() + WAIT_S
        while not condition():
            self.read(0.05)
            self.take_frames()
            if time.monotonic() > end:
                sys.exit(f"{what} did not come within {WAIT_S} s ({self.publications} publications)")

    def all_there_is(self):
        while self.read(0):
            self.take_frames()
        return self.publications


class Counters:
    """What the engine and the nodes have counted until now."""

    def __init__(self, engine, nodes):
        time.sleep(SETTLE_S)
        self.at = time.monotonic()
        stats = engine.ask("INFO", "all").decode()
        calls = lambda command: int(found.group(1)) if (found := re.search(rf"cmdstat_{command}:calls=(\d+)", stats)) else 0
        total = lambda name: int(re.search(rf"^{name}:(\d+)", stats, re.M).group(1))
        self.values = {"scripts": calls("evalsha"), "spublish": calls("spublish"), "publish": calls("publish"),
                       "bytes_in": total("total_net_input_bytes"), "bytes_out": total("total_net_output_bytes")}
        for number, node in enumerate(nodes):
            found = node.metrics()
            self.values[f"heard {number}"] = int(found["ringway_backplane_feed_messages_total"])
            self.values["batches"] = self.values.get("batches", 0) + int(found["ringway_fleet_batches_total"])

    def since(self, before):
        return {name: value - before.values[name] for name, value in self.values.items()}


class Fleet:
    def __init__(self, folder, count):
        self.processes, self.nodes = [], []
        server, port = fleet.redis(folder)
        self.processes.append(server)
        for number in range(count):
            node = fleet.Node(folder, f"n{number + 1}", "fleet-ringway.toml", SETTINGS, port)
            self.nodes.append(node)
            self.processes.append(node.process)
        self.engine = Client(port)
        self.publisher = http.client.HTTPConnection("127.0.0.1", self.nodes[-1].ports["control"], timeout=WAIT_S)

    def end(self):
        for process in self.processes:
            process.kill()

    def publish(self, channel, data):
        self.publisher.request("POST", "/api/publish", json.dumps({"channel": channel, "data": data}),
                               {"X-API-Key": "dev", "Content-Type": "application/json"})
        answer = self.publisher.getresponse().read()
        if b'"result"' not in answer:
            sys.exit(f"{channel}: {answer.decode()}")

    def publish_fast(self, channel_prefix, count, payload_bytes, subscribers):
        """Over ingest; the subscribers read meanwhile, as a node gives up on those who do not."""
        ingest = f"127.0.0.1:{self.nodes[-1].ports['ingest']}"
        command = [running.programs() / "ringway-loadgen", "ingest", "--json", "-n", 1, "-m", 1, "--channel-prefix", channel_prefix,
                   "--count", count, "--payload-bytes", payload_bytes, "--ingest", ingest]
        load = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        while load.poll() is None:
            for subscriber in subscribers:
                subscriber.all_there_is()
            time.sleep(0.001)
        report = load.stdout.read()
        if load.returncode != 0:
            sys.exit(f"the load generator failed: {command}\n{report}")
        return json.loads(report)["acknowledged"]


def check(problems, where, what, found, expected):
    if found != expected:
        problems.append(f"{where}: {what} {found}, expected {expected}")


def one_case(running_fleet, scenario, count, interested, batched, problems):
    """One channel with so many interested nodes; returns what crossed the engine."""
    kind = "b" if batched else "k"
    prefix = f"kept:{kind}{interested}-"
    channel, nodes = f"{prefix}0", running_fleet.nodes
    subscribers = [Subscriber(node, channel) for node in nodes[:interested]]
    before = Counters(running_fleet.engine, nodes)
    idle = Counters(running_fleet.engine, nodes)
    begun, publications = time.monotonic(), scenario["batched" if batched else "publishes"]
    if batched:
        publications = running_fleet.publish_fast(prefix, publications, scenario["payload_bytes"], subscribers)
    else:
        data = "x" * (scenario["payload_bytes"] - 2)
        for _ in range(publications):
            running_fleet.publish(channel, data)
    for subscriber in subscribers:
        subscriber.until(lambda: subscriber.publications >= publications, f"what was published to {channel}")
    after = Counters(running_fleet.engine, nodes)
    crossed, at_rest = after.since(idle), idle.since(before)
    where = f"{count} nodes, {interested} interested{', batches' if batched else ''}"
    calls = crossed["batches"] if batched else publications
    bucket = interested > max(count // THRESHOLD_SHARE, THRESHOLD_MIN)
    check(problems, where, "script calls", crossed["scripts"], calls)
    check(problems, where, "batches", crossed["batches"], calls)
    check(problems, where, "SPUBLISH", crossed["spublish"], calls * (1 if bucket else interested))
    check(problems, where, "PUBLISH", crossed["publish"], 0)
    for number in range(count):
        hears = bucket or number < interested
        check(problems, where, f"messages in the inboxes of node {number + 1}", crossed[f"heard {number}"], calls if hears else 0)
    for number, subscriber in enumerate(subscribers):
        check(problems, where, f"publications at the subscriber of node {number + 1}", subscriber.all_there_is(), publications)
        subscriber.socket.close()
    rest_s, seconds = idle.at - before.at, after.at - idle.at
    heard = sum(crossed[f"heard {number}"] for number in range(count))
    net = {way: (crossed[f"bytes_{way}"] - at_rest[f"bytes_{way}"] * seconds / rest_s) / publications for way in ("in", "out")}
    return {"nodes": count, "interested": interested, "batched": batched, "bucket": bucket, "publications": publications,
            "scripts": crossed["scripts"], "spublish": crossed["spublish"], "heard": heard,
            "bytes_in_per_publication": round(net["in"]), "bytes_out_per_publication": round(net["out"]),
            "seconds": round(time.monotonic() - begun, 2)}


def run(scenario, count):
    problems, rows = [], []
    with tempfile.TemporaryDirectory(prefix="ringway-crossing-") as name:
        running_fleet = None
        try:
            running_fleet = Fleet(pathlib.Path(name), count)
            cases = [(interested, False) for interested in range(count + 1)]
            cases += [(interested, True) for interested in scenario["batched_interested"] if interested <= count]
            for interested, batched in cases:
                rows.append(one_case(running_fleet, scenario, count, interested, batched, problems))
                print(rows[-1], file=sys.stderr, flush=True)
        finally:
            if running_fleet:
                running_fleet.end()
    return rows, problems


def table(rows):
    lines = ["| nodes | interested | publications | script calls, each | SPUBLISH, per call | of them to the bucket |"
             " messages that nodes received, per call | bytes to the engine, per publication | bytes from it |",
             "| ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |"]
    for row in rows:
        per_call = lambda value: f"{value / row['scripts']:g}"
        lines.append(f"| {row['nodes']} | {row['interested']} | {row['publications']:,}{' in batches' if row['batched'] else ''}"
                     f" | {row['scripts'] / row['publications']:.4g} | {per_call(row['spublish'])} | {'yes' if row['bucket'] else ''}"
                     f" | {per_call(row['heard'])} | {row['bytes_in_per_publication']:,} | {row['bytes_out_per_publication']:,} |")
    return "\n".join(lines)


def page(known, text, problems):
    scenario = known["scenario"]
    verdict = "Every count is the one that must be." if not problems else "**Wrong counts:** " + "; ".join(problems)
    return f"""# Messages across the engine per publish, {known['date']}

Real nodes of one shard on one Redis; {scenario['payload_bytes']} B per publication; the last node publishes. One at a time: the HTTP API,
the next one behind the acknowledgement. In batches: one ingest connection, as fast as acknowledgements come; a channel has one
batch under way. Script calls and SPUBLISH are the engine's own counts, messages received are the nodes', and each subscriber must
have every publication once. Over max(nodes / 3, 2) interested nodes one message goes to the bucket, which every node
hears. Bytes are TCP payload as the engine counts it, acknowledgements included, less what came and went at rest.

{verdict}

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="crossing", help="name of a file in bench/scenarios")
    running.add_arguments(parser, "crossing")
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    rows, problems = [], []
    for count in scenario["nodes"]:
        more, wrong = run(scenario, count)
        rows += more
        problems += wrong
    versions = {"redis": running.output_of("redis-server", "--version").split("v=")[-1].split()[0]}
    known = running.facts(scenario, arguments, versions)
    text = table(rows)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, rows, page(known, text, problems))
    if problems:
        print("wrong counts:\n" + "\n".join(problems), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
