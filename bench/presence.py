#!/usr/bin/env python3
"""Lets members of presence channels of several sizes leave and join again, and writes what each event costs.

In: bench/scenarios/presence.toml, the built programs. Out: a table, and with --save a dated pair of files in
bench/results (raw runs as JSON, medians as Markdown).

Rules that make the figures comparable: one server holds the channels of all sizes, on the same connections, and short
windows follow each other in turn, channels with presence beside those without (the reference), sizes beside sizes; a ratio
or a difference is taken within a round, since the machine's speed drifts, and its median over all rounds is what counts.
The server is pinned to one core, the load generator to another. Every member is a user of its own, by its token.
"""
import argparse
import re
import statistics
import sys

import running
from running import BENCH

SECRET = "dev"  # of client tokens, with --dev


def run(scenario):
    """One run: the load generator's JSON, with how much of the machine others used meanwhile."""
    server = [running.programs() / "ringway", "--dev", "--config", BENCH / "scenarios" / "presence-ringway.toml",
              "--shards", scenario["shards"],
              *[part for port in ("client", "control", "ingest") for part in ("--set", f"{port}.listen=127.0.0.1:0")]]

    def load(ready):
        client, control = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "control"))
        option = lambda name: [f"--{name.replace('_', '-')}", scenario[name]]
        channels = [f"{kind}:{size}={size}" for size in scenario["members"] for kind in scenario["namespaces"]]
        return ["-n", max(scenario["members"]), "--url", f"ws://{client}/connection/websocket", "--control", control,
                "--token-secret", SECRET, "--churn-channels", ",".join(channels),
                "--churners", ",".join(str(count) for count in scenario["churners"]),
                *[part for name in ("watchers", "outstanding", "rounds", "seconds", "warmup_s", "nap_us", "workers")
                  for part in option(name)]]

    return running.run("presence", scenario, server, load, doing="presence")


def windows(results, kind, size, churners):
    """Of all repeats and rounds, in order. Where the members are as few as the churners, both are the same."""
    wanted = min(size, churners or size)
    return [one for result in results for one in result["windows"]
            if one["channel"] == f"{kind}:{size}" and one["churners"] == wanted]


def middle(rows, name):
    return statistics.median(row[name] for row in rows)


def spread(values, unit=""):
    return f"**{statistics.median(values):.2f}{unit}** ({min(values):.2f}, {max(values):.2f})"


def table(results, scenario):
    lines = []
    sizes, reference = scenario["members"], scenario["reference"]
    cpu = lambda kind, size, churners: [row["server_cpu_us_per_event"] for row in windows(results, kind, size, churners)]
    latency = lambda rows, name: statistics.median(row["latency"][name] for row in rows) / 1e3
    for churners in scenario["churners"]:
        who = f"The same {churners:,} members come and go" if churners else "All members come and go"
        lines += ["", f"## {who}", "",
                  "| channel | members | CPU µs per event (lowest, highest) | of the smallest, within a round | user µs"
                  " | bytes written per event | pushes to watchers per event | changes told / not told | events/s | p50 ms"
                  " | p99 ms |", "| --- | ---: | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        for kind in scenario["namespaces"]:
            for size in sizes:
                rows, cost = windows(results, kind, size, churners), cpu(kind, size, churners)
                ratio = [one / first for one, first in zip(cost, cpu(kind, sizes[0], churners))]
                told = "–" if kind == reference else (
                    f"{middle(rows, 'changes_told'):,.0f} / {middle(rows, 'changes_not_told'):,.0f}")
                lines.append(
                    f"| {kind} | {size:,} | {spread(cost)} | {spread(ratio, '×') if size > sizes[0] else '1'}"
                    f" | {middle(rows, 'server_user_us'):.2f} | {middle(rows, 'written_bytes_per_event'):.1f}"
                    f" | {middle(rows, 'pushes_to_watchers_per_event'):.4f} | {told} | {middle(rows, 'events_per_s'):,.0f}"
                    f" | {latency(rows, 'p50_us'):.1f} | {latency(rows, 'p99_us'):.1f} |")
        lines += ["", "Presence alone: CPU µs per event above the reference window of the same size and round.", "",
                  "| channel | " + " | ".join(f"{size:,}" for size in sizes) + " | largest above smallest, within a round | largest of smallest, of the medians |",
                  "| --- |" + " --- |" * (len(sizes) + 2)]
        for kind in scenario["namespaces"]:
            if kind != reference:
                share = [[one - other for one, other in zip(cpu(kind, size, churners), cpu(reference, size, churners))]
                         for size in sizes]
                growth = [last - first for first, last in zip(share[0], share[-1])]
                ratio = statistics.median(share[-1]) / statistics.median(share[0])
                lines.append(f"| {kind} | " + " | ".join(spread(values) for values in share) 
                             + f" | {spread(growth)} | {ratio:.2f}× |")
    return "\n".join(lines).lstrip()


def page(known, text, results):
    scenario = known["scenario"]
    others = max(result["others_cpu_share"] for result in results)
    return f"""# Churn of presence channels, {known['date']}

An event is one unsubscribe or one subscribe with its reply. Members are users of their own and leave and join again one
after the other in scattered order, {scenario['outstanding']} commands outstanding; {scenario['watchers']} watchers have asked for joins and leaves.
`crowd`: above join_leave_members_max, at most one coalesced change per second; `each`: below it, every change is told to
every watcher; `plain`: no presence, the reference.

One server with {max(scenario['members']):,} connections, {scenario['shards']} shards pinned to core {scenario['server_core']}; \
{scenario['workers']} load generator processes on core {scenario['loadgen_core']}, loopback, readers
nap {scenario['nap_us']} µs. Medians of {known['repeats']} runs of {scenario['rounds']} rounds with a window of \
{scenario['seconds']} s of each kind. At the end of each window the server
counted every member. Others' CPU: up to {others:.0%} of the machine during a run.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="presence", help="name of a file in bench/scenarios")
    running.add_arguments(parser, "presence")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = []
    for repeat in range(arguments.repeats):
        result = run(scenario)
        results.append(result)
        for kind in scenario["namespaces"]:
            each = (f"{middle(windows([result], kind, size, 0), 'server_cpu_us_per_event'):7.2f} µs of {size:,}"
                    for size in scenario["members"])
            print(f"{repeat + 1}/{arguments.repeats}  {kind:8}", *each, f" others {result['others_cpu_share']:.0%}",
                  file=sys.stderr, flush=True)
    known = running.facts(scenario, arguments, {})
    text = table(results, scenario)
    print(text)
    if arguments.save:
        running.save("presence", known, results, page(known, text, results))


if __name__ == "__main__":
    main()
