"""PyPI `centrifuge-python`, JSON or Protobuf (argument 1): connect, subscribe, publish both ways, unsubscribe, error
codes, recovery after a cut, and a restart of the server."""

import asyncio
import sys

from centrifuge import ReplyError

from common import CutProxy, Encoding, SubscriptionEvents, api_publish, ask, ok, run, until

encoding = Encoding(sys.argv[1])
write = encoding.write


def channel(name):
    return f"python-{encoding.name}-{name}"


async def refused(awaitable, codes):
    try:
        await awaitable
    except ReplyError as error:
        assert error.code in codes and error.message, error
        return
    raise AssertionError(f"not refused with {codes}")


async def exchange(alice, bob):
    alice_sub, alice_events = await encoding.subscribed(alice, channel("chat"))
    bob_sub, bob_events = await encoding.subscribed(bob, channel("chat"))
    first = alice_events.subscribed[0]
    assert first.recoverable and not first.was_recovering and first.stream_position.epoch, first
    ok("subscribe")

    await alice_sub.publish(write({"from": "alice"}))
    await bob_sub.publish(write({"from": "bob"}))
    await api_publish(channel("chat"), {"from": "backend"})
    for events in (alice_events, bob_events):
        await until(lambda: len(events.seen) == 3, "three publications")
        assert events.data() == [{"from": "alice"}, {"from": "bob"}, {"from": "backend"}], events.data()
        assert [pub.offset for pub in events.seen] == [1, 2, 3]
        assert events.seen[0].info.client != events.seen[1].info.client
        assert events.seen[2].info is None
    ok("publish both ways")

    await alice_sub.unsubscribe()
    await until(lambda: alice_events.unsubscribed, "unsubscribed")
    await bob_sub.publish(write("while alice is away"))
    await until(lambda: len(bob_events.seen) == 4, "bob sees his own")
    await asyncio.sleep(0.2)
    assert len(alice_events.seen) == 3
    await alice_sub.subscribe()
    await alice_sub.ready(20)
    await bob_sub.publish(write("alice is back"))
    await until(lambda: "alice is back" in alice_events.data(), "alice hears again")
    ok("unsubscribe and subscribe again")
    return alice_events, bob_events, bob_sub


async def error_codes(alice):
    events = SubscriptionEvents(encoding.read)
    await alice.new_subscription("no-such-namespace:x", events=events).subscribe()
    await until(lambda: events.unsubscribed, "the refusal")
    assert events.unsubscribed[0].code == 102, events.unsubscribed
    await refused(alice.publish("no-such-namespace:x", write(1)), {102})
    await refused(alice.rpc("nothing", write({})), {104, 108})
    ok("error codes")


async def recovery():
    proxy = await CutProxy().start()
    carol, carol_events = await encoding.connected(proxy.url)
    _, events = await encoding.subscribed(carol, channel("cut"))
    await api_publish(channel("cut"), 0)
    await until(lambda: len(events.seen) == 1, "the first one")
    for n in range(1, 4):
        lost = len(carol_events.connecting)
        proxy.cut()
        await until(lambda: len(carol_events.connecting) > lost, "the cut is noticed")
        for m in range(1, 6):
            await api_publish(channel("cut"), n * 10 + m)
        proxy.mend()
        await until(lambda: len(events.subscribed) == 1 + n, "subscribed again")
        assert events.subscribed[-1].was_recovering and events.subscribed[-1].recovered, events.subscribed[-1]
        await until(lambda: len(events.seen) == 1 + 5 * n, "what was missed")
    await api_publish(channel("cut"), "live")
    await until(lambda: events.data()[-1] == "live", "live again")
    expected = [0] + [n * 10 + m for n in range(1, 4) for m in range(1, 6)] + ["live"]
    assert events.data() == expected, events.data()
    assert [pub.offset for pub in events.seen] == list(range(1, len(expected) + 1))
    await carol.disconnect()
    ok("recovery after a cut")


async def main():
    alice, alice_client = await encoding.connected()
    bob, _ = await encoding.connected()
    ok("connect")
    alice_events, bob_events, bob_sub = await exchange(alice, bob)
    await error_codes(alice)
    await recovery()

    lost = len(alice_client.connecting)
    epoch = alice_events.subscribed[-1].stream_position.epoch
    await ask("@restart")
    await until(lambda: len(alice_client.connecting) > lost, "alice is told")
    assert alice_client.connecting[lost].code == 3001, alice_client.connecting
    await until(lambda: alice_events.subscribed[-1].stream_position.epoch != epoch, "subscribed to the new server")
    last = alice_events.subscribed[-1]
    assert last.was_recovering and not last.recovered, alice_events.subscribed
    await until(lambda: bob_events.subscribed[-1].stream_position.epoch != epoch, "bob is back")
    await bob_sub.publish(write("after the restart"))
    await until(lambda: alice_events.data()[-1] == "after the restart", "alice hears bob again")
    ok("a restart of the server")


run(main)
