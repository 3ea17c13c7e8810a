#!/usr/bin/env python3
"""Lets everybody connect at once and writes what an opening costs: the upgrade alone, and all that follows it.

In: a scenario file, the built programs, the installed peers. Out: tables, and with --save a dated pair of files in
bench/results.

Two kinds of case. Where commands are off, a connection is open with the answer to its upgrade, for every server alike.
Where they are on, each connection of Ringway has an HS256 token of its own, and is open with the answer to its subscribe;
connect and subscribe travel in one message. A server's CPU is that of its process from the first connect to the last
opening. The load generator makes connections as fast as one core lets it: the cores that both sides used say which of
them was the slower. Beside CPU stand the turns of Ringway's loops and the context switches of each server, per opening.
"""
import argparse
import re
import statistics
import sys

import compare
import running
from running import BENCH, middle

COUNTED = {
    "turns": "ringway_loop_turns_total",
    "sleeps": "ringway_loop_sleeps_total",
    "lane_batches": "ringway_lane_batches_sent_total",
    "lane_wakes": "ringway_lane_wakes_total",
}


def server_command(name, case):
    if not name.startswith("ringway"):
        return compare.server_command(name, 1)
    ports = [part for port in ("client", "control", "ingest") for part in ("--set", f"{port}.listen=127.0.0.1:0")]
    return [running.programs() / "ringway", "--config", BENCH / "scenarios/million-ringway.toml",
            "--shards", case["shards"], *ports]


def run(name, scenario, case):
    """One run of one case: the load generator's JSON, and what the server counted."""
    def arguments(ready):
        address = re.search(r"client=(\S+)" if name.startswith("ringway") else r"ready (\S+)", ready).group(1)
        path = "/connection/websocket" if name.startswith("ringway") else "/"
        speaks = ["--token-secret", "dev", "--channel-prefix", "plain:c"] if case["commands"] else ["--protocol", "websocket"]
        return ["-n", case["connections"], "--opening-max", scenario["opening_max"], "--nap-us", scenario["nap_us"],
                "--hold-s", "0", "--stall-s", "60", "--url", f"ws://{address}{path}", *speaks]

    def after(ready, pid):
        counted = running.metrics(ready) if name.startswith("ringway") else {}
        return {"case": case["name"], "shards": case["shards"], "switches": running.context_switches(pid),
                **{short: counted[metric] for short, metric in COUNTED.items() if metric in counted}}

    return running.run(name, scenario, server_command(name, case), arguments, doing="connect", after=after)


def table(results, scenario):
    """Markdown: medians over the repeats; ratios against Bun within a repeat."""
    lines = []
    for case in scenario["cases"]:
        of = lambda name: [one for one in results if one["label"] == name and one["case"] == case["name"]
                           and one["shards"] == case["shards"] and one["connections"] == case["connections"]]
        what = "upgrade, connect with a token of its own, subscribe" if case["commands"] else "upgrade alone"
        lines += ["", f"## {case['connections']:,} connections, {case['shards']} shard{'s' * (case['shards'] > 1)}: {what}", "",
                  "| server | server CPU µs per opening (lowest, highest) | of Bun, within a repeat | connections/s |"
                  " cores: server, load generator | p50 ms | p99 ms | turns | sleeps | lane wakes | context switches | others' CPU |",
                  "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
        for name in case["servers"]:
            runs, beside = of(name), of("bun")
            each = [one["server_cpu_us_per_opening"] for one in runs]
            ratios = [one["server_cpu_us_per_opening"] / peer["server_cpu_us_per_opening"] for one, peer in zip(runs, beside)]
            ratio = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}, {max(ratios):.2f})" if ratios else "–"
            cores = lambda side: statistics.median(one[f"{side}_cpu_us_per_opening"] * one["opened_per_s"] / 1e6 for one in runs)
            per = lambda short: f"{middle(runs, short) / case['connections']:.2f}" if middle(runs, short) is not None else "–"
            switches = statistics.median(sum(one["switches"].values()) for one in runs) / case["connections"]
            lines.append(
                f"| {name} | **{statistics.median(each):.1f}** ({min(each):.1f}, {max(each):.1f}) | {ratio}"
                f" | {middle(runs, 'opened_per_s'):,.0f} | {cores('server'):.2f}, {cores('loadgen'):.2f}"
                f" | {middle(runs, 'opening_latency', 'p50_us') / 1e3:.1f} | {middle(runs, 'opening_latency', 'p99_us') / 1e3:.1f}"
                f" | {per('turns')} | {per('sleeps')} | {per('lane_wakes')} | {switches:.2f}"
                f" | ≤ {max(one['others_cpu_share'] for one in runs):.0%} |")
    return "\n".join(lines).lstrip()


def page(known, text):
    scenario = known["scenario"]
    return f"""# {scenario['name']}, {known['date']}

Everybody connects at once, on loopback: all shards of the server on core {scenario['server_core']}, all processes of the load
generator on core {scenario['loadgen_core']}, each with at most {scenario['opening_max']} connections opening; medians of \
{known['repeats']} interleaved runs, a fresh server each. Turns,
sleeps, lane wakes and context switches are those of the server's whole run, per connection. Others' CPU is the largest share of the machine that
unrelated processes took during a run. On loopback the clients' handshake runs in the load generator, and what the
server sends is received within its send.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="storm", help="name of a file in bench/scenarios")
    running.add_arguments(parser, "storm")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = []
    for repeat in range(arguments.repeats):
        for case in scenario["cases"]:
            for name in case["servers"]:
                result = run(name, scenario, case)
                results.append(result)
                print(f"{repeat + 1}/{arguments.repeats}  {case['name']:8} {case['connections']:7,} {case['shards']:2} shards"
                      f"  {name:10} {result['server_cpu_us_per_opening']:7.1f} µs  {result['opened_per_s']:9,.0f}/s"
                      f"  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    servers = {name for case in scenario["cases"] for name in case["servers"]}
    known = running.facts(scenario, arguments, compare.versions(servers))
    text = table(results, scenario)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, results, page(known, text))


if __name__ == "__main__":
    main()
