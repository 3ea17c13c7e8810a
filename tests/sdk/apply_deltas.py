"""Applies deltas as the Python SDK's two codecs do. In: a JSON list of { old, new, text, delta } on stdin, all bytes in
hex. Ends with exit code 0 only when every delta gave the new payload."""

import json
import sys
from types import SimpleNamespace

from centrifuge.codecs import _JsonCodec, _ProtobufCodec


def applied(codec, data, old):
    return bytes(codec.apply_delta_if_needed(old, SimpleNamespace(delta=True, data=data))[1])


for index, one in enumerate(json.load(sys.stdin)):
    old, new, delta = (bytes.fromhex(one[name]) for name in ("old", "new", "delta"))
    if applied(_ProtobufCodec, delta, old) != new:
        sys.exit(f"case {index}: the protobuf codec gives something else")
    if one["text"] and applied(_JsonCodec, delta.decode("utf-8"), old) != new:
        sys.exit(f"case {index}: the JSON codec gives something else")
