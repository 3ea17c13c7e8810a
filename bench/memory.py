#!/usr/bin/env python3
"""Shows that memory does not grow: not with connections that come and go, and not with what they have once received.

In: a scenario file, the built programs. Out: tables, and with --save a dated pair of files in bench/results. Exit code 1 when
memory grew by more than the scenario allows.

Two parts, each with a fresh server: `churn` lets all connections open and leave again, round by round; `received` lets
each connection receive 64 KiB once, as one publication and as several. Every connection has a token and a user id of its
own, one subscription to the same channel, and answers pings. Memory is the process' own (RSS, and PSS beside it); the kernel's
for sockets is not in it. Each reading is behind a rest.
"""
import argparse
import re
import sys

import running
from running import BENCH


def run(scenario, part):
    """One part: the load generator's JSON."""
    options = {**scenario, **scenario[part]}
    server = [running.programs() / "ringway", "--config", BENCH / "scenarios/million-ringway.toml",
              "--shards", options["shards"],
              *[argument for port in ("client", "control", "ingest") for argument in ("--set", f"{port}.listen=127.0.0.1:0")]]

    def load(ready):
        client, control, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "control", "ingest"))
        return ["-n", options["connections"], "--url", f"ws://{client}/connection/websocket", "--control", control,
                "--ingest", ingest, "--token-secret", "dev", "--channel-prefix", "plain:c", "--rounds", options["rounds"],
                "--publications", options["publications"], "--payload-bytes", options["payload_bytes"],
                "--rest-s", options["rest_s"], "--nap-us", options["nap_us"], "--opening-max", options["opening_max"],
                "--stall-s", "60"]

    return running.run(f"memory {part}", options, server, load, doing="memory")


def mib(reading, kind):
    return f"{reading[f'{kind}_bytes'] / 2**20:.1f}"


def churn(result, allowed):
    """The table of the rounds, and what grew."""
    rounds = result["rounds"]
    lines = ["| round | all open: RSS, MiB | PSS, MiB | RSS per connection | of round 1 | all have left: RSS, MiB | PSS, MiB"
             " | of round 1 |", "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
             f"| before | | | | | {mib(result['memory']['before'], 'resident')} | {mib(result['memory']['before'], 'proportional')} | |"]
    problems = []
    for number, one in enumerate(rounds, 1):
        ratio = {moment: one[moment]["resident_bytes"] / rounds[0][moment]["resident_bytes"] for moment in ("opened", "left")}
        problems += [f"round {number}, {moment}: {of_first:.3f} of round 1, allowed {allowed}"
                     for moment, of_first in ratio.items() if of_first > allowed]
        opened, left = one["opened"], one["left"]
        lines.append(f"| {number} | {mib(opened, 'resident')} | {mib(opened, 'proportional')}"
                     f" | {opened['resident_bytes_per_connection']:.0f} | {ratio['opened']:.3f}"
                     f" | {mib(left, 'resident')} | {mib(left, 'proportional')} | {ratio['left']:.3f} |")
    return "\n".join(lines), problems


def received(results, allowed):
    """The table of what 64 KiB leave behind, and what grew."""
    lines = ["| received by each connection | idle: RSS per connection | PSS | after it and a rest: RSS per connection | PSS | more"
             " | behind the next opening, idle: RSS per connection |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    problems = []
    each = lambda reading, kind: f"{reading[f'{kind}_bytes_per_connection']:.0f}"
    for part, result in results.items():
        first, *later = result["rounds"]
        idle, after = first["opened"], first["received"]
        more = after["resident_bytes_per_connection"] - idle["resident_bytes_per_connection"]
        what = f"{result['publications']} × {result['payload_bytes']:,} B"
        if more > allowed:
            problems.append(f"{what}: {more:.0f} bytes more per connection, allowed {allowed}")
        again = each(later[-1]["opened"], "resident") if later else ""
        lines.append(f"| {what} | {each(idle, 'resident')} | {each(idle, 'proportional')} | {each(after, 'resident')}"
                     f" | {each(after, 'proportional')} | {more:.0f} | {again} |")
    return "\n".join(lines), problems


def page(known, texts, results):
    scenario = known["scenario"]
    one, some = scenario["churn"], scenario["received"]
    others = max(result["others_cpu_share"] for result in results.values())
    return f"""# Memory that must not grow, {known['date']}

Every connection is a user of its own by its token, subscribed to one channel, pinged every 50 s; loopback. Readings are
behind {scenario['rest_s']} s of rest. Kernel memory is not in them. Others' CPU: up to {others:.0%} of the machine.

{running.machine(known)}

## {one['connections']:,} connections on {one['shards']} shards come and leave, {one['rounds']} times

{texts['churn']}

## Each of {some['connections']:,} connections on {some['shards']} shards receives 64 KiB once

{texts['received']}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="memory", help="name of a file in bench/scenarios")
    parser.add_argument("--parts", default="churn,received,received-parts", help="some of them, separated by commas")
    running.add_arguments(parser, "memory")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    results = {part: run(scenario, part) for part in arguments.parts.split(",")}
    texts, problems = {}, []
    if "churn" in results:
        texts["churn"], problems = churn(results["churn"], scenario["growth_max"])
    messages = {part: result for part, result in results.items() if part != "churn"}
    if messages:
        texts["received"], more = received(messages, scenario["received_bytes_more_max"])
        problems += more
    print("\n\n".join(texts.values()))
    if arguments.save and len(texts) == 2:
        known = running.facts(scenario, arguments, {})
        running.save(scenario["name"], known, results, page(known, texts, results))
    if problems:
        sys.exit("memory grew:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
