#!/usr/bin/env python3
"""Restarts every node of a fleet under load, one after the other, and writes what clients noticed.

In: bench/scenarios/rolling.toml, the built programs, redis-server, haproxy with tuning/haproxy.cfg. Out: a table, and with
--save a dated pair of files in bench/results.

Rules: each node is ended with SIGTERM, which drains it, and started again on its ports when it has ended; the next one
follows when every client is connected with every subscription again. What was lost, doubled, out of order or announced is
counted by the load generator, across reconnects, per client and channel (each channel has one writer). Connects per second
are those that each node admitted, from its own counter, in the fullest window of one second; beside it the load
generator's count over all nodes. --kill ends nodes with SIGKILL instead. --failover leaves the nodes alone and kills the
engine's primary, as often; Sentinels promote a replica, and what is lost must be announced. --no-backplane leaves each node on
its own: then too loss must be announced, which shows that the checker sees it.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import fleet
import running
from fleet import Process, listens, low_port
from running import BENCH, ROOT

UPGRADES = r"^ringway_upgrades_total(?:{[^}]*})? (\S+)$"
REFUSED = r"^ringway_handshakes_refused_total{[^}]*reason=\"rate\"[^}]*} (\S+)$"
LIMITS = ("upgrades_per_s_max", "drain_rate_per_s", "drain_grace_ms", "drain_deadline_ms")
SAMPLE_S = 0.1  # between two readings of a node's counter; nodes publish theirs ten times a second


class Counter:
    """One counter of a node over its restarts, by time."""

    def __init__(self, row):
        self.row, self.points, self.base, self.last = re.compile(row, re.M), [], 0, 0

    def read(self, metrics):
        count = sum(float(value) for value in self.row.findall(metrics))
        if count < self.last:  # it began anew
            self.base += self.last
        self.last = count
        self.points.append((time.monotonic(), self.base + count))

    def total(self):
        return int(self.base + self.last)

    def fullest_second(self, since):
        """The steepest rise per second over windows of a second, or what is a little longer between two readings."""
        points = [point for point in self.points if point[0] >= since]
        best, first = 0.0, 0
        for now, count in points:
            while first + 1 < len(points) and now - points[first + 1][0] >= 1.0:
                first += 1
            if now - points[first][0] >= 1.0:
                best = max(best, (count - points[first][1]) / (now - points[first][0]))
        return round(best)


class Counted(fleet.Node):
    """One gateway, and how many clients it admits."""

    def __init__(self, folder, name, scenario, engine, durability):
        self.admitted, self.refused = Counter(UPGRADES), Counter(REFUSED)
        settings = {"": {"shards": scenario["shards"]}, "limits": {key: scenario[key] for key in LIMITS},
                    "[namespaces]": {"durability": f'"{durability}"'}}
        if engine:
            settings |= {"node": {"name": f'"{name}"'}, "backplane": engine}
        super().__init__(folder, name, "rolling-ringway.toml", settings)

    def sample(self):
        """One reading of how many upgrades this name has ever admitted and refused; none while it is down."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['control']}/metrics", timeout=5) as page:
                text = page.read().decode()
        except OSError:
            return
        for counter in (self.admitted, self.refused):
            counter.read(text)


def balancer(folder, scenario, nodes):
    port = low_port()
    text = "\n".join(line for line in (ROOT / "tuning" / "haproxy.cfg").read_text().splitlines()
                     if not line.lstrip().startswith("server ")) + "\n"
    # Both ends of a client are descriptors, of which a process may have 20,000 where this is measured.
    text = "global\n    maxconn 9500\n    nbthread 1\n\n" + text
    for old, new in (("bind :8000\n", f"bind 127.0.0.1:{port}\n"),
                     ("check port 8001 inter 1s fall 2 rise 2 slowstart 30s", "check inter 500ms fall 2 rise 1")):
        if text.count(old) != 1:
            sys.exit(f"tuning/haproxy.cfg: {old!r} does not stand there once")
        text = text.replace(old, new)
    text += "".join(f"    server {node.name} 127.0.0.1:{node.ports['client']} port {node.ports['control']}\n"
                    for node in nodes)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
    processes = []
    for number in range(scenario["haproxies"]):
        one = Process(folder, f"haproxy-{number}", [program, "-db", "-f", file])
        one.until("listening", lambda: listens(port))
        processes.append(one)
    return processes, port


class Load:
    """The load generator, followed line by line."""

    def __init__(self, folder, scenario, port, nodes, arguments):
        self.log, self.state, self.at = (folder / "load.log").open("w+"), {}, 0.0
        option = lambda name: [f"--{name.replace('_', '-')}", scenario[name]]
        ingest = ",".join(f"127.0.0.1:{node.ports['ingest']}" for node in nodes)
        command = [running.programs() / "ringway-loadgen", "fleet", "--json", "--follow", "--seconds", 86400,
                   "--url", f"ws://127.0.0.1:{port}/connection/websocket", "--ingest", ingest,
                   "-n", scenario["clients"], "-m", scenario["channels"], "--stall-s", 60,
                   "--settle-s", scenario["whole_timeout_s"],
                   *[part for name in ("written_by_clients", "rate_per_channel", "payload_bytes", "connect_rate",
                                       "backoff_min_ms", "backoff_max_ms", "workers", "publishers") for part in option(name)],
                   *(["--allow-announced"] if arguments.no_backplane or arguments.failover else [])]
        self.child = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=self.log, text=True)
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        for line in self.child.stdout:
            self.state, self.at = json.loads(line), time.monotonic()
        self.state = {"ended": True, **self.state}

    def fail(self, what):
        self.log.seek(0)
        sys.exit(f"{what}\n{self.state}\n{self.log.read()[-3000:]}")

    def whole(self, clients, within):
        """Waits until everybody is connected with every subscription, as said from now on."""
        began = time.monotonic()
        while not (self.at > began + 0.4 and self.state.get("whole") == clients):
            if "ended" in self.state or time.monotonic() > began + within:
                self.fail(f"not everybody is whole after {within} s")
            time.sleep(0.02)

    def finish(self, within):
        self.child.stdin.write("stop\n")
        self.child.stdin.flush()
        try:
            self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.fail("no report")
        end = time.monotonic() + 5
        while "scenario" not in self.state and time.monotonic() < end:
            time.sleep(0.02)
        if "scenario" not in self.state:
            self.fail("no report")
        return self.state


def run(scenario, arguments):
    began_ticks, began = running.cpu_ticks_busy(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ringway-rolling-") as name:
        folder, processes, nodes, load, over = pathlib.Path(name), [], [], None, threading.Event()
        try:
            engine = sentinels = None
            if arguments.failover:
                sentinels = fleet.Failover(folder, processes)
                engine = sentinels.settings()
            elif not arguments.no_backplane:
                redis, redis_port = fleet.redis(folder)
                processes.append(redis)
                engine = {"engine": '"redis"', "mode": '"single"', "addresses": f'["127.0.0.1:{redis_port}"]'}
            for number in range(scenario["nodes"]):
                nodes.append(Counted(folder, f"n{number + 1}", scenario, engine, arguments.durability))
            haproxies, port = balancer(folder, scenario, nodes)
            processes += haproxies
            load = Load(folder, scenario, port, nodes, arguments)
            load.whole(scenario["clients"], scenario["whole_timeout_s"])

            def watch():
                while not over.wait(SAMPLE_S):
                    for node in nodes:
                        node.sample()

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            time.sleep(scenario["rest_s"])
            loaded, drains = time.monotonic(), []
            for round_number in range(arguments.rounds or scenario["rounds"]):
                for node in [None] if sentinels else nodes:
                    start = time.monotonic()
                    if sentinels:
                        sentinels.fail_over()
                    else:
                        node.process.end(signal.SIGKILL if arguments.kill else signal.SIGTERM)
                    gone = time.monotonic()
                    if sentinels:
                        sentinels.until_whole()
                    else:
                        node.restart()
                    load.whole(scenario["clients"], scenario["whole_timeout_s"])
                    drains.append({"round": round_number + 1, "node": node.name if node else "engine", "gone_s": round(gone - start, 2),
                                   "whole_again_s": round(time.monotonic() - gone, 2)})
                    time.sleep(scenario["rest_s"])
                print(f"round {round_number + 1}: {drains[-len(nodes):]} {load.state}", file=sys.stderr, flush=True)
            result = load.finish(scenario["whole_timeout_s"] * 3)
            over.set()
            watcher.join()
            result["drains"] = drains
            result["admitted_per_s_max"] = {node.name: node.admitted.fullest_second(loaded) for node in nodes}
            result["refused_for_the_rate"] = {node.name: node.refused.total() for node in nodes}
            result["restarts"] = len(drains)
            result["exit"] = load.child.returncode
            ticks = (time.monotonic() - began) * os.sysconf("SC_CLK_TCK") * os.cpu_count()
            result["machine_busy_share"] = round((running.cpu_ticks_busy() - began_ticks) / ticks, 3)
            return result
        finally:
            over.set()
            if load and load.child.poll() is None:
                load.child.kill()
                load.child.wait()
            for one in [*[node.process for node in nodes], *processes]:
                if one.child.poll() is None:
                    one.child.kill()
                    one.child.wait()
            if arguments.keep_logs:
                shutil.copytree(folder, arguments.keep_logs, dirs_exist_ok=True)


def table(results, scenario, arguments):
    lines = ["| counted by the load generator | " + " | ".join(f"run {n + 1}" for n in range(len(results))) + " |",
             "| --- |" + " ---: |" * len(results)]
    row = lambda text, of: lines.append(f"| {text} | " + " | ".join(str(of(one)) for one in results) + " |")
    ms = lambda name, quantile: lambda one: f"{one[name][quantile] / 1e3:,.0f}" if name in one else "–"
    row("failovers" if arguments.failover else "restarts", lambda one: one["restarts"])
    row("deliveries", lambda one: f"{one['deliveries']['received']:,}")
    row("of them recovered", lambda one: f"{one['deliveries']['recovered']:,}")
    for name in ("lost", "duplicates", "disordered", "wrong_offsets", "wrong_epochs", "announced", "announced_repeats", "unrecovered"):
        row(f"**{name.replace('_', ' ')}**", lambda one, name=name: f"**{one['deliveries'][name]:,}**")
    row("connections lost", lambda one: f"{one['connections_lost']:,}")
    row("of them closed 3001", lambda one: f"{one['closed_3001']:,}")
    row("refused connects", lambda one: f"{one['refused_connects']:,}")
    row("admitted per second by one node, fullest second", lambda one: f"{max(one['admitted_per_s_max'].values()):,}")
    # Unused upgrades of a quarter of a second may come on top: UPGRADES_AT_ONCE_PART in src/engine.
    row("configured: upgrades that a node admits per second, and at most within one second",
        lambda one: f"{scenario['upgrades_per_s_max']:,}, {scenario['upgrades_per_s_max'] * 5 // 4:,}")
    row("upgrades refused for that (503; tried at the next node, or again)", lambda one: f"{sum(one['refused_for_the_rate'].values()):,}")
    row("reconnected per second over all nodes, fullest second", lambda one: one["reconnected_per_s_max"])
    row("configured: clients that leave a node per second", lambda one: f"{scenario['drain_rate_per_s']:,}")
    for quantile in ("p50_us", "p99_us", "max_us"):
        row(f"longest time of a client without a message, {quantile[:-3]}, ms", ms("silence", quantile))
    for quantile in ("p50_us", "p99_us", "max_us"):
        row(f"from its close to the next message, {quantile[:-3]}, ms", ms("interruption", quantile))
    for quantile in ("p50_us", "p99_us", "max_us"):
        row(f"from its close to all subscriptions, {quantile[:-3]}, ms", ms("absence", quantile))
    row("delivery latency p50 / p99, ms", lambda one: f"{ms('latency', 'p50_us')(one)} / {ms('latency', 'p99_us')(one)}")
    row("published over ingest / by clients", lambda one: f"{one['published_over_ingest']:,} / {one['published_by_clients']:,}")
    row("published again / acknowledged as duplicates",
        lambda one: f"{one['published_again']:,} / {one['acknowledged_as_duplicate']:,}")
    row("never confirmed to clients that publish", lambda one: one["unconfirmed_publications"])
    slowest = "from the kill to another primary, slowest, s" if arguments.failover else "slowest drain, s"
    row(slowest, lambda one: max(drain["gone_s"] for drain in one["drains"]))
    row("verdict", lambda one: "every delivery right" if one["intact"] else "; ".join(one["problems"]))
    for number, one in enumerate(results):
        for name in ("closes", "refusals", "resubscribes", "refused_subscribes", "refused_publishes", "ingest_refusals",
                     "ingest_moves", "faults"):
            if one.get(name):
                lines += ["", f"Run {number + 1}, {name.replace('_', ' ')}: "
                          + "; ".join(f"{reason} {count:,}" for reason, count in one[name].items()) + "."]
        if one.get("examples"):
            lines += ["", f"Run {number + 1}, the first that came again or late: " + "; ".join(one["examples"]) + "."]
    return "\n".join(lines)


def page(known, text, scenario, results, arguments):
    how = "nodes killed (SIGKILL) in turn" if arguments.kill else "nodes restarted (SIGTERM, drained) in turn"
    engine = "no backplane: loss is announced" if arguments.no_backplane else "one Redis"
    if arguments.failover:
        how = f"nodes while their engine's primary is killed, durability \"{arguments.durability}\","
        engine = "a Redis primary with two replicas and three Sentinels"
    return f"""# {scenario['nodes']} {how} under load, {known['date']}

{scenario['nodes']} nodes of {scenario['shards']} shard, {engine}, HAProxy ({scenario['haproxies']} processes, `tuning/haproxy.cfg`) in front,
{scenario['clients']:,} clients of the SDK protocol (JSON) with two of {scenario['channels']:,} channels each; {scenario['written_by_clients']} channels are
written by clients, the others by {scenario['publishers']} ingest connections with idempotency keys; {scenario['rate_per_channel']} publications a second to each.
Back-off as the JavaScript SDK's, {scenario['backoff_min_ms']} ms to {scenario['backoff_max_ms']:,} ms. A client without an interruption hears
something every {1 / scenario['rate_per_channel'] / 2:.1f} to {1 / scenario['rate_per_channel']:.1f} s, which is in the times without a message.
Everything shares {known['cores']} cores. The machine was busy to {max(one['machine_busy_share'] for one in results):.0%}.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="rolling", help="name of a file in bench/scenarios")
    parser.add_argument("--rounds", type=int, default=0, help="instead of the scenario's")
    parser.add_argument("--kill", action="store_true", help="SIGKILL instead of SIGTERM")
    parser.add_argument("--failover", action="store_true", help="kill the engine's primary instead of nodes")
    parser.add_argument("--durability", choices=("memory", "fleet"), default="memory", help="fleet: publishes wait for a replica")
    parser.add_argument("--no-backplane", action="store_true", help="each node on its own")
    parser.add_argument("--keep-logs", metavar="FOLDER", help="copies the logs of all processes there")
    running.add_arguments(parser, "rolling")
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = [run(scenario, arguments) for _ in range(arguments.repeats)]
    versions = {} if arguments.no_backplane else {"redis": output_version("redis-server", "--version", r"v=(\S+)")}
    versions["HAProxy"] = output_version(shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin"), "-v", r"version (\S+)")
    known = running.facts(scenario, arguments, versions)
    text = table(results, scenario, arguments)
    print(text)
    name = "rolling-kill" if arguments.kill else "rolling"
    if arguments.failover:
        name = "failover-wait" if arguments.durability == "fleet" else "failover"
    if arguments.save:
        running.save(name, known, results, page(known, text, scenario, results, arguments))
    if any(one["exit"] != 0 for one in results):
        sys.exit(2)


def output_version(program, option, pattern):
    found = re.search(pattern, running.output_of(program, option))
    return found.group(1) if found else "unknown"


if __name__ == "__main__":
    main()
