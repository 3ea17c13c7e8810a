"""Join and leave with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): told to those who ask, with connection and
user; nothing above `join_leave_members_max`."""

import sys

from common import CutProxy, Encoding, ok, run, until

encoding = Encoding(sys.argv[1])


async def main():
    channel = f"room:comings-py-{encoding.name}"
    alice, _ = await encoding.connected_as("alice")
    _, alice_events = await encoding.subscribed(alice, channel, join_leave=True)
    quiet, _ = await encoding.connected_as("quiet")
    _, quiet_events = await encoding.subscribed(quiet, channel)
    proxy = await CutProxy().start()
    bob, _ = await encoding.connected_as("bob", url=proxy.url)
    bob_sub, _ = await encoding.subscribed(bob, channel)
    await until(lambda: "+bob" in alice_events.comings, "bob came")
    proxy.cut()
    await until(lambda: "-bob" in alice_events.comings, "bob was cut")
    proxy.mend()
    await until(lambda: alice_events.comings.count("+bob") == 2, "bob came back")
    await bob_sub.unsubscribe()
    await until(lambda: alice_events.comings[-1] == "-bob", "bob left")
    heard = [what for what in alice_events.comings if what[1:] != "alice"]
    assert heard == ["+quiet", "+bob", "-bob", "+bob", "-bob"], heard
    assert quiet_events.comings == [], quiet_events.comings
    ok("told to those who ask")

    channel = f"crowd:py-{encoding.name}"
    watcher, _ = await encoding.connected_as("watcher")
    _, watcher_events = await encoding.subscribed(watcher, channel)
    subs = {}
    for user in "bcd":
        client, _ = await encoding.connected_as(user)
        subs[user], _ = await encoding.subscribed(client, channel)
    await subs["d"].unsubscribe()
    while (await watcher.presence_stats(channel)).num_clients != 3:
        pass
    await subs["c"].unsubscribe()
    await until(lambda: "-c" in watcher_events.comings, "c left a small channel")
    heard = [what for what in watcher_events.comings if what[1:] != "watcher"]
    # d came and went where more than three were there.
    assert heard == ["+b", "+c", "-c"], heard
    ok("nothing above join_leave_members_max")


run(main)
