#!/usr/bin/env python3
"""What the backplane's scripts cost at the engine: CPU of the server per publish, alone and in a cluster of three, and memory per
channel.

In: a scenario; the scripts as the program has them (src/gateway/backplane/lua); with --before another checkout, whose scripts are measured
beside them. Out: rows on standard output, and with --save a dated page. A plain client speaks the engine's protocol in
pipelines; subscribers are connections that read and forget. CPU is that of the servers' main threads, summed, from
/proc/<pid>/schedstat in nanoseconds, divided by publishes. Cases, and the ways to deploy, are interleaved within a round.
"""
import argparse
import importlib.util
import os
import pathlib
import re
import statistics
import sys
import zlib

import backplane_steps
import engines
import running
from engines import BUCKETS, Drain, Site, packed

LUA = running.ROOT / "src/gateway/backplane/lua"
ABOVE_NEVER = 1_000_000
STEPS_ENGINE = "redis"  # where the script is taken apart
FIRST_NODE = 1001  # generation
EMPTY = "#!lua\nreturn { 'a', 'b', 0 }"
PLAIN = """#!lua
local n = redis.call('HINCRBY', KEYS[1], 's', 1)
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[1], n .. '-0', 'd', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', 'plain:1', ARGV[3])
return n
"""

# Engine work in the style of Centrifugo: a hash that counts, a stream of exact length, both with a time to live, a result kept
# under the publication's key, one PUBLISH to whoever has subscribed to the channel.
# KEYS: 1 hash, 2 stream, 3 result of the key (if there is one). ARGV: 1 payload, 2 publications kept, 3 for how long in s,
# 4 channel, 5 life of the hash in s, 6 epoch if there is none, 7 life of the key's result in s.
STYLE = """#!lua
if KEYS[3] then
    local was = redis.call('HMGET', KEYS[3], 'e', 's')
    if was[1] then
        return { was[2], was[1], '1' }
    end
end
local epoch = redis.call('HGET', KEYS[1], 'e')
if not epoch then
    epoch = ARGV[6]
    redis.call('HSET', KEYS[1], 'e', epoch)
end
local top = redis.call('HINCRBY', KEYS[1], 's', 1)
redis.call('EXPIRE', KEYS[1], ARGV[5])
if top == 1 then
    redis.call('DEL', KEYS[2])
end
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[2], top .. '-0', 'd', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('PUBLISH', ARGV[4], '__p1:' .. top .. ':' .. epoch .. '__' .. ARGV[1])
if KEYS[3] then
    redis.call('HSET', KEYS[3], 'e', epoch, 's', top)
    redis.call('EXPIRE', KEYS[3], ARGV[7])
end
return { top, epoch, '0' }
"""
# Only what routing takes, as in the measurements of the design (design notes, A.2): a number, the set of interested nodes, one message each.
NUMBERED = "#!lua\nreturn redis.call('HINCRBY', KEYS[1], 's', 1)"
ROUTED = """#!lua
local n = redis.call('HINCRBY', KEYS[1], 's', 1)
local nodes = redis.call('SMEMBERS', KEYS[3])
for i = 1, #nodes do
    redis.call('SPUBLISH', ARGV[1] .. 'i' .. nodes[i], ARGV[2])
end
return n
"""
WRITER = 7  # of the batches; any


def script(name):
    """As src/gateway/backplane/scripts.rs puts it together."""
    common = lambda match: (LUA / match.group(1)).read_text()
    return re.sub(r"^-- include (\S+)\n", common, (LUA / f"{name}.lua").read_text(), flags=re.M)


def publish_command(sha, head, keys, channel, payload, batch, number, kept, above):
    """A call of the program's publish script with `batch` equal publications; `keys` are hash, stream, interest set, and a key."""
    tail = f"{len(channel)}" + f" {len(payload)}" * batch + f"\n{channel}"
    window = [300_000] if len(keys) > 3 else []
    return packed("EVALSHA", sha, len(keys), *keys, "abcdefabcdef", "01k.1", 604_800_000, "p1", f"{WRITER:08x}{number:012x}",
                  kept, 600_000, head, above, tail, *window, *[payload] * batch)


def follow_command(sha, head, keys, generation):
    """A call of the program's follow script that asks for no history."""
    return packed("EVALSHA", sha, 3, *keys, "abcdefabcdef", "01k.1", 604_800_000, generation, 0, "", "", f"{head}i")



def style_command(sha, channel, payload, kept, key=None, tag=""):
    """A call of the script in Centrifugo's style; with a tag its names have it."""
    name = f"{{{tag}}}{channel}" if tag else channel
    keys = [f"style:meta:{name}", f"style:stream:{name}"] + ([f"style:result:{name}:{key}"] if key else [])
    return packed("EVALSHA", sha, len(keys), *keys, payload, kept, 600, f"style:{name}", 604_800, "abcdefgh", 300)


def bucket_of(channel):
    """Spreads channels over buckets evenly, as the program's hash does."""
    return zlib.crc32(channel.encode()) % BUCKETS


def names(head, channel):
    """Hash, stream and interest set."""
    return [f"{head}{letter}{channel}" for letter in "msn"]


class Bench:
    """The scripts at one site, with nodes that hold their inboxes of all buckets."""

    def __init__(self, site, scenario, drain, before=None):
        self.site, self.scenario, self.drain, self.number = site, scenario, drain, 0
        self.heads = [f"ringway:{{{tag}}}" for tag in site.tags]
        style = STYLE.replace("'PUBLISH'", "'SPUBLISH'") if site.is_cluster else STYLE
        self.shas = {name: site.load(text) for name, text in (
            ("publish", script("publish")), ("follow", script("follow")), ("empty", EMPTY), ("plain", PLAIN),
            ("style", style), ("numbered", NUMBERED), ("routed", ROUTED))}
        # How to call the scripts, now and before.
        self.versions = {"": (self.shas["publish"], publish_command)}
        if before:
            self.versions["before"] = (site.load(before.script("publish")), before.publish_command)
        self.payload = b"x" * scenario["payload_bytes"]

    def open_inboxes(self, nodes):
        for node in range(FIRST_NODE, FIRST_NODE + nodes):
            both = [(bucket, packed("SSUBSCRIBE", f"{head}i{node}", f"{head}b"), 2) for bucket, head in enumerate(self.heads)]
            self.site.subscribe(both, self.drain)

    def open_plain(self):
        """What the other scripts publish to; a node of Centrifugo subscribes to each channel."""
        for node in range(1, 9):
            ks = [k for k in (1, 3, 8) if node <= k]
            channels = [f"k{k}:{n}" for k in ks for n in range(self.scenario["channels"])]
            if self.site.is_cluster:
                each = [(bucket_of(name), packed("SSUBSCRIBE", f"style:{{{self.site.tags[bucket_of(name)]}}}{name}"), 1)
                        for name in channels]
            else:
                each = [(0, packed("SUBSCRIBE", *[f"plain:{k}" for k in ks]), len(ks))]
                each += [(0, packed("SUBSCRIBE", f"style:{name}"), 1) for name in channels]
            self.site.subscribe(each, self.drain)

    def register(self, channels, nodes):
        """Puts so many nodes into the channels' interest sets."""
        generations = range(FIRST_NODE, FIRST_NODE + nodes)
        commands = [(bucket_of(name), packed("SADD", names(self.heads[bucket_of(name)], name)[2], *generations)) for name in channels]
        self.site.run(commands, self.scenario["pipeline"])

    def publish_command(self, channel, batch=1, key=False, kept=None, above=ABOVE_NEVER, version=""):
        self.number += 1
        bucket = bucket_of(channel)
        head = self.heads[bucket]
        keys = names(head, channel)
        if key:
            keys.append(f"{head}k{len(channel)}:{channel}:{self.number}")
        sha, command = self.versions[version]
        kept = self.scenario["history_size"] if kept is None else kept
        return bucket, command(sha, head, keys, channel, self.payload, batch, self.number, kept, above)

    def other_command(self, which, channel):
        """A call of a script that is no version of the program's, with its keys and arguments."""
        bucket, command = self.publish_command(channel)
        if which == "routed":
            head = self.heads[bucket]
            return bucket, packed("EVALSHA", self.shas[which], 3, *names(head, channel), head, self.payload)
        if which == "plain":
            head = self.heads[bucket]
            return bucket, packed("EVALSHA", self.shas[which], 2, *names(head, channel)[:2], self.scenario["history_size"],
                                  600_000, self.payload)
        return bucket, command.replace(self.shas["publish"].encode(), self.shas[which].encode())

    def style_command(self, channel, key):
        self.number += 1
        bucket = bucket_of(channel)
        return bucket, style_command(self.shas["style"], channel, self.payload, self.scenario["history_size"],
                                     self.number if key else None, self.site.tags[bucket] if self.site.is_cluster else "")

    def follow_command(self, channel, generation):
        bucket = bucket_of(channel)
        return bucket, follow_command(self.shas["follow"], self.heads[bucket], names(self.heads[bucket], channel), generation)

    def own(self, name, prefix, channels=None, batch=1, **options):
        """A case of the program's script for each version: its name, the version, its commands, publications of a command."""
        count, channels = max(1, self.scenario["publishes"] // batch), channels or self.scenario["channels"]
        for version in self.versions:
            yield name, version, lambda version=version: [
                self.publish_command(f"{prefix}:{n % channels}", batch, version=version, **options) for n in range(count)], batch

    def other(self, name, which, prefix, channels=None):
        count, channels = self.scenario["publishes"], channels or self.scenario["channels"]
        yield name, "", lambda: [self.other_command(which, f"{prefix}:{n % channels}") for n in range(count)], 1

    def cases(self):
        scenario = self.scenario
        count, channels = scenario["publishes"], scenario["channels"]
        for k in (0, 1, 3, 8):
            if not self.site.is_cluster:
                yield f"bare PUBLISH to {k}", "", lambda k=k: [(0, packed("PUBLISH", f"plain:{k}", self.payload))] * count, 1
        yield from self.other("a script that does nothing", "empty", "none")
        if not self.site.is_cluster:
            yield from self.other("a script that only numbers, keeps and publishes to 1", "plain", "plain")
        for k, key in ((1, False), (3, False), (8, False), (1, True)):
            name = f"Centrifugo-style script, {k} node{'s' if k > 1 else ''}{', key' if key else ''}"
            yield name, "", lambda k=k, key=key: [self.style_command(f"k{k}:{n % channels}", key) for n in range(count)], 1
        for k in (0, 1, 3, 8):
            yield from self.own(f"script, {k} node{'' if k == 1 else 's'}", f"k{k}")
        yield from self.own("script, 8 nodes, one bucket publish", "k8", above=2)
        yield from self.own("script, 1 node, key", "k1", key=True)
        yield from self.own("script, 1 node, nothing kept", "forgetful", kept=0)
        yield from self.own("script, 1 node, batch of 8", "k1", batch=8)
        yield from self.own("script, 1 node, batch of 64", "k1", batch=64)

    def routing_cases(self):
        """As the design notes, A.2: 20 nodes, many channels."""
        channels = self.scenario["routed_channels"]
        yield from self.other("a script that only numbers", "numbered", "r1", channels)
        for k in (1, 3, 20):
            yield from self.other(f"a script that only numbers and routes, k = {k}", "routed", f"r{k}", channels)
        for k in (1, 3, 20):
            yield from self.own(f"script, nothing kept, k = {k}", f"r{k}", channels, kept=0)
        yield from self.own("script, nothing kept, k = 20, one bucket publish", "r20", channels, kept=0, above=7)
        for k in (1, 3, 20):
            yield from self.own(f"script, k = {k}", f"h{k}", channels)
        yield from self.own("script, k = 20, one bucket publish", "h20", channels, above=7)

    def prepare(self):
        self.open_inboxes(8)
        self.open_plain()
        for k in (1, 3, 8):
            self.register([f"k{k}:{n}" for n in range(self.scenario["channels"])], k)
        self.register([f"forgetful:{n}" for n in range(self.scenario["channels"])], 1)

    def prepare_routing(self):
        self.open_inboxes(20)
        channels = range(self.scenario["routed_channels"])
        for prefix, kept in (("r", 0), ("h", None)):
            for k in (1, 3, 20):
                self.register([f"{prefix}{k}:{n}" for n in channels], k)
                first = [self.publish_command(f"{prefix}{k}:{n}", kept=kept, above=0) for n in channels]
                self.site.run(first, self.scenario["pipeline"])

    def spent_us(self, commands):
        before = self.site.cpu_ns()
        self.site.run(commands, self.scenario["pipeline"])
        return (self.site.cpu_ns() - before) / 1000


def measure(benches, cases, rounds):
    """µs per publication of each round, by case, site and version. `benches` by site, `cases` makes those of one."""
    results = {}
    for _ in range(rounds):
        listed = {site: {(name, version): (commands, batch) for name, version, commands, batch in cases(bench)}
                  for site, bench in benches.items()}
        for case in dict.fromkeys(case for each in listed.values() for case in each):
            for site, bench in benches.items():
                if case not in listed[site]:
                    continue
                commands, batch = listed[site][case]
                commands = commands()
                column = f"{site}, {case[1]}" if case[1] else site
                each = results.setdefault(case[0], {}).setdefault(column, [])
                each.append(round(bench.spent_us(commands) / len(commands) / batch, 2))
    return results


def by_steps(engine, scenario, rounds, before):
    """What each step of the script costs, in CPU and in instructions."""
    text = script("publish")

    def prepare(bench):
        bench.open_inboxes(1)
        bench.register([f"k1:{n}" for n in range(scenario["channels"])], 1)

    cpu = at_sites(engine, scenario, {"single": 1}, prepare, lambda bench: backplane_steps.cases(bench, text), rounds, before)
    counted = backplane_steps.instructions(lambda *parts: Bench(*parts, before), engine, scenario, text)
    return {"cpu": cpu, "instructions": counted}


def at_sites(engine, scenario, sizes, prepare, cases, rounds, before):
    """The cases at sites of so many servers."""
    drain, sites = Drain(), {}
    try:
        for name, servers in sizes.items():
            sites[name] = Site(engine, scenario["server_core"], servers)
        benches = {name: Bench(site, scenario, drain, before) for name, site in sites.items()}
        for bench in benches.values():
            prepare(bench)
        return measure(benches, cases, rounds)
    finally:
        drain.is_over = True
        for site in sites.values():
            site.end()


def memory(engine, scenario):
    """Bytes of the engine's memory per channel."""
    drain, site = Drain(), Site(engine, scenario["server_core"], 1)
    try:
        bench, server = Bench(site, scenario, drain), site.engines[0]
        bench.open_inboxes(1)
        rows = {}
        for label, count, publishes in (("one interested node, never published", scenario["memory_channels"], 0),
                                        ("the same, one publication of 200 B kept", scenario["memory_history_channels"], 1)):
            before = server.memory()
            for begin in range(0, count, 10_000):
                channels = [f"{'seen' if publishes else 'idle'}:{n:07}" for n in range(begin, min(begin + 10_000, count))]
                site.run([bench.follow_command(one, FIRST_NODE) for one in channels], scenario["pipeline"])
                if publishes:
                    site.run([bench.publish_command(one) for one in channels], scenario["pipeline"])
            rows[label] = {"channels": count, "bytes_per_channel": round((server.memory() - before) / count)}
        return rows
    finally:
        drain.is_over = True
        site.end()


def cell(each):
    return f"{statistics.median(each):.1f} ({min(each):.1f}, {max(each):.1f})" if each else "–"


def table(results):
    """Rows of cases, columns of sites and versions; for each site with a version before, the median of their ratios."""
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    columns.sort(key=lambda column: column.split(", ")[0] != "single")
    compared = [column for column in columns if f"{column}, before" in columns]
    heads = columns + [f"{column}: now / before" for column in compared]
    lines = [f"| µs per publication | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, row in results.items():
        cells = [cell(row.get(column, [])) for column in columns]
        for column in compared:
            pairs = zip(row.get(column, []), row.get(f"{column}, before", []))
            ratios = [now / before for now, before in pairs]
            cells.append(f"{statistics.median(ratios):.2f}×" if ratios else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def page(known, runs):
    scenario = known["scenario"]
    lines = ["# The backplane's scripts at the engine", "", running.machine(known), "",
             f"{scenario['payload_bytes']} B per publication, {scenario['channels']} channels over all 4096 buckets, history "
             f"{scenario['history_size']}, {scenario['pipeline']} commands in a pipeline to each server. CPU of the servers' main threads per "
             "publication, in a cluster of three primaries their sum; medians over interleaved rounds of "
             f"{scenario['publishes']} publications, with the smallest and the largest. The machine is shared: ratios within a table count. "
             "The Centrifugo-style script publishes by PUBLISH, in the cluster by SPUBLISH."]
    if known["before"]:
        lines[-1] += f" \"before\" is commit {known['before']}, in the same rounds; ratios are medians over rounds."
    for engine, run in runs.items():
        lines += ["", f"## {engine} {known['versions'][engine]}", "", *table(run["cpu"]), ""]
        lines += [f"{scenario['routed_channels']} channels for each k, 20 nodes, one server:", "", *table(run["routing"]), ""]
        if "steps" in run:
            lines += ["Without one step, the rest as it is; instructions are those of the server as valgrind counts them:", "",
                      *backplane_steps.table(run["steps"]["cpu"], run["steps"]["instructions"], statistics.median, cell), ""]
        if "memory" not in run:
            continue
        lines += ["| memory | channels | bytes of the engine per channel |", "|---|---|---|"]
        lines += [f"| {label} | {row['channels']} | {row['bytes_per_channel']} |" for label, row in run["memory"].items()]
    return "\n".join(lines) + "\n"


def other_version(folder):
    """The bench of another checkout, which knows how to call its scripts."""
    place = pathlib.Path(folder).resolve() / "bench/backplane.py"
    spec = importlib.util.spec_from_file_location("backplane_before", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LUA = place.parent.parent / "src/gateway/backplane/lua"
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="backplane")
    parser.add_argument("--engines", default="redis,valkey")
    parser.add_argument("--before", metavar="FOLDER", help="another checkout, measured in the same rounds")
    parser.add_argument("--before-commit", default="", help="what the page calls it")
    parser.add_argument("--no-memory", action="store_true")
    running.add_arguments(parser, "backplane")
    arguments = parser.parse_args()
    scenario = running.prepare(arguments)
    os.sched_setaffinity(0, {scenario["client_core"]})
    before = other_version(arguments.before) if arguments.before else None
    rounds = arguments.repeats * scenario["rounds"]
    versions, runs = {}, {}
    for name in arguments.engines.split(","):
        versions[name] = running.output_of(engines.programs()[name], "--version").split("v=")[-1].split()[0]
        runs[name] = {
            "cpu": at_sites(name, scenario, {"single": 1, "cluster": 3}, Bench.prepare, Bench.cases, rounds, before),
            "routing": at_sites(name, scenario, {"single": 1}, Bench.prepare_routing, Bench.routing_cases, rounds, before),
        }
        if name == STEPS_ENGINE:
            runs[name]["steps"] = by_steps(name, scenario, rounds, before)
        if not arguments.no_memory:
            runs[name]["memory"] = memory(name, scenario)
    known = running.facts(scenario, arguments, versions)
    known["before"] = arguments.before_commit or (arguments.before and "of another checkout")
    known["command"] = known["command"].replace(str(arguments.before), "FOLDER")
    text = page(known, runs)
    print(text)
    if arguments.save:
        running.save("backplane", known, runs, text)


if __name__ == "__main__":
    main()
