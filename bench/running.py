"""What the comparisons of this folder share: servers and the load generator on their cores, repeats, facts, results.

In: a scenario, the command line of a server, the arguments of the load generator. Out: the load generator's JSON per run;
a dated pair of files in bench/results (raw runs as JSON, medians as Markdown).

Rules that make the figures comparable: a fresh server process per run, pinned to one core, the load generator on
another; repeats interleaved by the callers (A B C A B C), since the machine's speed drifts; CPU is the server process'
over a window that begins and ends at rest, divided by the deliveries in it.
"""
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
import urllib.request

BENCH = pathlib.Path(__file__).resolve().parent
ROOT = BENCH.parent
READY_S = 20  # longest wait for a server's ready line
RUN_S = 900  # longest run of the load generator
STOP_S = 30  # longest time a server may take to stop


def programs():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / os.environ.get("BENCH_PROFILE", "release")


def cpu_ticks_busy():
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]  # all but idle and iowait


def own_and_server_ticks(pid):
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    tick = os.sysconf("SC_CLK_TCK")
    return int(stat[11]) + int(stat[12]) + (children.ru_utime + children.ru_stime) * tick


def context_switches(pid):
    """Of all threads of a process: how often one waited, how often one had to make room."""
    texts = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status")]
    return {name: sum(int(re.search(rf"^{name}_ctxt_switches:\s*(\d+)", text, re.M).group(1)) for text in texts)
            for name in ("voluntary", "nonvoluntary")}


def metrics(ready):
    """The numbers of a gateway by name, those of all its shards and labels added up."""
    control = re.search(r"control=(\S+)", ready).group(1)
    found = {}
    with urllib.request.urlopen(f"http://{control}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
    return found


def fanout_arguments(scenario, outstanding):
    """The load generator's arguments that a scenario gives for every server."""
    return ["-n", scenario["connections"], "-k", outstanding, "--nap-us", scenario["nap_us"],
            "--payload-bytes", scenario["payload_bytes"], "--seconds", scenario["seconds"],
            "--warmup-s", scenario["warmup_s"]]


def give_up(_signal, _frame):
    raise TimeoutError(f"no ready line within {READY_S} s")


def run(name, scenario, server_command, load_arguments, environment=None, doing="fanout", after=None):
    """One run of a fresh server: the load generator's JSON, with how much of the machine others used meanwhile.

    `load_arguments` makes the load generator's arguments of the server's ready line; `environment` is the server's beside
    our own; `doing` is the load generator's scenario; what `after` makes of the ready line and the server's pid, once
    the load is over, is added to the JSON.
    """
    command = ["taskset", "-c", str(scenario["server_core"])] + [str(part) for part in server_command]
    errors = tempfile.TemporaryFile("w+")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                              env={**os.environ, **(environment or {})})
    try:
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(READY_S)
        ready = next((line for line in server.stdout if " ready " in line), None)
        signal.alarm(0)
        if ready is None:
            errors.seek(0)
            sys.exit(f"{name}: ended before it was ready\n{errors.read()}")
        # taskset becomes the server, so its pid is the server's.
        pid = server.pid
        load = [programs() / "ringway-loadgen", doing, "--json", "--label", name, "--cpu", scenario["loadgen_core"],
                "--server-pid", pid, *load_arguments(ready)]
        before, busy, began = own_and_server_ticks(pid), cpu_ticks_busy(), time.monotonic()
        done = subprocess.run([str(part) for part in load], capture_output=True, text=True, timeout=RUN_S)
        ticks = (time.monotonic() - began) * os.sysconf("SC_CLK_TCK") * os.cpu_count()
        others = (cpu_ticks_busy() - busy) - (own_and_server_ticks(pid) - before)
        if done.returncode != 0:
            errors.seek(0)
            sys.exit(f"{name}: the load generator failed: {load}\n{done.stderr}\n{errors.read()[-2000:]}")
        result = json.loads(done.stdout)
        result["others_cpu_share"] = round(max(0.0, others / ticks), 3)
        return {**result, **(after(ready, pid) if after else {})}
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def output_of(*command):
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def facts(scenario, arguments, versions):
    """What a result says beside its figures; `versions` are those of other programs that took part."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    setting = lambda path: pathlib.Path("/proc/sys", path).read_text().split() if pathlib.Path("/proc/sys", path).exists() else []
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": output_of("git", "rev-parse", "--short", "HEAD"),
        "changed_files": len(output_of("git", "status", "--porcelain", "-uno").splitlines()),
        "kernel": os.uname().release,
        "cpu": model.group(1) if model else "unknown",
        "cores": os.cpu_count(),
        "memory_mib": int(memory.group(1)) // 1024 if memory else 0,
        "congestion_control": " ".join(setting("net/ipv4/tcp_congestion_control")),
        "command": " ".join([f"bench/{arguments.script}", *sys.argv[1:]]),
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


def ratio(runs, others, key):
    """Median over the repeats of a run against another one's beside it: what slows the machine meets both."""
    each = [run[key] / beside[key] for run, beside in zip(runs, others)]
    return f"{statistics.median(each):.2f}× ({min(each):.2f}, {max(each):.2f})" if each else "–"


def machine(known):
    """The paragraph of a result that says where it was measured."""
    changed = f" with {known['changed_files']} changed files" if known["changed_files"] else ""
    return f"""Kernel {known['kernel']}, {known['cpu']}, {known['cores']} cores, {known['memory_mib']} MiB, \
{known['congestion_control']}; commit {known['commit'] or 'none'}{changed}, profile {known['profile']}, \
priority {'raised' if known['priority_raised'] else 'normal'}\
{''.join(f', {name} {version}' for name, version in known['versions'].items())}.
Command: `{known['command']}`"""


def raise_priority():
    """Where terminal sessions are scheduled as groups, the group's niceness is what counts. Needs root."""
    try:
        pathlib.Path("/proc/self/autogroup").write_text("-20")
        return True
    except OSError:
        return False


def add_arguments(parser, result):
    """The options of every comparison; `result` is its name, and its script's."""
    parser.set_defaults(script=f"{result}.sh")
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--save", action="store_true", help=f"write bench/results/DATE-{result}.{{json,md}}")
    parser.add_argument("--raise-priority", action="store_true", help="run ahead of other work on the machine (root)")


def prepare(arguments):
    """The scenario of the command line, once all that a run needs is there."""
    if not shutil.which("taskset"):
        sys.exit("taskset is missing (package util-linux)")
    arguments.raised = arguments.raise_priority and raise_priority()
    return tomllib.loads((BENCH / "scenarios" / f"{arguments.scenario}.toml").read_text())


def save(result, known, runs, page):
    """Writes the dated pair of files."""
    stem = BENCH / "results" / f"{known['date'][:10]}-{result}"
    stem.with_suffix(".json").write_text(json.dumps({**known, "runs": runs}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(f"\nwritten: bench/results/{stem.name}.json and .md", file=sys.stderr)
