#!/usr/bin/env python3
"""What each kernel setting of tuning/99-ringway.conf does: the same run with it, and with the kernel's default in its place.

In: scenarios/tuning*.toml, the built programs, root. Out: a table, one row per setting; --save writes dated results.

Each run has a network namespace of its own, in which all settings are tuned but the one in question; the host's settings
are touched where a namespace takes them from it (the size of the TCP hash, which congestion controls it may choose), and
given back. Repeats are interleaved.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

import running
from running import BENCH, middle

PROC = pathlib.Path("/proc/sys")
HASH = "net/ipv4/tcp_child_ehash_entries"
ALLOWED, AVAILABLE = (f"net/ipv4/tcp_{which}_congestion_control" for which in ("allowed", "available"))
CONFIG = BENCH.parent / "tuning/99-ringway.conf"


def tuned():
    """The settings of the file that a namespace has of its own, as paths below /proc/sys."""
    lines = [line.split("#")[0].strip() for line in CONFIG.read_text().splitlines()]
    pairs = [[part.strip() for part in line.split("=", 1)] for line in lines if "=" in line]
    return {name.replace(".", "/"): value for name, value in pairs if name.startswith("net.")}


def server_command(kind):
    return [running.programs() / "ringway", "--dev", "--shards", kind["shards"],
            *(part for port in ("client", "control", "ingest") for part in ("--set", f"{port}.listen=127.0.0.1:0")),
            "--set", "client.personal_channel=false"]


def inside(kind, settings):
    """One run in a namespace that exists: prints the load generator's JSON."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in settings.items():
        if (PROC / name).exists() and name != HASH:
            (PROC / name).write_text(value)

    def arguments(ready):
        client, ingest = (re.search(rf"{key}=(\S+)", ready).group(1) for key in ("client", "ingest"))
        return ["-n", kind["connections"], "-k", "1", "--nap-us", kind["nap_us"], "--opening-max", kind["opening_max"],
                "--connections-per-address", kind["connections_per_address"], "--stall-s", "60",
                "--payload-bytes", kind["payload_bytes"], "--seconds", kind["seconds"], "--warmup-s", "1",
                "--url", f"ws://{client}/connection/websocket", "--ingest", ingest]

    print(json.dumps(running.run(kind["name"], kind, server_command(kind), arguments)))


def run(kind, settings):
    (PROC / HASH).write_text(settings.get(HASH, "0"))
    done = subprocess.run(["unshare", "-n", sys.executable, __file__, "--inside", json.dumps([kind, settings])],
                          capture_output=True, text=True)
    if done.returncode != 0:
        # A setting that the run cannot do without shows itself like this.
        return {"failed": next((line[:120] for line in done.stderr.splitlines() if line.startswith(("connect", "error"))), "see the scenario")}
    return json.loads(done.stdout.splitlines()[-1])


FIGURES = {
    "server_cpu_us_per_delivery": "server CPU µs per delivery",
    "server_cpu_us_per_opening": "server CPU µs per opening",
    "opened_per_s": "openings/s",
    "opening_latency.p99_us": "p99 of opening, µs",
}


def figure(runs, name):
    return middle([one for one in runs if "failed" not in one], *name.split("."))


def table(cases, results):
    lines = ["| setting | tuned | without | measured on | figure | tuned | without | without / tuned |",
             "| --- | --- | --- | --- | --- | ---: | ---: | ---: |"]
    for index, case in enumerate(cases):
        with_it, without = results[index]
        for name in case["figures"]:
            a, b = figure(with_it, name), figure(without, name)
            failed = next((one["failed"] for one in without if "failed" in one), None)
            shown = [f"{value:,.2f}" if value and value < 100 else f"{value:,.0f}" if value else "–" for value in (a, b)]
            ratio = f"failed: {failed}" if failed else f"{b / a:.2f}×" if a and b else "–"
            lines.append(f"| `{case['setting'].replace('/', '.')}` | {case['tuned']} | {case['default']} | {case['on']['name']} |"
                         f" {FIGURES[name]} | {shown[0]} | {shown[1]} | {ratio} |")
    return "\n".join(lines)


def page(known, text):
    return f"""# tuning, {known['date']}

What each setting of tuning/99-ringway.conf does: the run with all of them beside the run with all but one, which has the
kernel's own value. Each run in a network namespace of its own, server on core 0, load generator on core 1, loopback;
medians of {known['repeats']} interleaved runs.

{running.machine(known)}

{text}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="tuning", help="name of a file in bench/scenarios")
    parser.add_argument("--only", help="settings whose name contains this")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    running.add_arguments(parser, "tuning")
    arguments = parser.parse_args()
    if arguments.inside:
        return inside(*json.loads(arguments.inside))
    scenario = running.prepare(arguments)
    kinds = {kind["name"]: {**scenario["common"], **kind} for kind in scenario["kinds"]}
    settings = tuned()
    # A case with a value of its own tries a setting that is not in the file.
    cases = [{"tuned": settings.get(case["setting"]), **case, "on": kinds[case["on"]]}
             for case in scenario["cases"] if (arguments.only or "") in case["setting"]]
    before = {name: (PROC / name).read_text() for name in (HASH, ALLOWED)}
    results = [([], []) for _ in cases]
    try:
        (PROC / ALLOWED).write_text((PROC / AVAILABLE).read_text())
        for repeat in range(arguments.repeats):
            for case, (with_it, without) in zip(cases, results):
                for runs, value in ((with_it, case["tuned"]), (without, case["default"])):
                    runs.append(run(case["on"], {**settings, case["setting"]: value}))
                shown = [one.get("failed", one.get(case["figures"][0])) for one in (with_it[-1], without[-1])]
                print(f"{repeat + 1}/{arguments.repeats}  {case['setting']:40} {shown[0]} | {shown[1]}", file=sys.stderr, flush=True)
    finally:
        for name, value in before.items():
            (PROC / name).write_text(value)
    known = running.facts(scenario, arguments, {})
    text = table(cases, results)
    print(text)
    if arguments.save:
        running.save(scenario["name"], known, [{"setting": case["setting"], "tuned": a, "without": b}
                                               for case, (a, b) in zip(cases, results)], page(known, text))


if __name__ == "__main__":
    main()
