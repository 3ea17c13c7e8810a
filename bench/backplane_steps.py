"""What each step of the publish script costs: the script without it beside the whole one.

In: the script's text, from which a step is taken out by its words; a bench of backplane.py. Out: CPU per publish, interleaved; and instructions
per publish, counted by valgrind where that is installed, which do not depend on what else the machine does (but know nothing
of memory that is far away). One interested node. A step whose words are not in the script any more ends the bench.
"""
import re
import shutil
import subprocess
import tempfile
import time
import pathlib

import engines

WHOLE = "the whole script"
# Name, and what is replaced by what.
STEPS = (
    ("the stream's time to live", [("    call('PEXPIRE', KEYS[2], ARGV[7])\n", "")]),
    ("the hash's time to live", [("call('PEXPIRE', KEYS[1], ARGV[3])\nlocal records", "local records")]),
    ("history: XADD, and the stream's time to live", [("ARGV[6], first\n", "'0', first\n"), ("elseif m[4] then", "elseif false then")]),
    ("recognising a batch that is sent again", [
        ("'h', ARGV[4])", "'h')"), ("if said and said > batch", "if false"), ("last, ARGV[4], batch .. ':' .. first", "last")]),
    ("the replication id", [
        ("'r', 'h'", "'h'"), (" or m[3] ~= ARGV[1]", ""), ("{ 'stale', m[3] }", "{}"), ("m[4]", "m[3]"), ("m[5]", "m[4]")]),
    ("SPUBLISH to the node", [("call('SPUBLISH', head .. 'i' .. nodes[i], message) == 0", "false")]),
    ("routing: SMEMBERS and SPUBLISH", [("call('SMEMBERS', set), 0", "{}, 0")]),
    ("all of these but routing: it numbers and routes", [
        ("ARGV[6], first\n", "'0', first\n"), ("elseif m[4] then", "elseif false then"),
        ("call('PEXPIRE', KEYS[1], ARGV[3])\nlocal records", "local records"),
        ("'r', 'h', ARGV[4])", "'h')"), ("if said and said > batch", "if false"), ("last, ARGV[4], batch .. ':' .. first", "last"),
        (" or m[3] ~= ARGV[1]", ""), ("{ 'stale', m[3] }", "{}"), ("m[4]", "m[3]"), ("m[5]", "m[4]")]),
)
FILLED = 128  # publications that each channel has before instructions are counted: more than are kept
DUMP_S = 20


def without(text, replaced):
    for words, other in replaced:
        if words not in text:
            raise SystemExit(f"the publish script has no {words!r} any more")
        text = text.replace(words, other)
    return text


def load(bench, text):
    """Gives a bench the script without each step, as further versions."""
    for name, replaced in STEPS:
        bench.versions[name] = (bench.site.load(without(text, replaced)), bench.versions[""][1])


def cases(bench, text):
    """Of backplane.py: all versions, the other scripts."""
    load(bench, text)
    yield from bench.other("a script that does nothing", "empty", "k1")
    count, channels = bench.scenario["publishes"], bench.scenario["channels"]
    for key in (False, True):
        yield f"Centrifugo-style script{', key' if key else ''}", "", lambda key=key: [
            bench.style_command(f"k1:{n % channels}", key) for n in range(count)], 1
    for _, version, commands, batch in bench.own("", "k1"):
        before = version == "before"
        name = WHOLE if version in ("", "before") else f"without {version}"
        yield f"{name}{', before' if before else ''}", "", commands, batch
    for _, version, commands, batch in bench.own("", "k1", key=True):
        if version in ("", "before"):
            yield f"{WHOLE}, key{', before' if version else ''}", "", commands, batch


def instructions(bench_of, engine, scenario, text):
    """Instructions per publish by case; `bench_of` makes a bench of a site."""
    if not shutil.which("valgrind"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out"
        drain = engines.Drain()
        site = engines.Site(engine, scenario["server_core"], 1,
                            ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"))
        try:
            bench = bench_of(site, {**scenario, "channels": scenario["counted_channels"], "publishes": scenario["counted_publishes"]}, drain)
            bench.open_inboxes(1)
            names = [f"k1:{n}" for n in range(bench.scenario["channels"])]
            bench.register(names, 1)
            site.run([bench.publish_command(name, FILLED) for name in names], scenario["pipeline"])
            rows, dumps = {}, 0
            for name, _, commands, _ in cases(bench, text):
                commands = commands()
                totals = []
                for part in ([], commands):
                    site.run(part, scenario["pipeline"])
                    dumps += 1
                    totals.append(dump(site.engines[0].process.pid, out.with_name(f"out.{dumps}")))
                rows[name] = round(totals[1] / len(commands))
            return rows
        finally:
            drain.is_over = True
            site.end()


def dump(pid, file):
    """Instructions since the last dump."""
    subprocess.run(["callgrind_control", "-d", "case", str(pid)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + DUMP_S
    while time.monotonic() < until:
        found = re.findall(r"^(?:summary|totals): (\d+)", file.read_text() if file.exists() else "", re.M)
        if found:
            return int(found[-1])
        time.sleep(0.05)
    raise SystemExit("valgrind writes no dump")


def table(cpu, counted, median, cell):
    """Rows: what is left, and how much less that is."""
    whole = cpu[WHOLE]["single"]
    lines = ["| one interested node, one server | µs per publish | of the whole | instructions | of the whole |", "|---|---|---|---|---|"]
    for name, row in cpu.items():
        each = row["single"]
        ratio = median(one / beside for one, beside in zip(each, whole))
        count = counted.get(name)
        lines.append(f"| {name} | {cell(each)} | {100 * ratio:.0f} % | {f'{count:,}' if count else '–'} | "
                     f"{f'{100 * count / counted[WHOLE]:.0f} %' if count else '–'} |")
    return lines
