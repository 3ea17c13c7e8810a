#!/usr/bin/env python3
"""Runs one fan-out scenario against several servers in turn and writes what each costs.

In: a scenario file, the built programs, the installed peers. Out: a table, and with --save a dated pair of files in
bench/results (raw runs as JSON, medians as Markdown).

Rules that make the figures comparable: a fresh server process per run, pinned to one core, the load generator on
another; the same load generator with the same reader settings for all; repeats interleaved (A B C A B C), since the
machine's speed drifts; CPU is the server process' user and system time over a window that begins and ends at rest,
divided by the deliveries in it.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib

BENCH = pathlib.Path(__file__).resolve().parent
ROOT = BENCH.parent
READY_S = 20  # longest wait for a server's ready line
RUN_S = 300  # longest run of the load generator


def programs():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / os.environ.get("BENCH_PROFILE", "release")


def server_command(name, outstanding):
    """Command line of each server. Ports are free ones; each prints a line with `ready` and its addresses."""
    peers = BENCH / "peers"
    if name.startswith("ringway"):
        return [programs() / "ringway", "--dev", "--shards", "1", "--set", "client.listen=127.0.0.1:0",
                "--set", "control.listen=127.0.0.1:0", "--set", "ingest.listen=127.0.0.1:0",
                *(["--set", "ring.send_mode=syscall"] if name == "ringway-syscall" else [])]
    if name == "floor":
        # The floor of several outstanding messages is one write of all that wait.
        return [programs() / "ringway-floor", "--listen", "127.0.0.1:0"] + ["--frames-joined"] * (outstanding > 1)
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


def cpu_ticks_busy():
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]  # all but idle and iowait


def own_and_server_ticks(pid):
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    tick = os.sysconf("SC_CLK_TCK")
    return int(stat[11]) + int(stat[12]) + (children.ru_utime + children.ru_stime) * tick


def run(name, scenario, outstanding):
    """One run: the load generator's JSON, with how much of the machine others used meanwhile."""
    command = ["taskset", "-c", str(scenario["server_core"])] + [str(part) for part in server_command(name, outstanding)]
    errors = tempfile.TemporaryFile("w+")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        signal.alarm(READY_S)
        ready = next((line for line in server.stdout if " ready " in line), None)
        signal.alarm(0)
        if ready is None:
            errors.seek(0)
            sys.exit(f"{name}: ended before it was ready\n{errors.read()}")
        # taskset becomes the server, so its pid is the server's.
        pid = server.pid
        load = [programs() / "ringway-loadgen", "fanout", "--json", "--label", name, "--cpu", scenario["loadgen_core"],
                "--server-pid", pid, "-n", scenario["connections"], "-k", outstanding, "--nap-us", scenario["nap_us"],
                "--payload-bytes", scenario["payload_bytes"], "--seconds", scenario["seconds"],
                "--warmup-s", scenario["warmup_s"]] + client_arguments(name, ready)
        before, busy, began = own_and_server_ticks(pid), cpu_ticks_busy(), time.monotonic()
        done = subprocess.run([str(part) for part in load], capture_output=True, text=True, timeout=RUN_S)
        ticks = (time.monotonic() - began) * os.sysconf("SC_CLK_TCK") * os.cpu_count()
        others = (cpu_ticks_busy() - busy) - (own_and_server_ticks(pid) - before)
        if done.returncode != 0:
            sys.exit(f"{name}, {outstanding} outstanding: the load generator failed\n{done.stderr}")
        result = json.loads(done.stdout)
        result["others_cpu_share"] = round(max(0.0, others / ticks), 3)
        return result
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def output_of(*command):
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def facts(scenario, arguments):
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    setting = lambda path: pathlib.Path("/proc/sys", path).read_text().split() if pathlib.Path("/proc/sys", path).exists() else []
    versions = {"node": output_of("node", "--version")} if "ws" in arguments.servers else {}
    if "bun" in arguments.servers:
        versions["bun"] = output_of(server_command("bun", 1)[0], "--version")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": output_of("git", "rev-parse", "--short", "HEAD"),
        "changed_files": len(output_of("git", "status", "--porcelain", "-uno").splitlines()),
        "kernel": os.uname().release,
        "cpu": model.group(1) if model else "unknown",
        "cores": os.cpu_count(),
        "memory_mib": int(memory.group(1)) // 1024 if memory else 0,
        "congestion_control": " ".join(setting("net/ipv4/tcp_congestion_control")),
        "profile": os.environ.get("BENCH_PROFILE", "release"),
        "priority_raised": arguments.raised,
        "repeats": arguments.repeats,
        "versions": versions,
        "scenario": scenario,
    }


def middle(runs, *path):
    values = []
    for one in runs:
        for key in path:
            one = one.get(key, {}) if isinstance(one, dict) else {}
        if isinstance(one, (int, float)):
            values.append(one)
    return statistics.median(values) if values else None


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
    changed = f" with {known['changed_files']} changed files" if known["changed_files"] else ""
    return f"""# {scenario['name']}, {known['date']}

{scenario['connections']:,} subscribers of one channel, payload {scenario['payload_bytes']} bytes, server pinned to core \
{scenario['server_core']}, load generator to core {scenario['loadgen_core']}, loopback, readers nap {scenario['nap_us']} µs; \
medians of {known['repeats']} interleaved runs of {scenario['seconds']} s, a fresh server each. Latency is counted from
publishing; in a closed loop it is mostly queueing. The floor joins what waits when several messages are outstanding.
Others' CPU is the largest share of the machine that unrelated processes took during a run.

Kernel {known['kernel']}, {known['cpu']}, {known['cores']} cores, {known['memory_mib']} MiB, {known['congestion_control']}; \
commit {known['commit'] or 'none'}{changed}, profile {known['profile']}, priority {'raised' if known['priority_raised'] else 'normal'}\
{''.join(f', {name} {version}' for name, version in known['versions'].items())}.

{text}
"""


def raise_priority():
    """Where terminal sessions are scheduled as groups, the group's niceness is what counts. Needs root."""
    try:
        pathlib.Path("/proc/self/autogroup").write_text("-20")
        return True
    except OSError:
        return False


def give_up(_signal, _frame):
    raise TimeoutError(f"no ready line within {READY_S} s")


def main():
    signal.signal(signal.SIGALRM, give_up)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="fanout-10k", help="name of a file in bench/scenarios")
    parser.add_argument("--servers", default="ringway,floor,bun", type=lambda text: text.split(","))
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--save", action="store_true", help="write bench/results/DATE-fanout.{json,md}")
    parser.add_argument("--raise-priority", action="store_true", help="run ahead of other work on the machine (root)")
    arguments = parser.parse_args()
    if not shutil.which("taskset"):
        sys.exit("taskset is missing (package util-linux)")
    scenario = tomllib.loads((BENCH / "scenarios" / f"{arguments.scenario}.toml").read_text())
    arguments.raised = arguments.raise_priority and raise_priority()
    results = []
    for repeat in range(arguments.repeats):
        for outstanding in scenario["outstanding"]:
            for name in arguments.servers:
                result = run(name, scenario, outstanding)
                results.append(result)
                print(f"{repeat + 1}/{arguments.repeats}  {outstanding} outstanding  {name:18}"
                      f" {result['server_cpu_us_per_delivery']:7.2f} µs  {result['deliveries_per_s']:10,.0f}/s"
                      f"  others {result['others_cpu_share']:.0%}", file=sys.stderr, flush=True)
    known = facts(scenario, arguments)
    text = table(results, arguments, scenario)
    print(text)
    if arguments.save:
        stem = BENCH / "results" / f"{known['date'][:10]}-fanout"
        stem.with_suffix(".json").write_text(json.dumps({**known, "runs": results}, indent=1) + "\n")
        stem.with_suffix(".md").write_text(page(known, text))
        print(f"\nwritten: bench/results/{stem.name}.json and .md", file=sys.stderr)


if __name__ == "__main__":
    main()
