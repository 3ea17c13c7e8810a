"""The Python member of `exchange_all.mjs`: subscribes to the channel (argument 1), says hello once told `go`, and ends
when it has seen the members named in the further arguments."""

import asyncio
import sys

from common import Encoding, run, until

encoding = Encoding("json")
channel, members = sys.argv[1], set(sys.argv[2:])


async def main():
    client, _ = await encoding.connected()
    sub, events = await encoding.subscribed(client, channel)
    print("READY", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await sub.publish({"from": "python", "text": "hello from python"})
    # Members write different objects: the name stands in each of them.
    await until(lambda: all(any(member in str(data) for data in events.data()) for member in members), members)
    print("DONE", flush=True)


run(main)
