"""A reload by SIGHUP as PyPI `centrifuge-python` sees it, JSON or Protobuf (argument 1); see reload.mjs."""

import sys

from common import Encoding, api_publish, ask, ok, refused, run, subscribe_refused, until

encoding = Encoding(sys.argv[1])
CHANNEL = f"chat:py-{encoding.name}"


async def main():
    alice, client_events = await encoding.connected()
    sub, events = await encoding.subscribed(alice, CHANNEL)
    await sub.publish(encoding.write(1))
    await until(lambda: events.data() == [1], "published")
    assert await subscribe_refused(alice, "fresh:x") == 102
    ok("before")
    await ask("@reload")
    await encoding.subscribed(alice, f"fresh:py-{encoding.name}")
    assert await refused(sub.publish(encoding.write(2))) == 103
    await api_publish(CHANNEL, 3)
    await until(lambda: events.data() == [1, 3], "backends still may")
    assert (len(events.subscribed), len(client_events.connected)) == (1, 1)
    ok("after")


run(main)
