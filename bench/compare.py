#!/usr/bin/env python3
"""Runs one fan-out scenario against several servers in turn and writes what each costs.

In: a scenario file, the built programs, the installed peers. Out: a table, and with --save a dated pair of files in
bench/results (raw runs as JSON, medians as Markdown).

`running.py` says by which rules the figures are comparable; here all servers have the same load generator with the same
reader settings.
"""
import argparse
import re
import sys

import running
from running import BENCH, middle


def server_command(name, outstanding):
    """Command line of each server. Ports are free ones; each prints a line with `ready` and its addresses."""
    peers = BENCH / "peers"
    if name.startswith("ringway"):
        return [running.programs() / "ringway", "--dev", "--shards", "1", "--set", "client.listen=127.0.0.1:0",
                "--set", "control.listen=127.0.0.1:0", "--set", "ingest.listen=127.0.0.1:0",
                *(["--set", "ring.send_mode=syscall"] if name == "ringway-syscall" else [])]
    if name == "floor":
        # The floor of several outstanding messages is one write of all that wait.
        return [running.programs() / "ringway-floor", "--listen", "127.0.0.1:0"] + ["--frames-joined"] * (outstanding > 1)
    if name == "floor-send":
        return server_command("floor", outstanding) + ["--mode", "send"]
    if name == "bun":
        return [peers / "bun/node_modules/.bin/bun", peers / "bun/server.js", "0"]
    if name == "ws":
        return ["node", peers / "ws/server.js", "0"]
    sys.exit(f"unknown server {name}: ringway, ringway-protobuf, ringway-syscall, floor, floor-send, bun, ws")


def client_arguments(name, ready):
    """How the load generator reaches the server whose ready line this is."""
    if name.startswith("ringway"):
        protocol = "centrifuge-protobuf" if name == "ringway-protobuf" else "centrifuge-json"
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        return ["--protocol", protocol, "--url", f"ws://{client}/connection/websocket", "--ingest", ingest]
    address = re.search(r"ready (\S+)", ready).group(1)
    return ["--protocol", "websocket", "--url", f"ws://{address}/"]


def run(name, scenario, outstanding):
    """One run: the load generator's JSON, with how much of the machine others used meanwhile."""
    arguments = lambda ready: [*running.fanout_arguments(scenario, outstanding), *client_arguments(name, ready)]
    return running.run(name, scenario, server_command(name, outstanding), arguments)


def versions(servers):
    found = {"node": running.output_of("node", "--version")} if "ws" in servers else {}
    if "bun" in servers:
        found["bun"] = running.output_of(server_command("bun", 1)[0], "--version")
    return found


def table(results, arguments, scenario):
    """Markdown: medians over the repeats, and each server's CPU against the floor's."""
    lines = []
    for outstanding in scenario["outstanding"]:
        lines += ["", f"## {outstanding} outstanding", "",
                  "| server | CPU µs per delivery (lowest, highest) | of the floor | user µs | deliveries/s | p50 ms | p99 ms |"
                  " loadgen µs | others' CPU |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        of = lambda name: [run for run in results if run["label"] == name and run["outstanding"] == outstanding]
        floor = middle(of("floor"), "server_cpu_us_per_delivery")
        for name in arguments.servers:
            runs = of(name)
            cpu = middle(runs, "server_cpu_us_per_delivery")
            each = [run["server_cpu_us_per_delivery"] for run in runs]
            ratio = f"{cpu / floor:.2f}×" if floor else "–"
            others = max(run["others_cpu_share"] for run in runs)
            lines.append(
                f"| {name} | **{cpu:.2f}** ({min(each):.2f}, {max(each):.2f}) | {ratio} | {middle(runs, 'server_user_us'):.2f}"
                f" | {middle(runs, 'deliveries_per_s'):,.0f} | {middle(runs, 'latency', 'p50_us') / 1e3:.1f}"
                f" | {middle(runs, 'latency', 'p99_us') / 1e3:.1f} | {middle(runs, 'loadgen_cpu_us'):.2f}"
                f" | ≤ {others:.0%} |")
    return "\n".join(lines).lstrip()


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} subscribers of one channel, payload {scenario['payload_bytes']} bytes, server pinned to core \
{scenario['server_core']}, load generator to core {scenario['loadgen_core']}, loopback, readers nap {scenario['nap_us']} µs; \
medians of {known['repeats']} interleaved runs of {scenario['seconds']} s, a fresh server each. Latency is counted from
publishing; in a closed loop it is mostly queueing. The floor joins what waits when several messages are outstanding.
Others' CPU is the largest share of the machine that unrelated processes took during a run.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="fanout-10k", help="name of a file in bench/scenarios")
    parser.add_argument("--servers", default="ringway,floor,bun", type=lambda text: text.split(","))
    running.add_arguments(parser, "fanout")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = []
    for repeat in range(arguments.repeats):
        for outstanding in scenario["outstanding"]:
            for name in arguments.servers:
                result = run(name, scenario, outstanding)
                results.append(result)
                print(f"{repeat + 1}/{arguments.repeats}  {outstanding} outstanding  {name:18}"
                      f" {result['server_cpu_us_per_delivery']:7.2f} µs  {result['deliveries_per_s']:10,.0f}/s"
                      f"  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, versions(arguments.servers))
    text = table(results, arguments, scenario)
    print(text)
    if arguments.save:
        running.save("fanout", known, results, page(known, text))


if __name__ == "__main__":
    main()
