#!/usr/bin/env python3
"""Publishes over the ingest port as fast as acknowledgements come, and writes what a publication costs.

In: bench/scenarios/ingest.toml, the built programs, with --before another build of the server. Out: two tables, and with
--save a dated pair of files in bench/results (raw runs as JSON, medians as Markdown).

Every run has a fresh server. Every publication is acknowledged once, in the order of its channel and with the next offset, or
the run fails; behind the window the history of some channels, over the HTTP API, must be exactly their last publications.
The load generator has one core, and where it is the slower side, CPU per publication is the figure and not the rate.

The second table counts messages between shards, from the metrics of a real process, and compares them with what they
should be: a publication goes to its owner (if that is another shard than the backend's) and from there to each other shard
with interest; publishes that are read together share a message, and so do their answers.
"""
import argparse
import base64
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

import running
from running import BENCH, middle

PORTS = ("client", "control", "ingest")
METRICS_WAIT_S = 0.25  # longer than shards take to publish their metrics
CONNECTS_MAX = 400  # subscribers opened to find one on every shard that needs one


def server_command(binary, shards):
    return [binary, "--dev", "--shards", shards,
            *[part for port in PORTS for part in ("--set", f"{port}.listen=127.0.0.1:0")]]


def ports(ready):
    return [re.search(rf"{port}=(\S+)", ready).group(1) for port in PORTS]


def run(name, binary, scenario, mode):
    """One run of one mode: the load generator's JSON."""
    settings = {**scenario, **mode}

    def load(ready):
        _, control, ingest = ports(ready)
        return ["--ingest", ingest, "--control", control, "-n", settings["connections"], "-m", settings["channels"],
                "--payload-bytes", settings["payload_bytes"], "--batch", settings["batch"],
                "--warmup-s", settings["warmup_s"], "--seconds", settings["seconds"],
                "--shards", settings["shards"], "--owners", settings["owners"],
                "--history-size", settings["history_size"], "--history-checks", settings["history_checks"],
                *(["--idempotency-keys"] if settings.get("idempotency_keys") else [])]

    result = running.run(name, settings, server_command(binary, settings["shards"]), load, doing="ingest")
    return {**result, "mode": mode["name"], "server": name}


def kept_bytes(result):
    """Resident bytes for each publication in a history window, idempotency keys and channels included."""
    grown = result["server_resident_bytes"] - result["server_resident_bytes_before"]
    return grown / max(1, result["history_publications"])


def cost_table(results, scenario, servers):
    lines = ["| owners, keys | server | CPU µs per publication (lowest, highest) | of before, within a repeat | user µs"
             " | system µs | acknowledged/s | server's cores | load generator's CPU µs | p50 ms"
             " | resident bytes per kept publication | turns per 1,000 | others' CPU |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for mode in scenario["modes"]:
        of = lambda name: [one for one in results if (one["mode"], one["server"]) == (mode["name"], name)]
        for name in servers:
            runs = of(name)
            cpu = [one["server_cpu_us_per_publish"] for one in runs]
            before = [one["server_cpu_us_per_publish"] for one in of("before")]
            ratios = [now / then for now, then in zip(cpu, before)] if name != "before" else []
            ratio = f"{statistics.median(ratios):.2f}×" if ratios else "–"
            kept = statistics.median(kept_bytes(one) for one in runs)
            lines.append(
                f"| {mode['name']} | {name} | **{statistics.median(cpu):.3f}** ({min(cpu):.3f}, {max(cpu):.3f}) | {ratio}"
                f" | {middle(runs, 'server_user_us'):.3f} | {middle(runs, 'server_system_us'):.3f}"
                f" | {middle(runs, 'acknowledged_per_s'):,.0f} | {middle(runs, 'server_cores'):.2f}"
                f" | {middle(runs, 'loadgen_cpu_us'):.3f} | {middle(runs, 'latency', 'p50_us') / 1e3:.1f} | {kept:.0f}"
                f" | {middle(runs, 'loop_turns_per_publication') * 1e3:.2f}"
                f" | ≤ {max(one['others_cpu_share'] for one in runs):.0%} |")
    return "\n".join(lines)


class Server:
    """A server that stays for several counts."""

    def __init__(self, scenario, shards):
        self.shards = shards
        command = ["taskset", "-c", "0,1", *map(str, server_command(running.programs() / "ringway", shards))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready = next((line for line in self.process.stdout if " ready " in line), None)
        if ready is None:
            sys.exit("ringway ended before it was ready")
        self.client, self.control, self.ingest = ports(ready)
        self.scenario = scenario
        self.subscribers = []

    def stop(self):
        for subscriber in self.subscribers:
            subscriber.close()
        self.process.terminate()
        self.process.wait(running.STOP_S)

    def metrics(self):
        """Values by name with labels, and shard."""
        time.sleep(METRICS_WAIT_S)
        text = urllib.request.urlopen(f"http://{self.control}/metrics").read().decode()
        found = re.findall(r'^(\w+)\{(?:(.*),)?shard="(\d+)"\} (\S+)$', text, re.M)
        return {(name, labels, int(shard)): float(value) for name, labels, shard, value in found}

    def subscribe(self, channel, interested):
        """Leaves one subscriber on each of so many shards; returns which."""
        there, open_ = set(), lambda metrics, shard: metrics[("ringway_connections_open", "", shard)]
        before = self.metrics()
        for _ in range(CONNECTS_MAX):
            if len(there) == interested:
                return there
            subscriber = socket.create_connection(self.client.split(":"))
            key = base64.b64encode(os.urandom(16)).decode()
            subscriber.sendall(f"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                               f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                               "Sec-WebSocket-Version: 13\r\n\r\n".encode())
            after = self.metrics()
            shard = next(shard for shard in range(self.shards) if open_(after, shard) > open_(before, shard))
            if shard in there:
                subscriber.close()
                after = self.metrics()
            else:
                there.add(shard)
                self.subscribers.append(subscriber)
                for text in ('{"id":1,"connect":{}}', f'{{"id":2,"subscribe":{{"channel":"{channel}"}}}}'):
                    # A mask of zeros: what is masked with it stays as it is.
                    subscriber.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode())
            before = after
        sys.exit(f"{CONNECTS_MAX} connections, and not {interested} shards have one")

    def publish(self, prefix, batch):
        """Publications to one channel; how the metrics grew."""
        before = self.metrics()
        load = [running.programs() / "ringway-loadgen", "ingest", "--json", "--ingest", self.ingest, "-n", "1", "-m", "1",
                "--channel-prefix", prefix, "--batch", batch, "--count", self.scenario["lanes"]["publications"],
                "--payload-bytes", self.scenario["payload_bytes"]]
        subprocess.run([str(part) for part in load], check=True, stdout=subprocess.DEVNULL)
        after = self.metrics()
        return {key: after[key] - before.get(key, 0) for key in after}


def count_lanes(scenario):
    """Counts of one process per number of shards, each compared with what it should be."""
    rows, lanes = [], scenario["lanes"]
    for shards in lanes["shards"]:
        server = Server(scenario, shards)
        try:
            for interested in (k for k in lanes["interested"] if k <= shards):
                prefix = f"k{interested}x"
                there = server.subscribe(f"{prefix}0", interested)
                for batch in lanes["batches"]:
                    rows.append(count(server, prefix, there, batch))
        finally:
            server.stop()
    return rows


def count(server, prefix, there, batch):
    grown = server.publish(prefix, batch)
    total = lambda name, labels="": sum(grown.get((name, labels, shard), 0) for shard in range(server.shards))
    where = lambda name: next(shard for shard in range(server.shards) if grown.get((name, "", shard), 0) > 0)
    kind = lambda name: total("ringway_lane_messages_total", f'kind="{name}"')
    publications = total("ringway_publications_total")
    owner, backend = where("ringway_publications_total"), where("ringway_ingest_publishes_total")
    due_publish, due_deliver = float(owner != backend), float(len(there - {owner}))
    row = {"shards": server.shards, "interested": len(there), "batch": batch, "publications": int(publications),
           "owner_elsewhere": owner != backend, "owner_interested": owner in there,
           "publishes": total("ringway_lane_publishes_total") / publications, "publish_messages": kind("publish") / publications,
           "deliver": kind("deliver") / publications, "acks": total("ringway_lane_acks_total") / publications,
           "ack_messages": kind("ack") / publications, "due_publish": due_publish, "due_deliver": due_deliver}
    right = (row["publishes"] == due_publish and row["acks"] == due_publish and row["deliver"] == due_deliver
             and row["ack_messages"] == row["publish_messages"] and row["publish_messages"] <= due_publish)
    if not right or publications != server.scenario["lanes"]["publications"]:
        sys.exit(f"messages between shards are not what they should be: {row}")
    return row


def lane_table(rows):
    lines = ["| shards | with interest | publications per frame | owner is | publishes to the owner (in messages)"
             " | deliveries to other shards | answers (in messages) |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        owner = ("another shard" if row["owner_elsewhere"] else "the backend's shard") + (
            ", with interest" if row["owner_interested"] else "")
        lines.append(f"| {row['shards']} | {row['interested']} | {row['batch']} | {owner}"
                     f" | {row['publishes']:g} ({row['publish_messages']:.4f}) | {row['deliver']:g}"
                     f" | {row['acks']:g} ({row['ack_messages']:.4f}) |")
    return "\n".join(lines)


def page(known, costs, lanes, notes):
    scenario = known["scenario"]
    return f"""# Ingest, {known['date']}

Acknowledged publications of {scenario['payload_bytes']} bytes in frames of {scenario['batch']} over {scenario['connections']} \
backend connections, to {scenario['channels']:,} channels with a history of {scenario['history_size']} in turn, no
subscribers; loopback. One shard pinned to core 0, the load generator to core 1 (`plain`; `keys`: with an idempotency key of
16 bytes each); two shards on cores 0 and 1, the load generator on core 1 too, all backend connections on shard 0 and every
channel owned by the other shard (`elsewhere`) or by the same (`here`): CPU of both shards together. Medians of \
{known['repeats']} interleaved runs of {scenario['seconds']} s behind {scenario['warmup_s']} s of the same load, a fresh server
each. Every publication was acknowledged once and in order, and behind each run the histories of \
{scenario['history_checks']} channels were their last {scenario['history_size']} publications. Resident bytes are the growth
of the server's resident set since its start, divided by the publications in history windows: payload, channel, keys and all.
Where the server has less than a core to do, the load generator is the slower side and CPU is the figure.

{running.machine(known)}

## What a publication costs

{costs}

## Messages between shards per publication

From the metrics of a process with so many shards, a subscriber on each shard with interest, {scenario['lanes']['publications']:,}
publications each: 1 to the owner if it is another shard than the backend's, 1 to each other shard with interest, and one
answer per message to the owner. Each row was compared with that, exactly.

{lanes}
{notes}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="ingest", help="name of a file in bench/scenarios")
    parser.add_argument("--before", help="another build of the server, measured in turn with this one")
    parser.add_argument("--notes", help="a Markdown file that is put at the end of the page")
    parser.add_argument("--modes", type=lambda text: text.split(","), help="only these")
    running.add_arguments(parser, "ingest")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    scenario["modes"] = [mode for mode in scenario["modes"] if mode["name"] in (arguments.modes or [mode["name"]])]
    servers = {**({"before": arguments.before} if arguments.before else {}), "ringway": running.programs() / "ringway"}
    results = []
    for repeat in range(arguments.repeats):
        for mode in scenario["modes"]:
            for name, binary in servers.items():
                result = run(name, binary, scenario, mode)
                results.append(result)
                print(f"{repeat + 1}/{arguments.repeats}  {mode['name']:10} {name:8}"
                      f" {result['server_cpu_us_per_publish']:7.3f} µs  {result['acknowledged_per_s']:10,.0f}/s"
                      f"  {kept_bytes(result):4.0f} bytes  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    rows = count_lanes(scenario)
    known = running.facts(scenario, arguments, {})
    costs, lanes = cost_table(results, scenario, servers), lane_table(rows)
    print(costs, lanes, sep="\n\n")
    if arguments.save:
        notes = open(arguments.notes).read() if arguments.notes else ""
        running.save("ingest", known, {"costs": results, "lanes": rows}, page(known, costs, lanes, notes))


if __name__ == "__main__":
    main()
