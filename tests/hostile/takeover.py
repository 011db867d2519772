"""A front that was taken over: `hermes front-process` to the last step; from there, what comes over its SSH port is executed.

`python takeover.py launcher` is `hermes up` with this in the front's place; everything else about front, broker and launcher is
what an operator runs: user, descriptors, environment, confinement.
"""

import array
import asyncio
import contextlib
import ctypes
import errno
import json
import os
import random
import select
import shlex
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hermes import front
from hermes.container import messages, packets
from hermes.container.messages import Allocate, Release, Signal, Spawn, Status, Terminal, decode_box_reply, decode_broker_reply


class Owned:
    """What an attacker finds in the process: its sockets, and Python."""

    def __init__(self, settings: Any, broker: socket.socket) -> None:
        self.settings = settings
        self.broker = broker
        self.boxes: dict[str, socket.socket] = {}
        self.facts: list[dict[str, Any]] = []
        """What the broker stated meanwhile."""

    def attempt(self, what: Any) -> Any:
        """What it returns, or the name of the errno it fails with."""
        try:
            return what()
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))

    def hear(self, sock: socket.socket, patience: float = 20.0) -> tuple[bytes, list[int]]:
        """The next packet and its descriptors."""
        assert select.select([sock], [], [], patience)[0], "nothing came"
        data, fds, _, _ = socket.recv_fds(sock, messages.MAX_MESSAGE, 8)
        return data, list(fds)

    def ask(self, message: Any) -> tuple[Any, list[int]]:
        """Say it to the broker, and return its answer; facts are put aside."""
        self.broker.send(messages.encode(message))
        return self.answer()

    def answer(self) -> tuple[Any, list[int]]:
        """The broker's next answer."""
        while True:
            data, fds = self.hear(self.broker)
            assert data, "the broker hung up"
            reply: Any = decode_broker_reply(data)
            if isinstance(reply, messages.BrokerEvent):
                self.facts.append({"kind": reply.kind, **reply.fields})
            elif not isinstance(reply, messages.Spooled | messages.Dropped):
                return reply, fds
            for fd in fds:
                os.close(fd)

    def allocate(self, session_id: str) -> str:
        """Ask for a box; return its id, or why there is none."""
        reply, fds = self.ask(Allocate(session_id=session_id))
        if isinstance(reply, messages.Refused):
            return f"refused: {reply.reason}"
        self.boxes[session_id] = socket.socket(fileno=fds[0])
        for fd in fds[1:]:
            os.close(fd)
        return str(reply.container_id)

    def run(self, session_id: str, command: bytes, number: int) -> str:
        """Run a command in the session's box; return what it printed. What was said to the box before may be answered first."""
        box = self.boxes[session_id]
        box.setblocking(True)
        box.send(messages.encode(Spawn(id=number, command=command)))
        output = b""
        while True:
            data, fds = self.hear(box)
            assert data, "the box is gone"
            reply: Any = decode_box_reply(data)
            if isinstance(reply, messages.Spawned) and reply.id == number:
                while piece := os.read(fds[1], 65536):
                    output += piece
            elif reply.id == number:
                return output.decode() if isinstance(reply, messages.Exited) else f"failed: {reply.error}"
            for fd in fds:
                os.close(fd)


def serve(owned: Owned, listening: socket.socket) -> None:
    """Execute what is sent over each connection, as an exploit's payload would be; answer with its `result` as JSON."""
    listening.listen()
    listening.setblocking(True)
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rwb") as stream:
            code = stream.read(int(stream.readline()))
            names = {**globals(), "owned": owned, "listening": listening, "result": None}
            try:
                exec(code, names)  # the very thing
                answer = {"result": names["result"]}
            except BaseException as error:  # noqa: BLE001  reported to the test
                answer = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(OSError):
                stream.write(json.dumps(answer, default=repr).encode())
                stream.flush()


async def taken_over(settings: Any, handler: Any, fds: Any, report: Any) -> None:
    """In the place of the front's own work, once it is confined."""
    report("listening")
    control = socket.socket(fileno=fds.control)
    _, brokers, _, _ = socket.recv_fds(control, messages.MAX_MESSAGE, 1)

    def stay() -> None:
        while True:
            report("alive")
            time.sleep(5)

    threading.Thread(target=stay, daemon=True).start()
    serve(Owned(settings, socket.socket(fileno=brokers[0])), socket.socket(fileno=fds.listen[0]))


def launcher() -> None:
    """`hermes up`, whose front is this file."""
    real = sys.executable
    with tempfile.TemporaryDirectory(prefix="hermes-takeover-", dir="/var/tmp") as place:
        python = Path(place) / "python"
        own = shlex.join([real, "-P", str(Path(__file__).resolve())])
        python.write_text(
            f'#!/bin/sh\ncase "$*" in\n*front-process*) while [ "$1" != front-process ]; do shift; done; exec {own} "$@" ;;\n'
            f'*) exec {shlex.quote(real)} "$@" ;;\nesac\n'
        )
        python.chmod(0o755)
        sys.executable = str(python)
        sys.argv = ["hermes", "up"]
        from hermes.__main__ import main

        main()


if __name__ == "__main__":
    if sys.argv[1] == "launcher":
        launcher()
    else:
        front._run = taken_over
        front.main(lambda: None)  # type: ignore[arg-type, return-value]

__all__ = [
    "Release",
    "Signal",
    "Status",
    "Terminal",
    "array",
    "asyncio",
    "ctypes",
    "packets",
    "random",
    "signal",
    "struct",
    "threading",
    "time",
]
"""What payloads use."""
