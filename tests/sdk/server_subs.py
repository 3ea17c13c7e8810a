"""Server-side subscriptions with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): from the token, the personal
channel as offline queue, from the HTTP API at run time; positions across reconnects."""

import sys

from common import CutProxy, Encoding, api, api_count, api_publish, ok, run, token, until

encoding = Encoding(sys.argv[1])
USER = f"alice-py-{encoding.name}"
NEWS, LATER, INBOX = f"backend:news-{USER}", f"backend:later-{USER}", f"inbox:#{USER}"


async def main():
    proxy = await CutProxy().start()
    client, events = await encoding.connected(proxy.url, token=token({"sub": USER, "channels": [NEWS]}))

    def seen(channel):
        return [encoding.read(pub.data) for name, pub in events.seen if name == channel]

    async def cut(channel, count, start):
        lost, before = len(events.connecting), len(events.connected)
        proxy.cut()
        await until(lambda: len(events.connecting) > lost, "the cut is noticed")
        await api_count(channel, count, start)
        proxy.mend()
        await until(lambda: len(events.connected) > before, "connected again")

    await until(lambda: len(events.subscribed) == 2, "two subscriptions")
    assert sorted(ctx.channel for ctx in events.subscribed) == sorted([NEWS, INBOX]), events.subscribed
    await api_publish(NEWS, "n1")
    await api_publish(INBOX, 1)
    await until(lambda: len(events.seen) == 2, "both deliver")
    ok("from the token, and the personal channel")

    for n in range(3):
        await cut(INBOX, 5, n * 5 + 2)
        await until(lambda: len(seen(INBOX)) >= 5 * n + 6, "what waited")
        assert seen(INBOX) == list(range(1, 5 * n + 7)), seen(INBOX)
        last = [ctx for ctx in events.subscribed if ctx.channel == INBOX][-1]
        assert last.was_recovering and last.recovered, last
    ok("what was sent to the user meanwhile comes in order, once")

    await api("subscribe", user=USER, channel=LATER)
    await until(lambda: any(ctx.channel == LATER for ctx in events.subscribed), "told")
    await api_publish(LATER, "l1")
    await until(lambda: seen(LATER) == ["l1"], "delivers")
    await api("unsubscribe", user=USER, channel=LATER)
    await until(lambda: LATER in events.unsubscribed, "told of the end")
    await api_publish(LATER, "l2")
    await api_publish(NEWS, "behind")
    await until(lambda: "behind" in seen(NEWS), "others go on")
    assert seen(LATER) == ["l1"], events.seen
    await client.disconnect()
    ok("from the API, at run time")


run(main)
