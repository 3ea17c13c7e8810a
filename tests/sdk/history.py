"""History with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): limit, since, reverse, 0, -1, and the errors 103,
108, 112."""

import sys

from centrifuge import StreamPosition

from common import Encoding, api_count, ok, refused, run

encoding = Encoding(sys.argv[1])
CHANNEL = f"log:py-{encoding.name}"


async def main():
    alice, _ = await encoding.connected()
    await api_count(CHANNEL, 15)
    top = await alice.history(CHANNEL, limit=0)
    assert (top.offset, top.publications) == (15, []) and top.epoch, top
    ok("only the position")

    async def page(since=None, **options):
        position = None if since is None else StreamPosition(offset=since, epoch=top.epoch)
        result = await alice.history(CHANNEL, since=position, **options)
        assert (result.offset, result.epoch) == (15, top.epoch), result
        offsets = [pub.offset for pub in result.publications]
        assert [encoding.read(pub.data) for pub in result.publications] == offsets, result
        return offsets

    assert await page(limit=3) == [6, 7, 8]
    assert await page(limit=-1) == list(range(6, 16))
    ok("from the oldest kept")
    assert await page(limit=2, since=8) == [9, 10]
    assert await page(limit=-1, since=15) == []
    ok("since")
    assert await page(limit=3, reverse=True) == [15, 14, 13]
    assert await page(limit=2, since=12, reverse=True) == [11, 10]
    ok("reverse")
    other = StreamPosition(offset=8, epoch="another")
    assert await refused(alice.history(CHANNEL, limit=1, since=other)) == 112
    assert await refused(alice.history("plain:x", limit=1)) == 108
    minutes = f"minutes:py-{encoding.name}"
    assert await refused(alice.history(minutes, limit=1)) == 103
    sub, _ = await encoding.subscribed(alice, minutes)
    assert (await sub.history(limit=1)).publications == []
    ok("errors")


run(main)
