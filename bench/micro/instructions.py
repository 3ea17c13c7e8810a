#!/usr/bin/env python3
"""Counts instructions and atomic operations of the micro benches' cases.

In: the benches' executables, which it builds, run under callgrind (`apt-get install valgrind binutils`). Out: per case and
item, the instructions executed, and of these the read-modify-write operations that lock a cache line (prefix LOCK, or XCHG
with memory): a mutex, a shared reference count and a queue between threads each need at least one. The kernel is not
counted. Figures do not depend on what else the machine does, unlike times.

    bench/micro/instructions.py                      all cases of all benches
    bench/micro/instructions.py fanout "128 B"       one bench, cases that contain a text
    bench/micro/instructions.py --profile release    as shipped (default: fast)
    bench/micro/instructions.py --where fanout       also the functions that cost most
    bench/micro/instructions.py --locked-max 0.1 fanout   fails when an item locks more often: a publication may lock a few
                                                     times, a delivery never
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parents[2]
FUNCTIONS_SHOWN = 12


def executables(profile):
    command = ["cargo", "bench", "--profile", profile, "-p", "ringway-bench", "--no-run", "--message-format", "json"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for line in out.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable") and "bench" in message["target"]["kind"]:
            found[message["target"]["name"]] = message["executable"]
    return dict(sorted(found.items()))


def locking_addresses(executable):
    """Addresses of instructions that lock a cache line, from the disassembly."""
    out = subprocess.run(["objdump", "-d", "--no-show-raw-insn", executable], check=True, stdout=subprocess.PIPE, text=True)
    pattern = re.compile(r"^\s*([0-9a-f]+):\s+(lock |xchg\s.*\()")
    return {int(match[1], 16) for match in map(pattern.match, out.stdout.splitlines()) if match}


def run(executable, case):
    """Per (file, function, address) what was executed inside `counted`: a list of lines of callgrind's output."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "out"
        command = [
            "valgrind", "--tool=callgrind", "--dump-instr=yes", "--compress-strings=no", "--compress-pos=no",
            "--collect-atstart=no", "--toggle-collect=*ringway_bench*measure*counted*",
            f"--callgrind-out-file={path}", executable, "--once", case,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return path.read_text().splitlines()


def read(lines, executable, locking):
    """Own cost of every instruction: totals, per function, and how often locking ones ran."""
    total, locks, functions = 0, 0, Counter()
    obj, function, is_call = "", "", False
    cost = re.compile(r"^(0x[0-9a-f]+) \S+ (\d+)$")
    for line in lines:
        if line.startswith("ob="):
            obj = line[3:]
        elif line.startswith("fn="):
            function = line[3:]
        elif line.startswith("calls="):
            is_call = True
        else:
            match = cost.match(line)
            if match and not is_call:
                count = int(match[2])
                total += count
                functions[function] += count
                if obj == executable and int(match[1], 16) in locking:
                    locks += count
            if match:
                is_call = False
    return total, locks, functions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", default="")
    parser.add_argument("case", nargs="?", default="")
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--locked-max", type=float, help="locking operations per item above which the exit code is 1")
    options = parser.parse_args()
    over = []
    print(f"{'bench':<14} {'case':<44} {'items':>6} {'instructions':>13} {'locked':>9}   per item")
    for name, executable in executables(options.profile).items():
        if options.bench not in name:
            continue
        locking = locking_addresses(executable)
        listed = subprocess.run([executable, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout
        for case, items in (line.split("\t") for line in listed.splitlines()):
            if options.case not in case:
                continue
            total, locks, functions = read(run(executable, case), executable, locking)
            if total == 0:
                sys.exit(f"{name} {case}: nothing was counted; is `counted` inlined?")
            per_item = f"{total / int(items):.1f} instructions, {locks / int(items):.4f} locked"
            print(f"{name:<14} {case:<44} {items:>6} {total:>13} {locks:>9}   {per_item}", flush=True)
            if options.locked_max is not None and locks / int(items) > options.locked_max:
                over.append(f"{name} {case}: {locks / int(items):.4f} locking operations per item")
            if options.where:
                for function, count in functions.most_common(FUNCTIONS_SHOWN):
                    print(f"  {count / int(items):>10.2f}  {function}")
    if over:
        sys.exit("over --locked-max:\n" + "\n".join(over))


main()
