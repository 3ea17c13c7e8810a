"""Tokens with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): connect, refresh and expiry of connections and of
subscriptions. Tokens are HS256; the server ends what has expired one second ago (limits.expired_grace_ms)."""

import asyncio
import sys
import time

from common import Encoding, ok, run, subscribe_refused, token, until

encoding = Encoding(sys.argv[1])


def channel(name):
    return f"ticket:py-{name}-{encoding.name}"


def lasts(seconds, **claims):
    return token({"exp": int(time.time()) + seconds} | claims)


class Giver:
    """Gives tokens that last, and counts."""

    def __init__(self, **claims):
        self.claims = claims
        self.asked = 0

    async def __call__(self, *_):
        self.asked += 1
        return lasts(3600, **self.claims)


async def never(*_):
    await asyncio.Event().wait()


async def connections():
    for bad in (token({"sub": "alice"}, "another secret"), "no token at all"):
        client, events = encoding.client(token=bad)
        await client.connect()
        await until(lambda: events.disconnected, "told so")
        assert events.disconnected[0].code == 3500, events.disconnected
    ok("a forged token ends the connection for good")

    giver = Giver(sub="bob")
    await encoding.connected(token=lasts(-60, sub="bob"), get_token=giver)
    assert giver.asked == 1
    ok("an expired token is renewed at connect")

    giver = Giver(sub="bob")
    client, events = await encoding.connected(token=lasts(2, sub="bob"), get_token=giver)
    await until(lambda: giver.asked == 1, "a new token is asked for")
    await asyncio.sleep(3)
    assert (len(events.connected), events.disconnected) == (1, []), events.connected
    await client.disconnect()
    ok("refreshed in time, the connection stays")

    client, events = await encoding.connected(token=lasts(2, sub="bob"), get_token=never)
    await until(lambda: any(ctx.code == 3005 for ctx in events.connecting), "closed as expired")
    await client.disconnect()
    ok("not refreshed, it is closed with 3005")


async def subscriptions():
    alice, alice_events = await encoding.connected_as("alice")
    room = channel("room")
    assert await subscribe_refused(alice, room) == 103
    assert await subscribe_refused(alice, room, token=token({"sub": "alice", "channel": room}, "another secret")) == 103
    good = lasts(3600, sub="alice", channel=room, info={"role": "host"})
    sub, _ = await encoding.subscribed(alice, room, token=good)
    (info,) = (await sub.presence()).clients.values()
    assert encoding.read(info.chan_info) == {"role": "host"}, info
    ok("subscription tokens")

    name = channel("renewed")
    giver = Giver(sub="alice", channel=name)
    await encoding.subscribed(alice, name, token=lasts(-60, sub="alice", channel=name), get_token=giver)
    assert giver.asked == 1
    ok("an expired subscription token is renewed")

    name = channel("stays")
    giver = Giver(sub="alice", channel=name)
    _, events = await encoding.subscribed(alice, name, token=lasts(2, sub="alice", channel=name), get_token=giver)
    await until(lambda: giver.asked == 1, "refreshed")
    await asyncio.sleep(3)
    assert (len(events.subscribed), events.unsubscribed, len(alice_events.connected)) == (1, [], 1), events.subscribed
    ok("a subscription refreshed in time stays")


async def main():
    await connections()
    await subscriptions()


run(main)
