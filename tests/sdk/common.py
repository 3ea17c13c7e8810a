"""What the Python scripts share: addresses from the environment, SDK clients in both encodings, waits with an end, a
proxy that can cut its connections. Every failed check is an exception, so a script ends with exit code 0 only when it
reached its end."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.request

from centrifuge import CentrifugeError, Client, ClientEventHandler, SubscriptionEventHandler

PATIENCE_S = 20.0


def required(name):
    value = os.environ.get(name)
    if not value:
        sys.exit(f"{name} is not set: run through `cargo test -p ringway-tests --test sdk`")
    return value


WS_URL = required("RINGWAY_WS")
CONTROL_URL = required("RINGWAY_CONTROL")
API_KEY = required("RINGWAY_API_KEY")
CLIENT_HOST, CLIENT_PORT = required("RINGWAY_CLIENT").split(":")


class ClientEvents(ClientEventHandler):
    def __init__(self):
        self.connecting = []
        self.connected = []
        self.disconnected = []
        # Server-side subscriptions: contexts, channels, and (channel, publication).
        self.subscribed = []
        self.unsubscribed = []
        self.seen = []

    async def on_subscribed(self, ctx):
        self.subscribed.append(ctx)

    async def on_unsubscribed(self, ctx):
        self.unsubscribed.append(ctx.channel)

    async def on_publication(self, ctx):
        self.seen.append((ctx.channel, ctx.pub))

    async def on_connecting(self, ctx):
        self.connecting.append(ctx)

    async def on_connected(self, ctx):
        self.connected.append(ctx)

    async def on_disconnected(self, ctx):
        self.disconnected.append(ctx)


class SubscriptionEvents(SubscriptionEventHandler):
    def __init__(self, read):
        self.read = read
        self.subscribed = []
        self.unsubscribed = []
        self.seen = []
        # `+<user>` and `-<user>`.
        self.comings = []

    async def on_join(self, ctx):
        self.comings.append(f"+{ctx.info.user}")

    async def on_leave(self, ctx):
        self.comings.append(f"-{ctx.info.user}")

    async def on_subscribed(self, ctx):
        self.subscribed.append(ctx)

    async def on_unsubscribed(self, ctx):
        self.unsubscribed.append(ctx)

    async def on_publication(self, ctx):
        self.seen.append(ctx.pub)

    def data(self):
        return [self.read(pub.data) for pub in self.seen]


class Encoding:
    """How payloads are written and read: JSON values, or bytes in Protobuf."""

    def __init__(self, name):
        self.name = name
        self.protobuf = name == "protobuf"

    def write(self, value):
        return json.dumps(value).encode() if self.protobuf else value

    def read(self, value):
        return json.loads(value) if self.protobuf else value

    def client(self, url=WS_URL, **options):
        events = ClientEvents()
        options = {"min_reconnect_delay": 0.1, "max_reconnect_delay": 0.5} | options
        return Client(url, events=events, use_protobuf=self.protobuf, **options), events

    async def connected(self, url=WS_URL, **options):
        client, events = self.client(url, **options)
        await client.connect()
        await client.ready(PATIENCE_S)
        return client, events

    async def connected_as(self, user, url=WS_URL, info=None, **options):
        claims = {"sub": user} if info is None else {"sub": user, "info": info}
        return await self.connected(url, token=token(claims), **options)

    async def subscribed(self, client, channel, **options):
        events = SubscriptionEvents(self.read)
        sub = client.new_subscription(channel, events=events, **options)
        await sub.subscribe()
        await sub.ready(PATIENCE_S)
        await until(lambda: events.subscribed, f"subscribed to {channel}")
        return sub, events


async def until(condition, what, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


async def refused(work):
    """The code of the error that a request must end with."""
    try:
        await work
    except CentrifugeError as error:
        return error.code
    raise AssertionError("it was not refused")


async def subscribe_refused(client, channel, **options):
    """The code that a subscribe is refused with."""
    events = SubscriptionEvents(None)
    sub = client.new_subscription(channel, events=events, **options)
    await sub.subscribe()
    await until(lambda: events.unsubscribed, f"the refusal of {channel}")
    client.remove_subscription(sub)
    return events.unsubscribed[0].code


SECRET = "dev"


def token(claims, secret=SECRET):
    """A token with these claims, signed with the secret of `--dev` or another."""

    def text(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = ".".join(text(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{signed}.{text(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def _api(method, parameters):
    request = urllib.request.Request(
        f"{CONTROL_URL}/api/{method}",
        data=json.dumps(parameters).encode(),
        headers={"Content-Type": "application/json", "X-API-Key": API_KEY},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE_S) as response:
        answer = json.load(response)
    assert "result" in answer, answer
    return answer["result"]


async def api(method, **parameters):
    """A call of the HTTP API; gives its result."""
    return await asyncio.to_thread(_api, method, parameters)


async def api_publish(channel, data):
    return await api("publish", channel=channel, data=data)


async def api_count(channel, count, start=1):
    """Publishes `start`, `start` + 1, … over the HTTP API."""
    for n in range(start, start + count):
        await api_publish(channel, n)


class CutProxy:
    """A TCP proxy in front of the client port whose connections can be cut without a Close frame."""

    def __init__(self):
        self.writers = set()
        self.open = True
        self.era = 0

    async def start(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/connection/websocket"
        return self

    async def _accept(self, reader, writer):
        if not self.open:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(CLIENT_HOST, int(CLIENT_PORT))
        self.writers |= {writer, far_writer}
        era = self.era
        try:
            await asyncio.gather(self._pump(reader, far_writer, era), self._pump(far_reader, writer, era))
        except asyncio.CancelledError:
            # The end of the script. The callback of asyncio.start_server would complain.
            pass
        self.writers -= {writer, far_writer}

    async def _pump(self, reader, writer, era):
        try:
            while chunk := await reader.read(65536):
                if self.era == era:
                    writer.write(chunk)
                    await writer.drain()
        except OSError:
            pass
        finally:
            # A peer of a silent pair must not hear that the other one is gone.
            if self.era == era:
                writer.close()

    def silence(self):
        """Both sides keep their connections, and nothing passes any more: a half-open peer. New connections are let
        through unless the proxy is shut."""
        self.era += 1

    def cut(self):
        self.open = False
        for writer in list(self.writers):
            writer.transport.abort()

    def mend(self):
        self.open = True


async def ask(request):
    """Asks the test that runs this script for something, e.g. `@restart`, and waits until it is done."""
    print(request, flush=True)
    answer = await asyncio.wait_for(asyncio.to_thread(sys.stdin.readline), 60)
    assert answer.strip() == "done", answer


def ok(name):
    print(f"ok: {name}", flush=True)


def run(main):
    asyncio.run(main())
    # A reader thread on stdin would hold the interpreter.
    sys.stdout.flush()
    os._exit(0)
