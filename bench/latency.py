#!/usr/bin/env python3
"""Publishes at a fixed rate to many subscribers of several servers in turn and writes when deliveries arrive.

In: a scenario file, the built programs, the installed peers. Out: a table, and with --save a dated pair of files in
bench/results.

The loop is open: publication k is due at k / rate, and a delivery's latency counts from then, also when the publication
left late. What is seen contains the readers' nap and the time that they take to read a burst; both are the same for all.
Publications go over ingest to Ringway, over a WebSocket connection to all others. A peer that is not installed is left out.
"""
import argparse
import re
import statistics
import sys

import compare
import running
from running import BENCH, middle

# Peers that are started by peers/serve.py, with what clients speak to them.
SERVED = {"nats": "nats", "nchan": "websocket"}
INSTALLED = {"bun": "bun/node_modules/bun", "ws": "ws/node_modules/ws", "nats": "nats/unpacked", "nchan": "nchan/unpacked"}


def run(name, scenario):
    """One run: the load generator's JSON, with how much of the machine others used meanwhile."""
    command = [BENCH / "peers/serve.py", name] if name in SERVED else compare.server_command(name, 1)

    def arguments(ready):
        if name in SERVED:
            address = re.search(r"ready (\S+)", ready).group(1)
            reached = ["--protocol", SERVED[name], "--url", f"ws://{address}/"]
        else:
            reached = compare.client_arguments(name, ready)
        return ["-n", scenario["connections"], "--rate", scenario["rate"], "--nap-us", scenario["nap_us"],
                "--payload-bytes", scenario["payload_bytes"], "--seconds", scenario["seconds"],
                "--warmup-s", scenario["warmup_s"], *reached]

    after = lambda _ready, pid: {"switches": running.context_switches(pid)}
    return running.run(name, scenario, command, arguments, after=after)


def table(results, scenario):
    """Markdown: medians over the repeats."""
    lines = ["| server | p50 ms (lowest, highest) | p99 ms (lowest, highest) | p99.9 ms | CPU µs per delivery (lowest, highest) |"
             " deliveries/s | loadgen µs | others' CPU |", "| --- | --- | --- | ---: | --- | ---: | ---: | --- |"]
    for name in scenario["servers"]:
        runs = [one for one in results if one["label"] == name]

        def spread(*path, of=1.0):
            each = [middle([one], *path) / of for one in runs]
            return f"**{statistics.median(each):.2f}** ({min(each):.2f}, {max(each):.2f})"

        lines.append(
            f"| {name} | {spread('latency', 'p50_us', of=1e3)} | {spread('latency', 'p99_us', of=1e3)}"
            f" | {middle(runs, 'latency', 'p999_us') / 1e3:.2f} | {spread('server_cpu_us_per_delivery')}"
            f" | {middle(runs, 'deliveries_per_s'):,.0f} | {middle(runs, 'loadgen_cpu_us'):.2f}"
            f" | ≤ {max(one['others_cpu_share'] for one in runs):.0%} |")
    return "\n".join(lines)


def versions(servers):
    found = compare.versions(servers)
    unpacked = BENCH / "peers"
    if "nats" in servers:
        found["nats-server"] = running.output_of(unpacked / "nats/unpacked/usr/sbin/nats-server", "-v").split("v")[-1]
    if "nchan" in servers:
        found["nchan on nginx"] = "1.22.1, Debian's packages"
    return found


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} subscribers of one channel, {scenario['rate']} publications a second of {scenario['payload_bytes']} bytes, open loop: \
{scenario['connections'] * scenario['rate']:,} deliveries a second. Latency as the load
generator sees it, from when a publication was due; its readers look every {scenario['nap_us']} µs. Server pinned to core \
{scenario['server_core']}, load generator to core {scenario['loadgen_core']},
loopback; medians of {known['repeats']} interleaved runs of {scenario['seconds']} s, a fresh server each. Publications go over ingest to
Ringway, over a WebSocket connection to all others. Others' CPU is the largest share of the machine that unrelated processes took during a run.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="latency", help="name of a file in bench/scenarios")
    parser.add_argument("--servers", type=lambda text: text.split(","), help="instead of the scenario's")
    running.add_arguments(parser, "latency")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    servers = arguments.servers or scenario["servers"]
    there = lambda name: name not in INSTALLED or (BENCH / "peers" / INSTALLED[name]).exists()
    for name in servers:
        if not there(name):
            print(f"{name} is not installed and left out: bench/peers/install.sh {name}", file=sys.stderr)
    scenario["servers"] = [name for name in servers if there(name)]
    results = []
    for repeat in range(arguments.repeats):
        for name in scenario["servers"]:
            result = run(name, scenario)
            results.append(result)
            print(f"{repeat + 1}/{arguments.repeats}  {name:18} p50 {result['latency']['p50_us'] / 1e3:7.2f} ms"
                  f"  p99 {result['latency']['p99_us'] / 1e3:7.2f} ms  {result['server_cpu_us_per_delivery']:6.2f} µs"
                  f"  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, versions(scenario["servers"]))
    text = table(results, scenario)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, results, page(known, text))


if __name__ == "__main__":
    main()
