#!/usr/bin/env python3
"""Publications from one node to subscribers at others, across the engine: when they arrive, and what they cost whom.

In: bench/scenarios/relay.toml, the built programs, redis-server. Out: tables, and with --save a dated pair of files in
bench/results.

Three kinds of rows in one run, repeats interleaved:

- fleets: the load generator publishes over ingest at the first node, its subscribers are connections of the others;
- one node alone, without an engine: what the engine and the way across it add;
- scripts alone: a client calls a script and plain connections to the engine receive, no gateway anywhere. One script does
  engine work in Centrifugo's style (a key's result, HINCRBY, XADD, EXPIREs, PUBLISH), the other is the program's own. They
  show what of the time and of the engine's CPU is the script's, with as many calls in flight as the fleets have.

Rates are open loops: latency counts from when a publication was due. Without a rate it is a closed loop with so many
publications outstanding, and its latency is mostly queueing. CPU is run time of the processes' threads
(/proc/PID/task/*/schedstat) over a window that begins and ends at rest, divided by publications.
"""
import argparse
import array
import json
import multiprocessing
import os
import pathlib
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time

import backplane
import fleet
import running
from engines import Client, packed

ABOVE = 2  # interested nodes over this hear a publication over the bucket's channel
HEAD = "ringway:{b}"  # all channels of a script alone are in one bucket
FIRST_NODE = 1001  # generation of a receiver of the program's script
SLEEP_S_MIN = 50e-6
DELIVERY_S = 30  # longest wait for what was published


def loads(scenario):
    """Name, publications per second or 0, channels."""
    yield from ((f"{rate:,}/s", rate, scenario["channels"]) for rate in scenario["rates"])
    yield "most", 0, scenario["channels"]
    yield f"most, {scenario['few_channels']} channels", 0, scenario["few_channels"]


def process_ticks(pids):
    """User and system time of living processes, in ticks."""
    fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields)


class Others:
    """How much of the machine is used by processes that are not ours."""

    def __init__(self, pids):
        self.pids, self.begun = pids, time.monotonic()
        self.own, self.busy = self.ours(), running.cpu_ticks_busy()

    def ours(self):
        times = os.times()
        tick = os.sysconf("SC_CLK_TCK")
        return process_ticks(self.pids) + (times.user + times.system + times.children_user + times.children_system) * tick

    def share(self):
        ticks = (time.monotonic() - self.begun) * os.sysconf("SC_CLK_TCK") * os.cpu_count()
        return round(max(0.0, (running.cpu_ticks_busy() - self.busy - (self.ours() - self.own)) / ticks), 3)


class Fleet:
    """Nodes of one row."""

    def __init__(self, folder, setup):
        self.setup, self.processes, self.nodes, self.engine = setup, [], [], None
        port = None
        try:
            if setup["backplane"]:
                server, port = fleet.redis(folder)
                self.processes.append(server)
                self.engine = server
            for number in range(setup["nodes"]):
                node = fleet.Node(folder, f"n{number + 1}", "fleet-ringway.toml", {"": {"shards": 1}}, port)
                self.nodes.append(node)
                self.processes.append(node.process)
        except BaseException:
            self.end()
            raise

    def end(self):
        for process in self.processes:
            process.kill()

    def run(self, scenario, load):
        name, rate, channels = load
        setup = self.setup
        listeners = self.nodes[-setup["interested"]:]
        each = min(scenario["connections_per_node"], channels)
        connections = each * setup["sets"] * len(listeners)
        pids = [process.child.pid for process in self.processes]
        command = [running.programs() / "ringway-loadgen", "fanout", "--json", "--label", name,
                   "--url", ",".join(node.url() for node in listeners), "--ingest", f"127.0.0.1:{self.nodes[0].ports['ingest']}",
                   "-n", connections, "-m", channels, "-s", channels // each, "--channel-prefix", f"kept:{rate}-{channels}-",
                   "--payload-bytes", scenario["payload_bytes"], "--nap-us", scenario["nap_us"], "--seconds", scenario["seconds"],
                   "--warmup-s", scenario["warmup_s"], "--server-pid", ",".join(map(str, pids)),
                   *(["--rate", rate] if rate else ["--refill", "slide", "-k", scenario["outstanding"]])]
        batches = self.batches()
        others = Others(pids)
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=running.RUN_S)
        row = {"load": name, "others_cpu_share": others.share()}
        if done.returncode != 0:
            text = done.stdout or done.stderr
            try:
                problems = json.loads(done.stdout)["problems"]
            except (ValueError, KeyError):
                problems = [text[-500:]]
            return {**row, "failed": problems}
        report = json.loads(done.stdout)
        published = report["window_deliveries"] / (setup["sets"] * len(listeners))
        threads = report["server_threads_ns"]

        def each_us(processes, thread=None):
            spent = sum(ns for key, ns in threads.items() for process in processes
                        if key.startswith(f"{process.child.pid}/") and (thread is None or key.endswith(f"/{thread}")))
            return round(spent / 1e3 / published, 2)

        first, rest = [self.nodes[0].process], [node.process for node in listeners]
        row.update({
            "publications_per_s": round(published / report["window_s"]),
            "latency": report["latency"],
            "publish_latency": report.get("publish_latency"),
            "publisher_us": each_us(first), "publisher_hop_us": each_us(first, "backplane-0"),
            "subscribers_us": each_us(rest), "subscribers_hop_us": each_us(rest, "backplane-0"),
            "loadgen_us_per_delivery": round(report["loadgen_cpu_us"], 2),
        })
        if self.engine:
            row["engine_us"] = each_us([self.engine])
            row["publications_per_call"] = round(report["publications"] / max(1, self.batches() - batches), 2)
        return row

    def batches(self):
        time.sleep(0.3)  # nodes publish their numbers ten times a second
        return self.nodes[0].metrics().get("ringway_fleet_batches_total", 0) if self.engine else 0


STAMP = re.compile(rb"@([0-9]{20})@")


def receive(port, command, channels, count, pipe):
    """A receiver's process: reads what is published, notes how old it is."""
    client = Client(port)
    for begin in range(0, len(channels), 500):
        part = channels[begin:begin + 500]
        client.socket.sendall(packed(command, *part))
        for _ in part:
            client.reply()
    pipe.send("ready")
    ages, rest = array.array("Q"), b""
    waiting = select.poll()
    waiting.register(client.socket, select.POLLIN)
    while True:
        if pipe.poll():
            order = pipe.recv()
            if order == "report":
                pipe.send(ages.tobytes())
                return
            ages = array.array("Q")
            pipe.send("reset")
        if not waiting.poll(20):
            continue
        time.sleep(1e-4)  # as the load generator's readers
        got = rest + client.socket.recv(1 << 20)
        now, end, found = time.monotonic_ns(), 0, 0
        for match in STAMP.finditer(got):
            ages.append(max(0, now - int(match.group(1))))
            end, found = match.end(), found + 1
        rest = got[max(end, len(got) - 21):]
        with count.get_lock():
            count.value += found


class Script:
    """A script without gateways, at an engine of its own."""

    def __init__(self, folder, setup, scenario):
        self.setup, self.scenario, self.number = setup, scenario, 0
        self.server, self.port = fleet.redis(folder)
        self.client, self.children = Client(self.port), []
        text = backplane.STYLE if setup["style"] else backplane.script("publish")
        self.sha = self.client.ask("SCRIPT", "LOAD", text)
        self.follow = self.client.ask("SCRIPT", "LOAD", backplane.script("follow"))

    def end(self):
        for child, _ in self.children:
            child.kill()
            child.join()
        self.server.kill()

    def channels(self, load):
        return [f"{load[1]}-{load[2]}:{n}" for n in range(load[2])]

    def start_receivers(self, load):
        self.count = multiprocessing.Value("Q", 0)
        for place in range(self.setup["interested"]):
            generation = FIRST_NODE + place
            if self.setup["style"]:
                command, names = "SUBSCRIBE", [f"style:{name}" for name in self.channels(load)]
            else:
                command, names = "SSUBSCRIBE", [f"{HEAD}i{generation}", f"{HEAD}b"]
            own, other = multiprocessing.Pipe()
            child = multiprocessing.Process(target=receive, args=(self.port, command, names, self.count, other), daemon=True)
            child.start()
            self.children.append((child, own))
            own.recv()
            if not self.setup["style"]:
                follow = [backplane.follow_command(self.follow, HEAD, self.keys(name), generation) for name in self.channels(load)]
                self.client.pipeline(follow, 256)

    @staticmethod
    def keys(channel):
        return backplane.names(HEAD, channel)

    def command(self, channel, stamp_ns):
        self.number += 1
        payload = (b"@%020d@" % stamp_ns).ljust(self.scenario["payload_bytes"], b"x")
        kept = self.scenario["history_size"]
        if self.setup["style"]:
            return backplane.style_command(self.sha, channel, payload, kept, self.number)
        keys = [*self.keys(channel), f"{HEAD}k{len(channel)}:{channel}:{self.number}"]
        return backplane.publish_command(self.sha, HEAD, keys, channel, payload, 1, self.number, kept, ABOVE)

    def publish(self, load, seconds):
        """Publishes for so long and waits for all replies and deliveries; returns how many."""
        _, rate, _ = load
        names, flight_max = self.channels(load), self.scenario["outstanding"]
        sent = answered = 0
        connection, received, tail = self.client.socket, self.count.value, b""
        begun = time.monotonic_ns()
        end = begun + int(seconds * 1e9)
        while True:
            now = time.monotonic_ns()
            if rate:
                due = min(int(seconds * rate), int((now - begun) * rate / 1e9) + 1)
                stamps = [begun + int(n * 1e9 / rate) for n in range(sent, min(due, answered + 4 * flight_max))]
            else:
                room = flight_max - (sent - answered) if now < end else 0
                # Half a flight at once, as a pipeline fills while the one before it is answered.
                stamps = [now] * room if room >= flight_max // 2 else []
            if stamps:
                connection.sendall(b"".join(self.command(names[(sent + n) % len(names)], stamp) for n, stamp in enumerate(stamps)))
                sent += len(stamps)
            over = sent >= int(seconds * rate) if rate else now >= end
            if over and answered == sent:
                break
            wait_s = 0.02
            if rate and not over:
                wait_s = max(SLEEP_S_MIN, (begun + sent * 1e9 / rate - time.monotonic_ns()) / 1e9)
            if select.select([connection], [], [], min(wait_s, 0.02))[0]:
                got = tail + connection.recv(1 << 18)
                if b"-ERR" in got or b"-NOSCRIPT" in got:
                    sys.exit(f"the engine refuses: {got[:300]!r}")
                # An array, or a text that begins so.
                answered += got.count(b"*3\r\n" if self.setup["style"] else b"$")
                tail = got[-3:] if self.setup["style"] else b""
        expected, limit = received + sent * self.setup["interested"], time.monotonic() + DELIVERY_S
        while self.count.value < expected:
            if time.monotonic() > limit:
                sys.exit(f"{expected - self.count.value} of {expected} deliveries have not come")
            time.sleep(0.001)
        return sent

    def cpu_ns(self):
        tasks = pathlib.Path(f"/proc/{self.server.child.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def run(self, scenario, load):
        self.start_receivers(load)
        self.publish(load, scenario["warmup_s"])
        for _, pipe in self.children:
            pipe.send("reset")
            pipe.recv()
        others = Others([self.server.child.pid, *[child.pid for child, _ in self.children]])
        before, begun = self.cpu_ns(), time.monotonic()
        published = self.publish(load, scenario["seconds"])
        seconds, spent = time.monotonic() - begun, self.cpu_ns() - before
        share, ages = others.share(), array.array("Q")
        for child, pipe in self.children:
            pipe.send("report")
            ages.frombytes(pipe.recv())
            child.join()
        self.children.clear()
        ages = sorted(ages)
        quantile = lambda part: ages[min(len(ages) - 1, int(len(ages) * part))] / 1e3
        return {"load": load[0], "others_cpu_share": share, "publications_per_s": round(published / seconds),
                "latency": {"p50_us": quantile(0.5), "p99_us": quantile(0.99), "p999_us": quantile(0.999), "max_us": ages[-1] / 1e3},
                "engine_us": round(spent / 1e3 / published, 2), "publications_per_call": 1.0}


def table(results, load):
    """Markdown for one load: medians over the repeats."""
    lines = ["| | p50 ms (lowest, highest) | p99 ms (lowest, highest) | publications/s | in one call | engine µs | publisher's node µs"
             " | of it backplane-0 | subscribers' nodes µs, all | of it backplane-0 | others' CPU |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for name, runs in results.items():
        rows = [row for row in runs if row["load"] == load]
        good = [row for row in rows if "failed" not in row]
        if not good:
            lines.append(f"| {name} | did not keep up: {'; '.join(str(text) for row in rows for text in row['failed'])} |" + " |" * 9)
            continue

        def spread(quantile):
            each = [row["latency"][quantile] / 1e3 for row in good]
            return f"**{statistics.median(each):.2f}** ({min(each):.2f}, {max(each):.2f})"

        def middle(key, form="{:.1f}"):
            values = [row[key] for row in good if row.get(key) is not None]
            return form.format(statistics.median(values)) if values else "–"

        alone = "subscribers" if "one node" in name else ""
        lines.append(f"| {name}{'' if len(good) == len(rows) else f' ({len(rows) - len(good)} failed)'} | {spread('p50_us')}"
                     f" | {spread('p99_us')} | {middle('publications_per_s', '{:,.0f}')} | {middle('publications_per_call')}"
                     f" | {middle('engine_us')} | {middle('publisher_us')} | {middle('publisher_hop_us')}"
                     f" | {'(the same)' if alone else middle('subscribers_us')} | {'' if alone else middle('subscribers_hop_us')}"
                     f" | ≤ {max(row['others_cpu_share'] for row in rows):.0%} |")
    return "\n".join(lines)


def text_of(results, scenario):
    parts = []
    for name, rate, channels in loads(scenario):
        head = f"{rate:,} publications a second" if rate else f"As fast as they go, {scenario['outstanding']} outstanding"
        parts.append(f"## {head}, {channels:,} channels\n\n{table(results, name)}")
    return "\n\n".join(parts)


def page(known, text):
    scenario = known["scenario"]
    return f"""# From node to node across the engine, {known['date']}

{scenario['payload_bytes']} B per publication, history {scenario['history_size']}. Fleets: published over ingest at the first node, without keys; each
channel has one subscriber at each interested node, or two where there is one node. Over 2 interested nodes it is one message for the
bucket. Scripts alone: one client, an idempotency key each, no gateway and no WebSocket; a receiver is a connection to the engine. Latency is until the
subscriber has it, whose readers look every {scenario['nap_us']} µs. CPU is per publication, system time included. Nothing is pinned:
nodes, engine, load generator share {known['cores']} cores, and where all is busy latency is the queue for a core.
Medians of {known['repeats']} interleaved runs of {scenario['seconds']} s, fresh processes each. Others' CPU is the largest share of the
machine that unrelated processes took during a run.

Measured before, with a bare client and the same kind of machine (design notes): Valkey, 5,000/s to 2 nodes p50 0.44 ms, p99 27 ms;
10,000/s to 4 nodes p50 0.61 ms, p99 126 ms; Redis 7.0 in a noisier minute p50 5.6 and 3.9 ms, p99 403 and 180 ms; Centrifugo-style script
20,900 to 50,900/s, with a key 36,500/s, at Redis. Centrifugo itself is in none of the registries (Debian, PyPI, npm).

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="relay", help="name of a file in bench/scenarios")
    parser.add_argument("--only", default="", help="only rows whose name has this in it")
    parser.add_argument("--before", metavar="PROGRAM", help="another build of ringway, in turn with this one")
    running.add_arguments(parser, "relay")
    parser.set_defaults(repeats=3)
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results, failed = {}, False
    builds = [("", None)] + ([(" (before)", arguments.before)] if arguments.before else [])
    for repeat in range(arguments.repeats):
        for setup in [*scenario["fleets"], *scenario["scripts"]]:
            if arguments.only not in setup["name"]:
                continue
            for suffix, program in builds if "nodes" in setup else builds[:1]:
                with tempfile.TemporaryDirectory(prefix="ringway-relay-") as folder:
                    fleet.Node.program = program
                    folder = pathlib.Path(folder)
                    subject = Script(folder, setup, scenario) if "style" in setup else Fleet(folder, setup)
                    try:
                        for load in loads(scenario):
                            row = subject.run(scenario, load)
                            failed |= "failed" in row
                            results.setdefault(setup["name"] + suffix, []).append(row)
                            print(f"{repeat + 1}/{arguments.repeats} {setup['name']}{suffix}: {row}", file=sys.stderr, flush=True)
                    finally:
                        subject.end()
    versions = {"redis": running.output_of("redis-server", "--version").split("v=")[-1].split()[0]}
    known = running.facts(scenario, arguments, versions)
    text = text_of(results, scenario)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, results, page(known, text))
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    main()
