#!/usr/bin/env python3
"""Sends each of many clients a message of its own, with several servers in turn, and writes what a send costs.

In: a scenario file, the built programs, Bun. Out: a table, and with --save a dated pair of files in bench/results.

Every client has a channel (a topic, a number) of its own, and they are published to in turn, with fewer messages
outstanding than there are clients: so no two wait for one client, and each delivery is a write of its own.

  ringway, ringway-protobuf   published over the ingest port, in its batches
  floor                       a message names its connection by number and becomes one SEND of its own frame
  bun                         publish() to a topic with one subscriber
"""
import argparse
import re
import sys

import running
from running import BENCH, middle

PEERS = ["ringway", "ringway-protobuf", "floor", "bun"]


def server_command(name):
    if name.startswith("ringway"):
        return [running.programs() / "ringway", "--config", BENCH / "scenarios/direct-ringway.toml", "--shards", "1",
                "--set", "client.listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0",
                "--set", "ingest.listen=127.0.0.1:0"]
    if name.startswith("floor"):
        return [running.programs() / "ringway-floor", "--listen", "127.0.0.1:0"]
    if name == "bun":
        return [BENCH / "peers/bun/node_modules/.bin/bun", BENCH / "peers/bun/server.js", "0"]
    sys.exit(f"unknown server {name}: {', '.join(PEERS)}")


def client_arguments(name, ready):
    """How the load generator reaches the server whose ready line this is."""
    if name.startswith("ringway"):
        protocol = "centrifuge-protobuf" if name == "ringway-protobuf" else "centrifuge-json"
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        return ["--protocol", protocol, "--channel-prefix", "plain:c", "--url", f"ws://{client}/connection/websocket",
                "--ingest", ingest]
    address = re.search(r"ready (\S+)", ready).group(1)
    return ["--protocol", "websocket", "--url", f"ws://{address}/direct/{{channel}}", "--publish-path", "/direct/publish"]


def run(name, scenario):
    def arguments(ready):
        return [*running.fanout_arguments(scenario, scenario["outstanding"]), "--refill", "slide",
                "-m", scenario["connections"], *client_arguments(name, ready)]

    return running.run(name, scenario, server_command(name), arguments)


def table(results, arguments):
    """Markdown: medians over the repeats, each server beside the floor."""
    of = lambda name: [run for run in results if run["label"] == name]
    against = lambda name, key: running.ratio(of(name), of("floor"), key)
    lines = ["| server | sends/s (lowest, highest) | of the floor beside it | CPU µs per send (lowest, highest) |"
             " of the floor beside it | user µs | loadgen µs | others' CPU |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name in arguments.servers:
        runs = of(name)
        span = lambda key, form: f"({min(run[key] for run in runs):{form}}, {max(run[key] for run in runs):{form}})"
        rate, cpu = "deliveries_per_s", "server_cpu_us_per_delivery"
        lines.append(
            f"| {name} | **{middle(runs, rate):,.0f}** {span(rate, ',.0f')} | {against(name, rate)}"
            f" | **{middle(runs, cpu):.2f}** {span(cpu, '.2f')} | {against(name, cpu)} | {middle(runs, 'server_user_us'):.2f}"
            f" | {middle(runs, 'loadgen_cpu_us'):.2f} | ≤ {max(run['others_cpu_share'] for run in runs):.0%} |")
    return "\n".join(lines)


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} channels with one subscriber each, messages of {scenario['payload_bytes']} bytes to them in turn, \
{scenario['outstanding']:,} outstanding, each delivery a write of its own; server pinned
to core {scenario['server_core']}, load generator (publisher and readers) to core {scenario['loadgen_core']}, loopback, readers nap \
{scenario['nap_us']} µs; medians of {known['repeats']} interleaved runs of {scenario['seconds']} s, a fresh
server each. Ringway is published to over ingest in batches of at most 256, the others over one WebSocket connection.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="direct-10k", help="name of a file in bench/scenarios")
    parser.add_argument("--servers", default=PEERS, type=lambda text: text.split(","), help="of " + ",".join(PEERS))
    running.add_arguments(parser, "direct")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = []
    for repeat in range(arguments.repeats):
        for name in arguments.servers:
            result = run(name, scenario)
            results.append(result)
            print(f"{repeat + 1}/{arguments.repeats}  {name:18} {result['deliveries_per_s']:10,.0f}/s"
                  f" {result['server_cpu_us_per_delivery']:7.2f} µs (user {result['server_user_us']:.2f})"
                  f"  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    versions = {"bun": running.output_of(server_command("bun")[0], "--version")} if "bun" in arguments.servers else {}
    known = running.facts(scenario, arguments, versions)
    text = table(results, arguments)
    print(text)
    if arguments.save:
        running.save("direct", known, results, page(known, text))


if __name__ == "__main__":
    main()
