"""What processes of a box ask of the network: stated before it happens, with the outcome that is foretold."""

import struct
import time
from collections import OrderedDict

from hermes import events
from hermes.broker.watcher import memory
from hermes.broker.watcher.network import MAX_ADDRESS, Network, Target, protocol_of, target
from hermes.broker.watcher.notify import Notification
from hermes.broker.watcher.processes import Process
from hermes.broker.watcher.writer import Writer

QUIET_SECONDS = 5.0
"""After an attempt was stated, the same again by the same process is only counted for so long."""
REMEMBERED = 4096
"""Attempts that may be repeated, at most; past it the oldest are stated with what was counted."""
MAX_MESSAGES = 64
"""Messages of one sendmmsg(2) that are looked at; the kernel takes at most 1024."""
_MESSAGE = struct.Struct("=QI4x")  # msg_name, msg_namelen
_MESSAGE_SIZE = 64  # struct mmsghdr


class _Repeated:
    __slots__ = ("count", "event", "process", "stated", "time")

    def __init__(self, process: Process, event: events.NetworkAttempted, stated: float) -> None:
        self.process = process
        self.event = event
        self.stated = stated
        self.count = 0
        self.time = 0


class Attempts:
    """Reads what waits, and states it. A storm of the same attempts is counted."""

    def __init__(self, container_id: str, network: Network, writer: Writer) -> None:
        self._container_id = container_id
        self._network = network
        self._writer = writer
        self._recent: OrderedDict[tuple[object, ...], _Repeated] = OrderedDict()

    def read(self, call: str, asked: Notification, mem: int) -> tuple[int, list[Target]]:
        """The socket, and to whom the thread wants to speak, or what it wants to be."""
        found: list[bytes] = []
        match call:
            case "connect" | "bind":
                found.append(_address(mem, asked.b, asked.c))
            case "sendto":
                found.append(_address(mem, asked.e, asked.f))
            case "sendmsg":
                found.append(_of_message(memory.read(mem, asked.b, _MESSAGE.size), mem))
            case _:
                count = min(asked.c & 0xFFFFFFFF, MAX_MESSAGES)
                headers = memory.read(mem, asked.b, count * _MESSAGE_SIZE)
                pieces = (headers[at : at + _MESSAGE.size] for at in range(0, len(headers), _MESSAGE_SIZE))
                found += dict.fromkeys(_of_message(piece, mem) for piece in pieces)
        return asked.a & 0xFFFFFFFF, [to for to in map(target, found) if to is not None]

    def state(self, call: str, tid: int, fd: int, targets: list[Target], process: Process, *, cwd: bytes, root: bool) -> None:
        """State it: it is about to happen."""
        protocol, error = protocol_of(tid, fd)
        for to in targets:
            outcome = error or self._network.foretell(call, protocol, to, cwd=cwd, root=root)
            key = (process.pid, call, to.family, to.address, to.port, protocol, outcome)
            known = self._recent.get(key)
            now = time.time_ns() // 1000
            if known is not None:
                if time.monotonic() - known.stated < QUIET_SECONDS:
                    known.count += 1
                    known.time = now
                    continue
                self._flush(key)
            event = events.NetworkAttempted(
                container_id=self._container_id,
                channel=process.channel,
                pid=process.number,
                call=call,
                family=to.family,
                protocol=protocol,
                address=to.address,
                port=to.port,
                outcome=outcome,
            )
            self._writer.emit(event, now)
            self._recent[key] = _Repeated(process, event, time.monotonic())
            process.attempts.add(key)
            if len(self._recent) > REMEMBERED:
                self._flush(next(iter(self._recent)))

    def next_look(self) -> float | None:
        """Seconds until something that was counted is to be stated."""
        if not self._recent:
            return None
        return max(0.0, next(iter(self._recent.values())).stated + QUIET_SECONDS - time.monotonic())

    def look(self) -> None:
        """State what was counted, where it is quiet since."""
        now = time.monotonic()
        while self._recent and next(iter(self._recent.values())).stated + QUIET_SECONDS <= now:
            self._flush(next(iter(self._recent)))

    def ended(self, process: Process) -> None:
        """The process has ended: state what was counted of it."""
        for key in list(process.attempts):
            self._flush(key)

    def close(self) -> None:
        """State everything that was counted."""
        while self._recent:
            self._flush(next(iter(self._recent)))

    def _flush(self, key: tuple[object, ...]) -> None:
        if (known := self._recent.pop(key, None)) is None:
            return
        known.process.attempts.discard(key)
        if known.count:
            fields = {name: getattr(known.event, name) for name in known.event.__struct_fields__}
            self._writer.emit(events.NetworkAttempted(**{**fields, "repeated": known.count - 1}), known.time)


def _address(mem: int, pointer: int, size: int) -> bytes:
    return memory.read(mem, pointer, min(size & 0xFFFFFFFF, MAX_ADDRESS)) if pointer else b""


def _of_message(header: bytes, mem: int) -> bytes:
    """Of a `struct msghdr`."""
    if len(header) < _MESSAGE.size:
        return b""
    return _address(mem, *_MESSAGE.unpack(header))
