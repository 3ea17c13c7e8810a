"""Who may do what, with PyPI `centrifuge-python`, JSON or Protobuf (argument 1): options of namespaces, private channels
($), user-limited channels (#), for anonymous clients, users and subscribers. What is refused ends nothing."""

import sys

from common import Encoding, ok, refused, run, subscribe_refused, token, until

encoding = Encoding(sys.argv[1])
write = encoding.write


async def main():
    anonymous, anonymous_events = await encoding.connected()
    alice, alice_events = await encoding.connected_as("alice")
    carol, carol_events = await encoding.connected_as("carol")

    members = f"members:py-{encoding.name}"
    assert await subscribe_refused(anonymous, members) == 103
    assert await refused(anonymous.publish(members, write(1))) == 103
    assert await refused(anonymous.history(members, limit=1)) == 103
    assert await refused(anonymous.presence(members)) == 103
    _, events = await encoding.subscribed(alice, members)
    await carol.publish(members, write("from carol"))
    await until(lambda: events.data() == ["from carol"], "carol may")
    assert events.seen[0].info.user == "carol", events.seen
    ok("users only")

    room = f"room:py-rights-{encoding.name}"
    assert await refused(alice.publish(room, write(1))) == 103
    sub, events = await encoding.subscribed(alice, room)
    await sub.publish(write(2))
    await until(lambda: events.data() == [2], "a subscriber may")
    ok("subscribers only")

    assert await subscribe_refused(alice, f"backend:py-{encoding.name}") == 103
    assert await refused(alice.publish(f"backend:py-{encoding.name}", write(1))) == 103
    ok("backends only")

    secret = f"$secret-py-{encoding.name}"
    assert await subscribe_refused(alice, secret) == 103
    await encoding.subscribed(alice, secret, token=token({"sub": "alice", "channel": secret}))
    assert await subscribe_refused(carol, secret) == 103
    ok("private channels")

    limited = f"py-{encoding.name}#alice,bob"
    await encoding.subscribed(alice, limited)
    for other in (carol, anonymous):
        assert await subscribe_refused(other, limited) == 103
        assert await refused(other.publish(limited, write(1))) == 103
    ok("user-limited channels")

    assert not (anonymous_events.disconnected + alice_events.disconnected + carol_events.disconnected)
    ok("refusals end nothing")


run(main)
