"""PyPI `centrifuge-python` counts channels: arguments are the encoding, the first channel number, how many channels,
publications per channel. Channel names are `count-<n>`; payload k is {"n":k}. Prints READY when all are subscribed, then
ends with 0 once every channel is complete, in order, offsets dense."""

import asyncio
import sys
import time

from centrifuge import SubscriptionEventHandler

from common import Encoding, run

encoding = Encoding(sys.argv[1])
first, channels, per_channel = map(int, sys.argv[2:5])
total = channels * per_channel


class Counter(SubscriptionEventHandler):
    received = 0
    failure = None

    def __init__(self, name):
        self.name = name
        self.next = 0

    async def on_subscribed(self, ctx):
        if ctx.was_recovering and not ctx.recovered:
            Counter.failure = Counter.failure or f"{self.name}: position lost after {self.next}"

    async def on_publication(self, ctx):
        self.next += 1
        Counter.received += 1
        if ctx.pub.offset != self.next or encoding.read(ctx.pub.data)["n"] != self.next:
            Counter.failure = Counter.failure or f"{self.name}: expected {self.next}, got {ctx.pub}"


async def main():
    client, events = await encoding.connected()
    subs = []
    for n in range(first, first + channels):
        sub = client.new_subscription(f"count-{n}", events=Counter(f"count-{n}"))
        await sub.subscribe()
        subs.append(sub)
    for sub in subs:
        await sub.ready(60)
    print("READY", flush=True)
    last, since = 0, time.monotonic()
    while Counter.received < total and not Counter.failure and not events.disconnected:
        if Counter.received != last:
            last, since = Counter.received, time.monotonic()
        assert time.monotonic() - since < 60, f"nothing for 60 s: {last} of {total}"
        await asyncio.sleep(0.05)
    # One too many would come now.
    await asyncio.sleep(0.3)
    assert not Counter.failure, Counter.failure
    assert not events.disconnected, events.disconnected
    assert Counter.received == total, f"{Counter.received} of {total}"
    reconnects = len(events.connecting) - 1
    print(
        f"COMPLETE python {encoding.name}: {channels} channels, {total} publications, in order, dense,"
        f" {reconnects} reconnects"
    )


run(main)
