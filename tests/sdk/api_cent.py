"""The server API through `cent`, the Python library for Centrifugo's HTTP API, unchanged: every method of its client that
Centrifugo serves without a paid extension, with its synchronous and its asynchronous client."""

import asyncio
import base64
import json
import os
import time
import uuid

from cent import (
    AsyncClient,
    BatchRequest,
    BoolValue,
    BroadcastRequest,
    CentApiResponseError,
    CentTransportError,
    CentUnauthorizedError,
    ChannelOptionsOverride,
    ChannelsRequest,
    Client,
    Disconnect,
    DisconnectRequest,
    HistoryRemoveRequest,
    HistoryRequest,
    InfoRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    StreamPosition,
    SubscribeRequest,
    UnsubscribeRequest,
)
from cent.dto import RevokeTokenRequest

from common import API_KEY, CONTROL_URL, Encoding, ok, run, until

# Whatever proxy the environment names, it is not for this.
os.environ["NO_PROXY"] = "127.0.0.1"
API_URL = f"{CONTROL_URL}/api"
client = Client(API_URL, API_KEY)
# Scripts share a server: names of their own.
PREFIX = f"cent-{uuid.uuid4().hex[:8]}"
NOBODY = f"{PREFIX}-nobody"


def name(what):
    return f"{PREFIX}-{what}"


def refused(code, call, *arguments):
    try:
        call(*arguments)
    except CentApiResponseError as error:
        assert error.code == code, error
    else:
        raise AssertionError(f"not refused with {code}: {arguments}")


def publish_and_history():
    channel = name("history")
    results = [client.publish(PublishRequest(channel=channel, data={"n": n})) for n in range(1, 6)]
    assert [result.offset for result in results] == [1, 2, 3, 4, 5], results
    epoch = results[0].epoch
    assert epoch and all(result.epoch == epoch for result in results), results

    history = client.history(HistoryRequest(channel=channel, limit=100))
    assert [(pub.offset, pub.data) for pub in history.publications] == [(n, {"n": n}) for n in range(1, 6)], history
    assert (history.offset, history.epoch) == (5, epoch), history
    position = client.history(HistoryRequest(channel=channel))
    assert (position.publications, position.offset, position.epoch) == ([], 5, epoch), position
    newest = client.history(HistoryRequest(channel=channel, limit=2, reverse=True))
    assert [pub.offset for pub in newest.publications] == [5, 4], newest
    since = StreamPosition(offset=3, epoch=epoch)
    behind = client.history(HistoryRequest(channel=channel, limit=100, since=since))
    assert [pub.offset for pub in behind.publications] == [4, 5], behind
    refused(112, client.history, HistoryRequest(channel=channel, limit=1, since=StreamPosition(offset=3, epoch="else")))

    skipped = client.publish(PublishRequest(channel=channel, data=1, skip_history=True))
    assert skipped.offset == 0, skipped
    assert client.history(HistoryRequest(channel=channel)).offset == 5
    key = name("key")
    again = [client.publish(PublishRequest(channel=channel, data=6, idempotency_key=key)).offset for _ in range(3)]
    assert again == [6, 6, 6], again

    client.history_remove(HistoryRemoveRequest(channel=channel))
    assert client.history(HistoryRequest(channel=channel, limit=100)).publications == []
    ok("publish, history, history_remove")


def broadcast():
    channels = [name(f"broadcast-{n}") for n in range(50)]
    result = client.broadcast(BroadcastRequest(channels=[*channels, "nowhere:1"], data={"to": "all"}))
    assert [response.result.offset for response in result.responses[:-1]] == [1] * 50, result
    assert result.responses[-1].error.code == 102, result.responses[-1]
    ok("broadcast")


def errors():
    refused(102, client.publish, PublishRequest(channel="nowhere:1", data=1))
    refused(107, client.publish, PublishRequest(channel="", data=1))
    too_many = {str(number): "" for number in range(65)}
    refused(107, client.publish, PublishRequest(channel=name("tags"), data=1, tags=too_many))
    refused(107, client.publish, PublishRequest(channel=name("json"), data=None, b64data=base64.b64encode(b"\x00").decode()))
    try:
        Client(API_URL, "wrong").info(InfoRequest())
    except CentUnauthorizedError:
        pass
    else:
        raise AssertionError("a wrong key was let in")
    try:
        client.publish(PublishRequest(channel=name("large"), data="x" * (8 * 1024 * 1024)))
    except CentTransportError as error:
        assert error.status_code == 413, error
    else:
        raise AssertionError("a payload of 8 MiB was let in")
    ok("errors")


def node():
    info = client.info(InfoRequest())
    [node] = info.nodes
    assert (node.num_clients, node.num_users, node.num_subs) == (0, 0, 0), info
    assert node.uid and node.name and node.version and node.process.rss > 0, info
    client.revoke_token(RevokeTokenRequest(uid=name("token"), expire_at=int(time.time()) + 60))
    ok("info, revoke_token")


async def who_is_there():
    channel = name("presence")
    clients = [await Encoding(encoding).connected() for encoding in ("json", "protobuf")]
    for (sdk_client, _), encoding in zip(clients, ("json", "protobuf")):
        await Encoding(encoding).subscribed(sdk_client, channel)
    stats = client.presence_stats(PresenceStatsRequest(channel=channel))
    # Both are anonymous, and all anonymous ones are one user.
    assert (stats.num_clients, stats.num_users) == (2, 1), stats
    presence = client.presence(PresenceRequest(channel=channel)).presence
    assert len(presence) == 2 and all(key == info.client for key, info in presence.items()), presence
    channels = client.channels(ChannelsRequest(pattern=f"{PREFIX}-pres*")).channels
    assert list(channels) == [channel] and channels[channel].num_clients >= 1, channels
    assert client.channels(ChannelsRequest(pattern=f"{PREFIX}-nothing*")).channels == {}
    assert channel in client.channels(ChannelsRequest()).channels
    for sdk_client, _ in clients:
        await sdk_client.disconnect()

    def nobody_left():
        return client.presence_stats(PresenceStatsRequest(channel=channel)).num_clients == 0

    await until(nobody_left, "presence is empty again")
    ok("presence, presence_stats, channels")


def orders_about_users():
    # What they do to connections is shown where clients have tokens; here: that they are taken as `cent` sends them.
    channel = name("orders")
    override = ChannelOptionsOverride(presence=BoolValue(value=True), force_recovery=BoolValue(value=True))
    client.subscribe(
        SubscribeRequest(
            user=NOBODY,
            channel=channel,
            client="c",
            info={"a": 1},
            data={"b": 2},
            recover_since=StreamPosition(offset=1, epoch="e"),
            override=override,
        )
    )
    client.subscribe(SubscribeRequest(user=NOBODY, channel=channel, b64info=base64.b64encode(b"[1]").decode()))
    refused(102, client.subscribe, SubscribeRequest(user=NOBODY, channel="nowhere:1"))
    refused(107, client.subscribe, SubscribeRequest(user=NOBODY, channel=channel, session="s"))
    client.unsubscribe(UnsubscribeRequest(user=NOBODY, channel=channel))
    client.disconnect(DisconnectRequest(user=NOBODY))
    client.disconnect(DisconnectRequest(user=NOBODY, disconnect=Disconnect(), whitelist=["c"]))
    client.disconnect(DisconnectRequest(user=NOBODY, client="c", disconnect=Disconnect(code=4000, reason="bye")))
    client.refresh(RefreshRequest(user=NOBODY, expire_at=int(time.time()) + 3600))
    client.refresh(RefreshRequest(user=NOBODY, client="c", expired=True))
    ok("subscribe, unsubscribe, disconnect, refresh")


def batch():
    channel = name("batch")
    for parallel in (False, True):
        requests = [PublishRequest(channel=channel, data={"n": n}) for n in range(20)]
        requests.append(HistoryRequest(channel=channel, limit=1, reverse=True))
        requests.append(DisconnectRequest(user=NOBODY))
        replies = client.batch(BatchRequest(requests=requests, parallel=parallel)).replies
        offsets = [reply.offset for reply in replies[:20]]
        assert offsets == list(range(offsets[0], offsets[0] + 20)), offsets
        # About one channel, so in order even when the rest of the batch is not.
        assert replies[20].publications[0].data == {"n": 19}, replies[20]
    ok("batch")


async def asynchronous():
    channel = name("async")
    json_client, _ = await Encoding("json").connected()
    _, events = await Encoding("json").subscribed(json_client, channel)
    async with AsyncClient(API_URL, API_KEY) as async_client:
        calls = [async_client.publish(PublishRequest(channel=channel, data={"n": n})) for n in range(20)]
        results = await asyncio.gather(*calls)
        assert sorted(result.offset for result in results) == list(range(1, 21)), results
        await until(lambda: len(events.seen) == 20, "20 publications")
        assert sorted(json.dumps(data) for data in events.data()) == sorted(json.dumps({"n": n}) for n in range(20))
    await json_client.disconnect()
    ok("asynchronous client, seen by a subscriber")


async def main():
    for step in (publish_and_history, broadcast, errors, node, orders_about_users, batch):
        await asyncio.to_thread(step)
    await asynchronous()
    await who_is_there()


run(main)
