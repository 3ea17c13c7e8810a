#!/usr/bin/env python3
"""Holds a million connections and publishes once to all of them; writes what each costs.

In: a scenario file, the built programs, a network namespace of our own (bench/million.sh makes it). Out: a table, and with
--save a dated pair of files in bench/results.

Every connection has a token and a user id of its own, one subscription to the same channel, and answers pings. Memory is the
process' own; the kernel's for sockets is not in it. CPU of opening is from the first connect to the last
answer to a subscribe. CPU of idling is counted over the rest with all connections open and nothing but pings. The publication
is the first that the server sees.
"""
import argparse
import pathlib
import re
import subprocess

import running
from running import BENCH

SETTINGS = {
    "net/ipv4/ip_local_port_range": "1024 65535",
    "net/core/somaxconn": "65535",
    "net/ipv4/tcp_max_syn_backlog": "65535",
}


def prepare_namespace():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in SETTINGS.items():
        (pathlib.Path("/proc/sys") / name).write_text(value)


def run(scenario):
    server = [running.programs() / "ringway", "--config", BENCH / "scenarios/million-ringway.toml",
              "--shards", scenario["shards"], "--set", "client.listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0",
              "--set", "ingest.listen=127.0.0.1:0"]

    def arguments(ready):
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        return ["-n", scenario["connections"], "-m", "1", "-s", scenario.get("subscriptions", 1), "-k", "1",
                "--nap-us", scenario["nap_us"], "--opening-max", scenario["opening_max"], "--channel-prefix", "plain:c",
                "--token-secret", "dev", "--payload-bytes", scenario["payload_bytes"], "--seconds", "1", "--warmup-s", "0",
                "--rest-s", scenario["rest_s"], "--stall-s", "60", "--url", f"ws://{client}/connection/websocket",
                "--ingest", ingest]

    return running.run("ringway", scenario, server, arguments)


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
        ("one publication to all: server CPU µs per delivery", f"{result['server_cpu_us_per_delivery']:.2f}"),
        ("one publication to all: deliveries/s", f"{result['deliveries_per_s']:,.0f}"),
        ("load generator: resident bytes per connection", f"{result['loadgen_bytes_per_connection']:.0f}"),
        ("missing, doubled or disordered deliveries", "0" if result["intact"] else ", ".join(result["problems"])),
        ("others' CPU", f"{result['others_cpu_share']:.0%}"),
    ]
    return "\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)])


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} connections of one load generator command to one process of {scenario['shards']} shards on core \
{scenario['server_core']}; every connection
a user of its own by its token, subscribed to one channel, pinged every 50 s; loopback in a network namespace of its own with
4,194,304 TCP hash buckets. A rest is {scenario['rest_s']} s.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="million", help="name of a file in bench/scenarios")
    running.add_arguments(parser, "million")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    prepare_namespace()
    result = run(scenario)
    known = running.facts(scenario, arguments, {})
    text = table(result)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, [result], page(known, text))


if __name__ == "__main__":
    main()
