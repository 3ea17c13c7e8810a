"""Presence with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): who is there by connection and by user, and who is
not any more: after an unsubscribe, a disconnect, and a half-open cut. The server pings each second."""

import asyncio
import sys
import time

from common import CutProxy, Encoding, ok, refused, run

encoding = Encoding(sys.argv[1])
CHANNEL = f"room:presence-py-{encoding.name}"


async def stats(sub):
    result = await sub.presence_stats()
    return f"{result.num_clients} of {result.num_users}"


async def until_stats(sub, expected, what):
    end = time.monotonic() + 20
    while (now := await stats(sub)) != expected:
        assert time.monotonic() < end, f"{what}: {now}, not {expected}"
        await asyncio.sleep(0.02)


async def main():
    alice, _ = await encoding.connected_as("alice", info={"name": "Älice"})
    tab, _ = await encoding.connected_as("alice")
    bob, _ = await encoding.connected_as("bob")
    watcher, _ = await encoding.subscribed(alice, CHANNEL)
    await encoding.subscribed(tab, CHANNEL)
    bob_sub, _ = await encoding.subscribed(bob, CHANNEL)
    assert await stats(watcher) == "3 of 2"
    clients = (await watcher.presence()).clients
    assert sorted(info.user for info in clients.values()) == ["alice", "alice", "bob"], clients
    assert all(info.client == id for id, info in clients.items()), clients
    infos = [encoding.read(info.conn_info) for info in clients.values() if info.conn_info]
    assert infos == [{"name": "Älice"}], infos
    ok("several tabs of one user")

    await tab.disconnect()
    await until_stats(watcher, "2 of 2", "a tab is closed")
    ok("gone after a disconnect")
    await bob_sub.unsubscribe()
    await until_stats(watcher, "1 of 1", "bob is gone")
    ok("gone after an unsubscribe")

    proxy = await CutProxy().start()
    carol, _ = await encoding.connected_as("carol", url=proxy.url)
    await encoding.subscribed(carol, CHANNEL)
    assert await stats(watcher) == "2 of 2"
    proxy.open = False
    proxy.silence()
    await until_stats(watcher, "1 of 1", "carol is gone")
    ok("gone after a half-open cut, within ping and pong")

    assert await refused(alice.presence("plain:x")) == 108
    assert await refused(alice.presence_stats("plain:x")) == 108
    stranger, _ = await encoding.connected()
    assert await refused(stranger.presence(CHANNEL)) == 103
    assert await refused(stranger.presence_stats(CHANNEL)) == 103
    ok("refusals")


run(main)
