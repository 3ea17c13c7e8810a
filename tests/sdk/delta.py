"""Fossil deltas with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): what the SDK puts together is what was
published, live and after recovery."""

import sys

from centrifuge import DeltaType

from common import CutProxy, Encoding, api_publish, ok, run, until

encoding = Encoding(sys.argv[1])
CHANNEL = f"doc:py-{encoding.name}"


def document(version):
    words = [f"word-{n * 7919 % 1000}" for n in range(400)]
    words[version] = f"changed-{version}"
    return {"version": version, "words": words}


async def main():
    proxy = await CutProxy().start()
    client, client_events = await encoding.connected(proxy.url)
    _, events = await encoding.subscribed(client, CHANNEL, delta=DeltaType.FOSSIL)
    published = []

    async def publish(count):
        for _ in range(count):
            published.append(document(len(published)))
            await api_publish(CHANNEL, published[-1])

    async def sees_all():
        await until(lambda: len(events.seen) >= len(published), "all versions")
        assert events.data() == published

    await publish(20)
    await sees_all()
    ok("live")
    for n in range(3):
        lost, before = len(client_events.connecting), len(events.subscribed)
        proxy.cut()
        await until(lambda: len(client_events.connecting) > lost, "the cut is noticed")
        await publish(10)
        proxy.mend()
        await until(lambda: len(events.subscribed) > before, "subscribed again")
        assert events.subscribed[-1].recovered, events.subscribed[-1]
        await publish(3)
        await sees_all()
    ok("after recovery")


run(main)
