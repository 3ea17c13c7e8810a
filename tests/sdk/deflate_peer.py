"""Python's `websockets` with permessage-deflate against the echo of `deflate_peers.rs`, whose address is argument 1."""

import asyncio
import json
import random
import sys

from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

URL = sys.argv[1]
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
WINDOW = ANSWER + "; server_max_window_bits=12"


def messages():
    dice = random.Random(7)
    rows = [{"id": dice.randrange(10**7), "price": dice.random(), "side": dice.choice(["buy", "sell"])} for _ in range(800)]
    noise = dice.randbytes(50_000)
    # The last repeats at a distance that only a window of 32 KiB reaches.
    return ["", "x", "Hello", "größe " * 100, json.dumps(rows[:20]), json.dumps(rows), "x" * 100_000, noise, b"", bytes(100_000),
            noise[:20_000] * 2]


async def exchange(name, expected, **options):
    async with connect(URL, max_size=None, proxy=None, **options) as socket:
        answer = socket.response.headers.get("Sec-WebSocket-Extensions")
        assert answer == expected, f"{name}: answered {answer}"
        # Twice: nothing may be left over from the first time.
        for message in messages() * 2:
            await socket.send(message)
            assert await socket.recv() == message, f"{name}: {len(message)} bytes came back changed"
            if len(message) > 1000:
                cuts = [message[i : i + len(message) // 3] for i in range(0, len(message), len(message) // 3)]
                await socket.send(cuts)
                await (await socket.ping())
                assert await socket.recv() == message, f"{name}: {len(message)} bytes in fragments"


async def main():
    await exchange("by default", ANSWER)
    await exchange("no compression", None, compression=None)
    whole = [ClientPerMessageDeflateFactory(server_max_window_bits=15, client_max_window_bits=15)]
    await exchange("with the largest window", WINDOW, compression=None, extensions=whole)
    saving = [ClientPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=9)]
    await exchange("with a window that fits", WINDOW, compression=None, extensions=saving)
    small = [ClientPerMessageDeflateFactory(server_max_window_bits=10)]
    await exchange("with a window that is too small", None, compression=None, extensions=small)
    print("COMPLETE")


asyncio.run(asyncio.wait_for(main(), 120))
