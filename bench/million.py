#!/usr/bin/env python3
"""Holds a million connections and publishes to all of them, beside the floor; writes what each costs.

In: a scenario file, the built programs, a network namespace of our own (bench/million.sh makes it). Out: a table, and with
--save a dated pair of files in bench/results.

Every connection has a token and a user id of its own, one subscription to the same channel, and answers pings. Memory is the
process' own; the kernel's for sockets is not in it. CPU of opening is from the first connect to the last
answer to a subscribe. CPU of idling is counted over the rest with all connections open and nothing but pings. The first
publication that the server sees stands in the memory readings alone; behind them come some more, one at a time, each with
its time from the first delivery to the last. The floor gets the same load generator, the same number of connections and
the same publications in the same namespace, over plain upgrades; `ringway-unpinged` is Ringway with no ping in that time,
since the floor has none.
"""
import argparse
import pathlib
import re
import subprocess
import sys

import running
from running import BENCH, middle

SERVERS = ["ringway", "ringway-unpinged", "floor"]
SETTINGS = {
    "net/ipv4/ip_local_port_range": "1024 65535",
    "net/core/somaxconn": "65535",
    "net/ipv4/tcp_max_syn_backlog": "65535",
}


def prepare_namespace():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in SETTINGS.items():
        (pathlib.Path("/proc/sys") / name).write_text(value)


def server_command(name, scenario):
    if name == "floor":
        # A thread for each shard: the open-file limit counts for each alone.
        return [running.programs() / "ringway-floor", "--listen", "127.0.0.1:0", "--threads", scenario["shards"]]
    unpinged = ["--set", "limits.ping_interval_ms=3600000"] if name == "ringway-unpinged" else []
    return [running.programs() / "ringway", "--config", BENCH / "scenarios/million-ringway.toml",
            "--shards", scenario["shards"], "--set", "client.listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0",
            "--set", "ingest.listen=127.0.0.1:0", *unpinged]


def load_arguments(name, scenario, ready):
    if name == "floor":
        address = re.search(r"ready (\S+)", ready).group(1)
        own = ["--protocol", "websocket", "--url", f"ws://{address}/"]
    else:
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        own = ["-s", scenario.get("subscriptions", 1), "--channel-prefix", "plain:c", "--token-secret", "dev",
               "--url", f"ws://{client}/connection/websocket", "--ingest", ingest]
    # Only the product's memory is of interest, and behind the first publication everything is warm.
    rest_s = scenario["rest_s"] if name == "ringway" else 1
    return ["-n", scenario["connections"], "-m", "1", "--nap-us", scenario["nap_us"], "--opening-max", scenario["opening_max"],
            "--payload-bytes", scenario["payload_bytes"], "--broadcasts", scenario["broadcasts"], "--warmup-s", "0",
            "--rest-s", rest_s, "--stall-s", "60", *own]


def run(name, scenario):
    return running.run(name, scenario, server_command(name, scenario), lambda ready: load_arguments(name, scenario, ready))


def broadcast(result, key):
    """Median over the single publications of a run."""
    return middle(result["broadcasts"], key)


def table(result):
    memory = result["memory"]
    each = lambda moment: f"{memory[moment]['resident_bytes_per_connection']:.0f}"
    rows = [
        ("connections open, subscribed, pinged", f"{result['open_at_end']:,}"),
        ("resident bytes per connection: idle", each("opened")),
        ("… when each had received one publication", each("received")),
        ("… after a rest", each("received_rested")),
        ("… behind the load and a rest", each("loaded")),
        ("kernel: bytes of small objects per connection, both ends, whatever else ran included",
         f"{memory['opened']['kernel_slab_bytes_per_connection']:,.0f}"),
        ("resident bytes of the server with no connection", f"{memory['before']['resident_bytes']:,}"),
        ("server CPU of idle, pinged connections, cores", f"{memory['opened']['cores']:.3f}"),
        ("opening: connections/s", f"{result['opened_per_s']:,.0f}"),
        ("opening: server CPU µs per connection (upgrade, token, subscribe)", f"{result['server_cpu_us_per_opening']:.1f}"),
        ("load generator: resident bytes per connection", f"{result['loadgen_bytes_per_connection']:.0f}"),
        ("missing, doubled or disordered deliveries", "0" if result["intact"] else ", ".join(result["problems"])),
        ("others' CPU", f"{result['others_cpu_share']:.0%}"),
    ]
    return "\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)])


def broadcast_table(results):
    """Each server's publications to all, beside the floor's."""
    floor = next((result for result in results if result["label"] == "floor"), None)
    lines = ["", "## One publication to all", "",
             "| server | first to last delivery, ms (each) | of the floor | publishing to last, ms | CPU µs per delivery (each) |"
             " of the floor | opening: CPU µs, connections/s | others' CPU |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for result in results:
        each = lambda key, form: ", ".join(format(one[key], form) for one in result["broadcasts"])
        of_floor = lambda key: f"{broadcast(result, key) / broadcast(floor, key):.2f}×" if floor else "–"
        took, cpu = "first_to_last_ms", "server_cpu_us_per_delivery"
        lines.append(
            f"| {result['label']} | **{broadcast(result, took):,.0f}** ({each(took, ',.0f')}) | {of_floor(took)}"
            f" | {broadcast(result, 'publish_to_last_ms'):,.0f} | **{broadcast(result, cpu):.2f}** ({each(cpu, '.2f')})"
            f" | {of_floor(cpu)} | {result['server_cpu_us_per_opening']:.1f}, {result['opened_per_s']:,.0f}"
            f" | {result['others_cpu_share']:.0%} |")
    return "\n".join(lines)


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} connections of one load generator command to one process of {scenario['shards']} shards on core \
{scenario['server_core']}; every connection
a user of its own by its token, subscribed to one channel, pinged every 50 s; loopback in a network namespace of its own with
4,194,304 TCP hash buckets. A rest is {scenario['rest_s']} s. The floor has as many threads as Ringway has shards, on the same core;
`ringway-unpinged` is not pinged while it is measured, as the floor is not. Times and CPU of a publication are medians of
{scenario['broadcasts']}, one at a time, behind a first one that is not counted.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="million", help="name of a file in bench/scenarios")
    parser.add_argument("--servers", default=SERVERS, type=lambda text: text.split(","),
                        help=f"of {','.join(SERVERS)}; each holds all connections in its turn")
    running.add_arguments(parser, "million")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    prepare_namespace()
    if unknown := set(arguments.servers) - set(SERVERS):
        sys.exit(f"unknown servers {unknown}: {', '.join(SERVERS)}")
    results = []
    for name in arguments.servers:
        results.append(run(name, scenario))
        print(f"{name:18} {broadcast(results[-1], 'first_to_last_ms'):9,.0f} ms", file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, {})
    text = "\n".join([table(result) for result in results if result["label"] == "ringway"] + [broadcast_table(results)])
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, results, page(known, text))


if __name__ == "__main__":
    main()
