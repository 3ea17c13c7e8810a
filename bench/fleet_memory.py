#!/usr/bin/env python3
"""What a channel with one subscriber costs a node and the engine: a million of them over two nodes, and over one alone.

In: bench/scenarios/fleet_memory.toml, the built programs, redis-server. Out: a table, and with --save a dated pair of files
in bench/results.

The same connections twice, on fresh processes: once without subscriptions, once with all of them. The difference of the
nodes' resident memory, divided by channels, is what a channel with its subscription costs a node; that of the engine's
used_memory what it costs the engine. With `publish` each channel then gets one publication, and is read again. A node without backplane
holds as many channels and connections as each node of the fleet does. Kernel memory is not in it.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import fleet
import running
from engines import Client

WHOLE_S = 600  # longest wait for all subscriptions


class Setup:
    """Fresh nodes, and an engine if they share one."""

    def __init__(self, folder, scenario, shared):
        self.folder, self.scenario, self.processes, self.nodes, self.engine, self.load = folder, scenario, [], [], None, None
        self.part = 1 if shared else scenario["nodes"]  # of all channels and connections
        port = None
        try:
            if shared:
                server, port = fleet.redis(folder)
                self.processes.append(server)
                self.engine = Client(port)
            for number in range(scenario["nodes"] if shared else 1):
                node = fleet.Node(folder, f"n{number + 1}", "fleet-ringway.toml", {"": {"shards": 1}}, port)
                self.nodes.append(node)
                self.processes.append(node.process)
        except BaseException:
            self.end()
            raise

    def end(self):
        for process in ([self.load] if self.load else []) + self.processes:
            process.kill()

    def connect(self, namespace, subscribed):
        """All connections, with all their subscriptions or none; returns how many seconds that took."""
        channels, connections = (self.scenario[name] // self.part for name in ("channels", "connections"))
        begun = time.monotonic()
        self.load = fleet.Process(self.folder, "load", [
            running.programs() / "ringway-loadgen", "connect", "--json", "-n", connections, "-m", channels,
            "-s", channels // connections if subscribed else 0, "--channel-prefix", f"{namespace}:channel-", "--hold-s", 86400,
            "--url", ",".join(node.url() for node in self.nodes), "--stall-s", 120])

        def whole():
            time.sleep(0.2)
            found = [node.metrics() for node in self.nodes]
            total = lambda name: sum(one[name] for one in found)
            return (total("ringway_connections_open") == connections
                    and total("ringway_subscriptions_open") == (channels if subscribed else 0))

        self.load.until("whole", whole, WHOLE_S)
        return time.monotonic() - begun

    def publish(self, namespace):
        """One publication to each channel; returns publications per second."""
        channels = self.scenario["channels"] // self.part
        command = [running.programs() / "ringway-loadgen", "ingest", "--json", "-n", 4, "-m", channels, "--count", channels,
                   "--channel-prefix", f"{namespace}:channel-", "--payload-bytes", self.scenario["payload_bytes"],
                   "--rate", self.scenario["publish_rate"], "--ingest", f"127.0.0.1:{self.nodes[0].ports['ingest']}", "--stall-s", 60]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=running.RUN_S)
        if done.returncode != 0:
            sys.exit(f"the load generator failed: {command}\n{done.stdout}\n{done.stderr}")
        return json.loads(done.stdout)["acknowledged_per_s"]

    def read(self):
        """Bytes of each node and of the engine, at rest."""
        time.sleep(self.scenario["rest_s"])
        found = {"nodes": [node.process.resident_bytes() for node in self.nodes]}
        if self.engine:
            info = self.engine.ask("INFO", "memory").decode()
            found["engine"] = int(next(line for line in info.splitlines() if line.startswith("used_memory:")).split(":")[1])
        return found


def measure(scenario, namespace, shared):
    readings = {}
    for subscribed in (False, True):
        with tempfile.TemporaryDirectory(prefix="ringway-fleet-memory-") as folder:
            setup = Setup(pathlib.Path(folder), scenario, shared)
            try:
                readings["empty"] = setup.read()
                seconds = setup.connect(namespace, subscribed)
                readings["subscribed" if subscribed else "connected"] = setup.read()
                if subscribed:
                    readings["seconds"] = round(seconds, 1)
                    if scenario["publish"]:
                        readings["published_per_s"] = round(setup.publish(namespace))
                        readings["published"] = setup.read()
            finally:
                setup.end()
    return {"namespace": namespace, "shared": shared, **readings, **per_channel(scenario, readings, shared)}


def per_channel(scenario, readings, shared):
    """Bytes per channel and node, per channel of the engine, per connection without subscriptions."""
    each = scenario["channels"] // scenario["nodes"]  # of one node, with and without backplane
    nodes = lambda moment: sum(readings[moment]["nodes"]) / len(readings[moment]["nodes"])
    found = {"node_bytes": round((nodes("subscribed") - nodes("connected")) / each),
             "connection_bytes": round((nodes("connected") - nodes("empty")) / (scenario["connections"] // scenario["nodes"]))}
    if scenario["publish"]:
        found["node_bytes_published"] = round((nodes("published") - nodes("connected")) / each)
    if shared:
        engine = lambda moment: (readings[moment]["engine"] - readings["connected"]["engine"]) / scenario["channels"]
        found["engine_bytes"] = round(engine("subscribed"))
        if scenario["publish"]:
            found["engine_bytes_published"] = round(engine("published"))
    return found


def table(rows):
    lines = ["| namespace | node | bytes of a node per channel with one subscriber | with one publication each | bytes of the engine per channel"
             " | with one publication each | bytes per connection without subscriptions | subscribed in, s | published/s |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        show = lambda key: f"{row[key]:,}" if key in row else "–"
        lines.append(f"| {row['namespace']} | {'with backplane' if row['shared'] else 'alone'} | **{show('node_bytes')}** | {show('node_bytes_published')}"
                     f" | {show('engine_bytes')} | {show('engine_bytes_published')} | {show('connection_bytes')} | {show('seconds')}"
                     f" | {show('published_per_s')} |")
    return "\n".join(lines)


def page(known, text):
    scenario = known["scenario"]
    return f"""# Memory of {scenario['channels']:,} channels with one subscriber each, {known['date']}

{scenario['nodes']} nodes of one shard on one Redis, {scenario['connections']:,} connections with {scenario['channels'] // scenario['connections']} subscriptions each; alone: one node
without backplane with {scenario['channels'] // scenario['nodes']:,} channels and {scenario['connections'] // scenario['nodes']:,} connections. Per channel: resident memory of a node, less that of fresh nodes
with the same connections and no subscription, divided by the node's channels; the subscription is in it. The engine's is used_memory, divided by all
channels. Published: {scenario['payload_bytes']} B to each channel, once; `plain` keeps nothing, `kept` up to 100 publications. Behind {scenario['rest_s']} s
of rest; kernel memory is not in it. Publishing is over ingest at the first node, subscribers receiving meanwhile, everything on {known['cores']} cores.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="fleet_memory", help="name of a file in bench/scenarios")
    parser.add_argument("--kinds", default="alone,shared", help="some of them, separated by commas")
    running.add_arguments(parser, "fleet_memory")
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    rows = []
    for namespace in scenario["namespaces"]:
        for kind in arguments.kinds.split(","):
            rows.append(measure(scenario, namespace, kind == "shared"))
            print(rows[-1], file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, {"redis": running.output_of("redis-server", "--version").split("v=")[-1].split()[0]})
    text = table(rows)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, rows, page(known, text))


if __name__ == "__main__":
    main()
