#!/usr/bin/env python3
"""Starts a peer that has no ready line of its own: serve.py nats|nchan.

In: its name; its program below `unpacked` (see install.sh), its configuration. Out: the server in this process, on a free port,
and one line `PEER ready ADDRESS` once it accepts connections.
"""
import os
import pathlib
import socket
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = {"nats": ("nats-server", "nats.conf"), "nchan": ("nginx", "nginx.conf")}
READY_S = 10  # longest wait for its listener


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def announce(peer, port):
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                print(f"{peer} ready 127.0.0.1:{port}", flush=True)
                return
        time.sleep(0.02)


def main():
    peer = sys.argv[1]
    program, configuration = PROGRAMS[peer]
    root, home, port = HERE / peer / "unpacked", tempfile.mkdtemp(prefix=f"{peer}-"), free_port()
    text = (HERE / peer / configuration).read_text()
    for name, value in (("PORT", port), ("ROOT", root), ("HOME", home)):
        text = text.replace(name, str(value))
    file = pathlib.Path(home) / configuration
    file.write_text(text)
    # The child says when the server listens; the server has this process, whose CPU is counted.
    if os.fork() == 0:
        announce(peer, port)
        os._exit(0)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.execv(root / "usr/sbin" / program, [program, "-c", str(file)])


if __name__ == "__main__":
    main()
