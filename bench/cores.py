#!/usr/bin/env python3
"""The same work on one shard and on two, beside the floor's one thread and two; writes what the second core brings.

In: a scenario file, the built programs. Out: a table, and with --save a dated pair of files in bench/results.

Both cores carry clients in every run: the load generator has a worker process on each. One shard is pinned to the first
core, two to both. What is compared is the server's CPU per delivery, and how much more is delivered in a second with two;
since the clients need the cores too, the latter is measured against what the floor gains in the run beside it.
"""
import argparse
import re
import statistics
import sys

import running
from running import BENCH, middle

SERVERS = ["ringway", "floor"]
CPU, RATE = "server_cpu_us_per_delivery", "deliveries_per_s"


def server_command(name, cores):
    if name == "floor":
        return [running.programs() / "ringway-floor", "--listen", "127.0.0.1:0", "--threads", len(cores),
                "--cpu", ",".join(str(core) for core in cores)]
    # Shards pin themselves to the cores that the process may use, in turn.
    return [running.programs() / "ringway", "--config", BENCH / "scenarios/direct-ringway.toml", "--shards", len(cores),
            "--set", "client.listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0", "--set", "ingest.listen=127.0.0.1:0"]


def run(name, scenario, cores):
    def arguments(ready):
        common = [*running.fanout_arguments(scenario, scenario.get("outstanding", 1)), "--workers", scenario["workers"]]
        if name == "floor":
            address = re.search(r"ready (\S+)", ready).group(1)
            return [*common, "--protocol", "websocket", "--url", f"ws://{address}/"]
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        return [*common, "--channel-prefix", "plain:c", "--url", f"ws://{client}/connection/websocket", "--ingest", ingest]

    placed = {**scenario, "server_core": ",".join(str(core) for core in cores)}
    return {**running.run(name, placed, server_command(name, cores), arguments), "server_threads": len(cores)}


def table(results):
    of = lambda name, threads: [run for run in results if run["label"] == name and run["server_threads"] == threads]
    lines = ["| server | CPU µs per delivery (lowest, highest) | user µs | deliveries/s (lowest, highest) | loadgen µs |"
             " others' CPU |", "| --- | --- | --- | --- | --- | --- |"]
    for name in SERVERS:
        for threads in (1, 2):
            runs = of(name, threads)
            span = lambda key, form: f"({min(run[key] for run in runs):{form}}, {max(run[key] for run in runs):{form}})"
            lines.append(
                f"| {name}, {threads} {'shard' if name == 'ringway' else 'thread'}{'s' * (threads > 1)}"
                f" | **{middle(runs, CPU):.2f}** {span(CPU, '.2f')} | {middle(runs, 'server_user_us'):.2f}"
                f" | {middle(runs, RATE):,.0f} {span(RATE, ',.0f')} | {middle(runs, 'loadgen_cpu_us'):.2f}"
                f" | ≤ {max(run['others_cpu_share'] for run in runs):.0%} |")
    gain = {name: [two[RATE] / one[RATE] for one, two in zip(of(name, 1), of(name, 2))] for name in SERVERS}
    shares = [own / floor for own, floor in zip(gain["ringway"], gain["floor"])]
    lines += ["", "| two against one, in the runs beside each other: median (lowest, highest) | CPU per delivery | deliveries/s |",
              "| --- | --- | --- |"]
    lines += [f"| {name} | {running.ratio(of(name, 2), of(name, 1), CPU)} | {running.ratio(of(name, 2), of(name, 1), RATE)} |"
              for name in SERVERS]
    lines += ["", f"Ringway's gain in deliveries/s is **{statistics.median(shares):.2f}×** of the floor's "
                  f"({min(shares):.2f}, {max(shares):.2f})."]
    return "\n".join(lines)


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} subscribers of one channel, payload {scenario['payload_bytes']} bytes, one message outstanding; the load \
generator has {scenario['workers']} worker processes, one on
each of cores {scenario['loadgen_core']}; one shard (thread) on core {scenario['server_cores'][0]}, two on cores \
{', '.join(str(core) for core in scenario['server_cores'])}; loopback, readers nap {scenario['nap_us']} µs; medians of
{known['repeats']} interleaved runs of {scenario['seconds']} s, a fresh server each. With clients on both cores the most that a second thread can
bring is less than twice: the clients' work stays where it is.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="cores-10k", help="name of a file in bench/scenarios")
    running.add_arguments(parser, "cores")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = []
    for repeat in range(arguments.repeats):
        for name in SERVERS:
            for threads in (1, 2):
                result = run(name, scenario, scenario["server_cores"][:threads])
                results.append(result)
                print(f"{repeat + 1}/{arguments.repeats}  {name:8} {threads} {result[CPU]:7.2f} µs"
                      f" (user {result['server_user_us']:.2f})  {result[RATE]:10,.0f}/s"
                      f"  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, {})
    text = table(results)
    print(text)
    if arguments.save:
        running.save("cores", known, results, page(known, text))


if __name__ == "__main__":
    main()
