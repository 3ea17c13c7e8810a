"""What clients see of server API calls, with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): unsubscribe,
disconnect, refresh; only the user that is named. This SDK has no event for messages outside channels."""

import sys

from common import Encoding, api, ok, run, until

encoding = Encoding(sys.argv[1])
USER = f"bob-py-{encoding.name}"
CHANNEL = f"room:api-py-{encoding.name}"


async def main():
    bob, bob_events = await encoding.connected_as(USER)
    _, bob_sub = await encoding.subscribed(bob, CHANNEL)
    eve, eve_events = await encoding.connected_as("eve")
    _, eve_sub = await encoding.subscribed(eve, CHANNEL)

    await api("rpc", user=USER, data={"ignored": True})
    await api("broadcast", channels=[CHANNEL, f"log:api-py-{encoding.name}"], data="to all")
    for events in (bob_sub, eve_sub):
        await until(lambda: events.data() == ["to all"], "broadcast")
    ok("broadcast, and a message that this SDK passes over")

    await api("publish", channel=CHANNEL, data="tagged", tags={"lang": "en"})
    for events in (bob_sub, eve_sub):
        await until(lambda: events.data() == ["to all", "tagged"], "the publication")
        assert events.seen[-1].tags == {"lang": "en"}, events.seen
    ok("tags")

    await api("unsubscribe", user=USER, channel=CHANNEL)
    await until(lambda: bob_sub.unsubscribed, "told")
    assert bob_sub.unsubscribed[0].code == 2000, bob_sub.unsubscribed
    ok("unsubscribe")

    await api("refresh", user=USER, expired=True)
    await until(lambda: any(ctx.code == 3005 for ctx in bob_events.connecting), "told")
    await until(lambda: len(bob_events.connected) == 2, "back")
    ok("refresh: expired at once")

    await api("disconnect", user=USER, disconnect={"code": 4001, "reason": "move on"})
    await until(lambda: any((ctx.code, ctx.reason) == (4001, "move on") for ctx in bob_events.connecting), "told")
    await until(lambda: len(bob_events.connected) == 3, "back")
    await api("disconnect", user=USER)
    await until(lambda: bob_events.disconnected, "told")
    assert bob_events.disconnected[0].code == 3503, bob_events.disconnected
    ok("disconnect")

    assert (len(eve_events.connected), eve_events.disconnected, eve_sub.unsubscribed) == (1, [], [])
    ok("others are left alone")


run(main)
