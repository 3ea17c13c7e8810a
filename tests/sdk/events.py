"""A backend on the ingest port decides (tests/sdk_events.rs), as PyPI `centrifuge-python` sees it, JSON or Protobuf
(argument 1): the same as events.mjs does, so that the
backend hears the same."""

import asyncio
import sys

from common import Encoding, ok, refused, run, subscribe_refused, until

encoding = Encoding(sys.argv[1])
read, write = encoding.read, encoding.write
CHANNEL = f"asked:room-{encoding.name}"
USER = f"alice-{encoding.name}"


async def main():
    alice, events = await encoding.connected(data=write({"user": USER}))
    assert read(events.connected[0].data) == {"welcome": USER}, events.connected
    await until(lambda: [ctx.channel for ctx in events.subscribed] == ["backend:from-connect"], "a server-side subscription")
    ok("connect: admitted, with data and a subscription")

    for user, code in (("stranger", 1001), ("banned", 4500)):
        client, other = encoding.client(data=write({"user": user}))
        await client.connect()
        await until(lambda: other.disconnected, "the refusal")
        assert other.disconnected[0].code == code, other.disconnected
    ok("connect: refused")

    sub, sub_events = await encoding.subscribed(alice, CHANNEL)
    assert read(sub_events.subscribed[0].data) == {"topic": "tea"}, sub_events.subscribed
    (info,) = (await sub.presence()).clients.values()
    assert (info.user, read(info.conn_info), read(info.chan_info)) == (USER, {"name": "A"}, {"role": "guest"}), info
    assert await subscribe_refused(alice, f"asked:secret-{encoding.name}") == 1003
    ok("subscribe: with info and data, or refused")

    await sub.publish(write({"text": "plain"}))
    await sub.publish(write({"text": "rude"}))
    assert await refused(sub.publish(write({"text": "forbidden"}))) == 1005
    await sub.publish(write({"text": "last"}))
    await until(lambda: len(sub_events.seen) == 3, "what is left")
    assert [value["text"] for value in sub_events.data()] == ["plain", "censored", "last"], sub_events.data()
    ok("publish: as it is, changed, refused")

    assert read((await alice.rpc("echo", write({"n": [1, 2, 3]}))).data) == {"n": [1, 2, 3]}
    assert await refused(alice.rpc("unknown", write(None))) == 104
    ok("rpc")

    slow = asyncio.create_task(alice.rpc("slow", write("x")))
    for _ in range(20):
        await alice.presence_stats(CHANNEL)
        assert not slow.done(), "other answers overtake it"
    assert read((await slow).data) == "late"
    assert len(events.connected) == 1, events.connecting
    ok("a slow backend delays neither pongs nor other commands")

    await sub.unsubscribe()
    assert await refused(alice.rpc("unknown", write(None))) == 104
    await alice.disconnect()
    ok("the end")


run(main)
