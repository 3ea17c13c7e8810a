"""Recovery with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): everything missed or nothing of it, cache mode,
and state loaded by the application (`get_state`, error 112)."""

import sys

from centrifuge import StreamPosition

from common import CutProxy, Encoding, api, api_count, api_publish, ok, run, until

encoding = Encoding(sys.argv[1])


class Cut:
    """A subscriber behind a proxy."""

    @classmethod
    async def subscribed(cls, channel, **options):
        self = cls()
        self.proxy = await CutProxy().start()
        self.client, self.client_events = await encoding.connected(self.proxy.url)
        self.sub, self.events = await encoding.subscribed(self.client, channel, **options)
        return self

    async def while_away(self, channel, count, start):
        lost, before = len(self.client_events.connecting), len(self.events.subscribed)
        self.proxy.cut()
        await until(lambda: len(self.client_events.connecting) > lost, "the cut is noticed")
        await api_count(channel, count, start)
        self.proxy.mend()
        await until(lambda: len(self.events.subscribed) > before, "subscribed again")
        last = self.events.subscribed[-1]
        return (last.was_recovering, last.recovered)

    async def sees(self, expected, what):
        await until(lambda: len(self.events.seen) >= len(expected), what)
        assert self.events.data() == expected, self.events.data()


async def main():
    channel = f"short:all-py-{encoding.name}"
    cut = await Cut.subscribed(channel)
    for n in range(4):
        assert await cut.while_away(channel, 5, n * 5 + 1) == (True, True)
        await cut.sees(list(range(1, 5 * n + 6)), "what was missed")
    ok("everything missed, as often as it is cut")

    channel = f"short:lost-py-{encoding.name}"
    cut = await Cut.subscribed(channel)
    await api_publish(channel, 1)
    await cut.sees([1], "live")
    assert await cut.while_away(channel, 6, 2) == (True, False)
    await api_publish(channel, 8)
    await cut.sees([1, 8], "live again")
    ok("too much missed: nothing of it, then live")

    channel = f"price:py-{encoding.name}"
    cut = await Cut.subscribed(channel)
    await api_publish(channel, 1)
    await cut.sees([1], "live")
    assert await cut.while_away(channel, 10, 2) == (True, True)
    await cut.sees([1, 11], "the newest after a cut")
    ok("cache mode: the newest only")

    channel = f"short:state-py-{encoding.name}"
    await api_count(channel, 3)
    loads = []

    async def get_state(_channel):
        top = await api("history", channel=channel, limit=0)
        loads.append(top["offset"])
        await api_publish(channel, f"between {len(loads)}")
        return StreamPosition(offset=top["offset"], epoch=top["epoch"])

    cut = await Cut.subscribed(channel, get_state=get_state)
    await cut.sees(["between 1"], "what came between")
    await cut.while_away(channel, 9, 20)
    await cut.sees(["between 1", "between 2"], "loaded again")
    assert len(loads) == 2, loads
    ok("state of the application, and error 112")


run(main)
