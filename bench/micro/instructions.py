#!/usr/bin/env python3
"""Counts instructions and atomic operations of the micro benches' cases.

In: the benches' executables, which it builds, run under callgrind (installed from Debian when it is missing). Out: per case
and item, the instructions executed, and of these the read-modify-write operations that lock a cache line (prefix LOCK, or XCHG
with memory): a mutex, a shared reference count and a queue between threads each need at least one. The kernel is not
counted. Figures do not depend on what else the machine does, unlike times; they do depend on the compiler, the profile and
the processor's instruction set, so ceilings are for the pinned toolchain on x86-64 with AVX2 (callgrind knows no wider one).

    bench/micro/instructions.py                      all cases of all benches
    bench/micro/instructions.py fanout "128 B"       one bench, cases that contain a text
    bench/micro/instructions.py --profile release    as shipped (default: fast)
    bench/micro/instructions.py --where fanout       also the functions that cost most
    bench/micro/instructions.py --locked-max 0.1 fanout   fails when an item locks more often: a publication may lock a few
                                                     times, a delivery never
    bench/micro/instructions.py --guard              as CI does: only the cases of instructions.toml; fails above a ceiling
    bench/micro/instructions.py --set-ceilings       counts those cases and writes their ceilings anew
"""

import argparse
import json
import pathlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parents[2]
CEILINGS = pathlib.Path(__file__).with_suffix(".toml")
FUNCTIONS_SHOWN = 12
MARGIN = 1.07  # of a new ceiling above what was counted: what a patch release of a dependency may add
LOW = 0.87  # of a ceiling, below which it guards too little and is to be lowered
TOOLS = {"valgrind": "valgrind", "objdump": "binutils"}  # program -> Debian package


def install_tools():
    """What is missing comes from Debian; nothing is skipped."""
    missing = [package for program, package in TOOLS.items() if not shutil.which(program)]
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo"]
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    try:
        subprocess.run([*root, "apt-get", "update", "-qq"], check=True, **quiet)
        subprocess.run([*root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True, **quiet)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"instructions cannot be counted without {', '.join(missing)}, and installing failed: {error}\n"
                 f"Install by hand: apt-get install {' '.join(missing)}")


def executables(profile, benches):
    command = ["cargo", "bench", "--profile", profile, "-p", "ringway-bench", "--no-run", "--message-format", "json"]
    command += [part for bench in benches for part in ("--bench", bench)]
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


def cases(executable):
    """Cases of a bench and how many items a round of each does."""
    listed = subprocess.run([executable, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {case: int(items) for case, items in (line.split("\t") for line in listed.splitlines())}


def count(name, executable, case, items, locking):
    """Instructions and locking operations per item, and instructions per function; prints the first two."""
    total, locks, functions = read(run(executable, case), executable, locking)
    if total == 0:
        sys.exit(f"{name} {case}: nothing was counted; is `counted` inlined?")
    per_item = f"{total / items:.1f} instructions, {locks / items:.4f} locked"
    print(f"{name:<14} {case:<44} {items:>6} {total:>13} {locks:>9}   {per_item}", flush=True)
    return total / items, locks / items, functions


def count_listed(profile):
    """What the cases of the ceilings' file count now: (bench, case, ceiling, instructions per item)."""
    if platform.machine() != "x86_64":
        sys.exit(f"the ceilings are for x86-64, this is {platform.machine()}: count all cases instead, without --guard")
    ceilings = tomllib.loads(CEILINGS.read_text())
    built = executables(profile, ceilings)
    for name, wanted in ceilings.items():
        listed = cases(built[name])
        for case, ceiling in wanted.items():
            if case not in listed:
                sys.exit(f"{CEILINGS.name} has a case that the bench {name} does not: {case}")
            yield name, case, ceiling, count(name, built[name], case, listed[case], frozenset())[0]


def guard(profile):
    over = []
    for name, case, ceiling, now in count_listed(profile):
        if now > ceiling:
            over.append(f"{name}, {case}: {now:.1f} instructions per item, ceiling {ceiling}")
        elif now < ceiling * LOW:
            print(f"note: {name}, {case}: {now:.1f} is far below its ceiling of {ceiling}; lower it (--set-ceilings)")
    if over:
        where = f"bench/micro/instructions.py --where {over[0].split(',')[0]}"
        sys.exit("\n".join(["Hot paths cost more than they may:", *over, f"Where: {where}",
                            f"Take it back; or, where the price is wanted, say why in {CEILINGS.relative_to(ROOT)} (--set-ceilings)."]))
    print("instructions: every case is below its ceiling")


def set_ceilings(profile):
    """Keeps the file's comment and cases; the ceilings are new."""
    lines = [line for line in CEILINGS.read_text().splitlines() if line.startswith("#")]
    bench = None
    for name, case, _, now in count_listed(profile):
        if name != bench:
            lines += ["", f"[{name}]"]
            bench = name
        lines.append(f'"{case}" = {now * MARGIN:.1f}')
    CEILINGS.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", default="")
    parser.add_argument("case", nargs="?", default="")
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--locked-max", type=float, help="locking operations per item above which the exit code is 1")
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--set-ceilings", action="store_true")
    options = parser.parse_args()
    install_tools()
    if options.guard:
        return guard(options.profile)
    if options.set_ceilings:
        return set_ceilings(options.profile)
    over = []
    print(f"{'bench':<14} {'case':<44} {'items':>6} {'instructions':>13} {'locked':>9}   per item")
    for name, executable in executables(options.profile, []).items():
        if options.bench not in name:
            continue
        locking = locking_addresses(executable)
        for case, items in cases(executable).items():
            if options.case not in case:
                continue
            _, locks, functions = count(name, executable, case, items, locking)
            if options.locked_max is not None and locks > options.locked_max:
                over.append(f"{name} {case}: {locks:.4f} locking operations per item")
            if options.where:
                for function, spent in functions.most_common(FUNCTIONS_SHOWN):
                    print(f"  {spent / items:>10.2f}  {function}")
    if over:
        sys.exit("over --locked-max:\n" + "\n".join(over))


main()
