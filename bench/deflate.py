#!/usr/bin/env python3
"""Runs one broadcast with and without permessage-deflate in turn and writes what compression costs and saves.

In: a scenario file, the built programs. Out: tables, and with --save a dated pair of files in bench/results.

Every run is a fresh server with the same configuration (scenarios/deflate-server.toml); only the clients differ:

  plain    offer nothing, channel of a namespace that does not compress
  deflate  offer permessage-deflate, channel of a namespace that compresses
  offered  offer it, channel of the namespace that does not compress: what the agreement alone costs

The load generator inflates and checks every delivery, and fails a run in which one that should be compressed is not.
Memory is the process': before the first connection, with all open and idle, when each has received one message, after a
rest, and after the load and a rest. It is read at two numbers of connections, since the first hundreds share what a
process needs once. These runs have the allocator give back at once what is free and take no huge pages: those come in
steps of 2 MiB, which is 200 bytes for each of 10,000 connections. The runs that CPU is counted in have it as it is.
"""
import argparse
import re
import sys

import running
from running import BENCH, middle

CLIENTS = {
    "plain": ["--channel-prefix", "plain:c"],
    "deflate": ["--channel-prefix", "packed:c", "--deflate"],
    "offered": ["--channel-prefix", "plain:c", "--deflate", "--deflate-bytes-min", "0"],
}
# Of mimalloc, for the runs in which memory is read.
EXACT_MEMORY = {"MIMALLOC_ALLOW_THP": "0", "MIMALLOC_PURGE_DELAY": "0"}
MOMENTS = ["opened", "received", "received_rested", "loaded"]


def run(name, scenario, outstanding, exact_memory):
    command = [running.programs() / "ringway", "--config", BENCH / "scenarios/deflate-server.toml", "--shards", "1",
               "--set", "client.listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0",
               "--set", "ingest.listen=127.0.0.1:0"]

    def arguments(ready):
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        return [*running.fanout_arguments(scenario, outstanding), "--payload", "json", "--rest-s", scenario["rest_s"],
                "--url", f"ws://{client}/connection/websocket", "--ingest", ingest, *CLIENTS[name]]

    result = running.run(name, scenario, command, arguments, EXACT_MEMORY if exact_memory else {})
    return {**result, "exact_memory": exact_memory}


def cpu_table(results, arguments, scenario):
    lines = []
    for outstanding in scenario["outstanding"]:
        lines += ["", f"## Per delivery, {outstanding} outstanding", "",
                  "| clients | CPU µs (lowest, highest) | of the plain run beside it | user µs | bytes on the wire | of the plain run beside it | deliveries/s"
                  " | loadgen µs | others' CPU |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        of = lambda name: [run for run in results if run["label"] == name and run["outstanding"] == outstanding
                           and not run["exact_memory"]]
        share = lambda name, key: running.ratio(of(name), of("plain"), key)
        for name in arguments.clients:
            runs = of(name)
            each = [run["server_cpu_us_per_delivery"] for run in runs]
            lines.append(
                f"| {name} | **{middle(runs, 'server_cpu_us_per_delivery'):.2f}** ({min(each):.2f}, {max(each):.2f})"
                f" | {share(name, 'server_cpu_us_per_delivery')} | {middle(runs, 'server_user_us'):.2f}"
                f" | **{middle(runs, 'received_bytes_per_delivery'):.0f}** | {share(name, 'received_bytes_per_delivery')}"
                f" | {middle(runs, 'deliveries_per_s'):,.0f} | {middle(runs, 'loadgen_cpu_us'):.2f}"
                f" | ≤ {max(run['others_cpu_share'] for run in runs):.0%} |")
    return lines


def memory_table(results, arguments, scenario):
    sizes = [scenario["connections_fewer"], scenario["connections"]]
    of = lambda name, size, exact=True: [run for run in results if run["label"] == name and run["connections"] == size
                                         and run["exact_memory"] == exact]
    lines = ["", "## Memory of the process", "",
             "Resident bytes since before the first connection, per connection (proportional ones behind the comma).", "",
             "| connections | clients | open and idle | each received one | after a rest | after the load and a rest |",
             "| --- | --- | --- | --- | --- | --- |"]
    for size in sizes:
        for name in arguments.clients:
            cells = [", ".join(f"{middle(of(name, size), 'memory', moment, f'{kind}_bytes_per_connection'):.0f}"
                               for kind in ("resident", "proportional")) for moment in MOMENTS]
            lines.append(f"| {size:,} | {name} | {' | '.join(cells)} |")
    lines += ["", f"Each connection beyond the first {sizes[0]:,}, resident bytes:", "",
              "| clients | open and idle | each received one | after a rest | after the load and a rest |",
              "| --- | --- | --- | --- | --- |"]
    for name in arguments.clients:
        total = lambda size, moment: middle(of(name, size), "memory", moment, "resident_bytes")
        cells = [f"**{(total(sizes[1], moment) - total(sizes[0], moment)) / (sizes[1] - sizes[0]):.0f}**" for moment in MOMENTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in arguments.clients:
        more = lambda size: (middle(of(name, size), "memory", "received_rested", "resident_bytes")
                             - middle(of("plain", size), "memory", "received_rested", "resident_bytes")) / 1024
        if name != "plain" and "plain" in arguments.clients:
            lines += ["", f"The process with {name} clients is {more(sizes[0]):+,.0f} KiB against plain ones at {sizes[0]:,}"
                      f" connections and {more(sizes[1]):+,.0f} KiB at {sizes[1]:,}, each after one message and a rest."]
    default = [f"{name} {middle(of(name, sizes[1], False), 'memory', 'received_rested', 'resident_bytes_per_connection'):.0f}"
               for name in arguments.clients]
    lines += ["", f"With the allocator as it is, in steps of 2 MiB: {', '.join(default)} bytes for each of {sizes[1]:,} connections"
              " after one message and a rest."]
    return lines


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

One server configuration, a broadcast of a JSON object of {scenario['payload_bytes']:,} bytes to {scenario['connections']:,} \
subscribers of one channel. `plain` clients offer no compression; `deflate` clients offer permessage-deflate and subscribe
in a namespace that compresses. Server pinned to core {scenario['server_core']}, load generator to core \
{scenario['loadgen_core']}, loopback, readers nap {scenario['nap_us']} µs; medians of {known['repeats']} interleaved runs of
{scenario['seconds']} s, a fresh server each.

The load generator inflates every delivery and checks its sequence; where that makes it the slower side ("loadgen µs"),
deliveries/s are its own. The server's CPU is what it used in the window for the deliveries in it, also where it waited for
the load generator. Bytes on the wire are
those of the TCP stream, frame headers included; on loopback they are copied and not sent, so that CPU saved by sending
fewer is what copying cost. Memory is the process' own; the kernel's for sockets is not in it. It is read in runs of their own, in which the allocator
gives back at once what is free and takes no huge pages ({', '.join(f'{key}={value}' for key, value in EXACT_MEMORY.items())}). A rest is {scenario['rest_s']} s.
Others' CPU is the largest share of the machine that unrelated processes took during a run; it moves CPU figures most.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="deflate-10k", help="name of a file in bench/scenarios")
    parser.add_argument("--clients", default="plain,deflate", type=lambda text: text.split(","),
                        help=f"of {','.join(CLIENTS)}")
    running.add_arguments(parser, "deflate")
    arguments = parser.parse_args()
    if unknown := set(arguments.clients) - set(CLIENTS):
        sys.exit(f"unknown clients {', '.join(sorted(unknown))}: {', '.join(CLIENTS)}")
    scenario = running.prepare(arguments)
    short = {**scenario, "seconds": min(1.0, scenario["seconds"])}
    fewer = {**short, "connections": scenario["connections_fewer"]}
    kinds = [(scenario, outstanding, False) for outstanding in scenario["outstanding"]]
    kinds += [(kind, scenario["outstanding"][0], True) for kind in (fewer, short)]
    results = []
    for repeat in range(arguments.repeats):
        for kind, outstanding, exact_memory in kinds:
            for name in arguments.clients:
                result = run(name, kind, outstanding, exact_memory)
                results.append(result)
                print(f"{repeat + 1}/{arguments.repeats}  {kind['connections']:6} connections  {outstanding} outstanding"
                      f"  {name:8} {result['server_cpu_us_per_delivery']:6.2f} µs"
                      f"  {result['received_bytes_per_delivery']:5.0f} B  {result['deliveries_per_s']:9,.0f}/s"
                      f"  idle {result['memory']['received_rested']['resident_bytes_per_connection']:6.0f} B"
                      f"{' exact' if exact_memory else '      '}  others {result['others_cpu_share']:.0%}",
                      file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, {})
    text = "\n".join(cpu_table(results, arguments, scenario) + memory_table(results, arguments, scenario)).lstrip()
    print(text)
    if arguments.save:
        running.save("deflate", known, results, page(known, text))


if __name__ == "__main__":
    main()
