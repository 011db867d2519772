"""Syslog messages, and receivers over UDP, TCP and TLS."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.config.outputs import SyslogOutput
from hermes.outputs.making import trust
from hermes.outputs.sink import SinkError
from hermes.outputs.syslog import SyslogSink, message
from tests.unit.outputs.test_webhook import certificate
from tests.unit.outputs.world import record
from tests.unit.store.facts import eventually

__all__ = ["certificate"]

MESSAGE = re.compile(
    r"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) hermes - ([!-~]{1,32}) "
    r'\[hermes@32473((?: [a-z_]+="(?:[^"\\\]]|\\["\\\]])*")*)\] (.*)',
    re.DOTALL,
)


def test_a_message_is_rfc_5424_s() -> None:
    text = message(record(7, username='a"]\\'), facility=13, limit=8192).decode()
    found = MESSAGE.fullmatch(text)
    assert found is not None
    assert found.groups()[:4] == ("109", "2026-01-02T03:04:05.500000Z", "s1", "connection.version")
    assert found[5] == ' event_id="j:7" id="7" connection_id="c"'
    assert json.loads(found[6]) == record(7, username='a"]\\').flat()


@given(st.text(), st.text())
def test_no_text_of_an_attacker_ends_a_message_or_its_data(name: str, text: str) -> None:
    made = message(record(1, event=name or "x", source_ip=text, connection_id=text), facility=0, limit=65000).decode()
    assert MESSAGE.fullmatch(made) is not None
    assert made.isprintable()


@pytest.mark.parametrize(
    ("event", "body", "severity"),
    [("alert.raised", {"severity": "critical"}, 2), ("auth.attempt", {}, 5), ("sensor.started", {}, 6)],
)
def test_severities(event: str, body: dict[str, Any], severity: int) -> None:
    assert message(record(1, event, **body), facility=4, limit=8192).startswith(b"<%d>1 " % (4 * 8 + severity))


def test_what_is_long_is_cut_and_says_so() -> None:
    made = message(record(1, text="x" * 5000), facility=13, limit=480)
    assert (len(made), made[-6:]) == (480, b" [cut]")


class Receiver:
    """Takes counted messages, and keeps them; `pause` keeps it from reading."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.tasks: list[asyncio.Task[None] | None] = []
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.tasks.append(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self.reading.wait()
                count = await reader.readuntil(b" ")
                self.messages.append((await reader.readexactly(int(count))).decode())
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    @property
    def ids(self) -> list[int]:
        return [json.loads(it.partition("] ")[2])["id"] for it in self.messages]


@contextlib.asynccontextmanager
async def receiver(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Receiver]:
    found = Receiver()
    server = await asyncio.start_server(found.serve, "127.0.0.1", port, ssl=tls)
    found.address = f"localhost:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        found.reading.set()
        for writer in found.writers:
            writer.transport.abort()
        await asyncio.wait_for(asyncio.gather(*(it for it in found.tasks if it is not None)), 60)


def sink(address: str, *, ca_file: str = "", **more: Any) -> SyslogSink:
    config = SyslogOutput(**{"type": "syslog", "name": "s", "address": address, "timeout": 20, **more})
    return SyslogSink(config, trust(ca_file, "s") if config.transport == "tls" else None)


@pytest.mark.asyncio
async def test_counted_messages_over_tcp() -> None:
    async with receiver() as found:
        it = sink(found.address)
        await it.send([record(number) for number in range(100)])
        await it.send([record(100)])
        await eventually(lambda: len(found.messages) == 101)
        await it.close()
    assert found.ids == list(range(101))
    assert len(found.writers) == 1


@pytest.mark.asyncio
async def test_a_receiver_that_goes_away_is_told_of_and_found_again() -> None:
    async with receiver() as found:
        it = sink(found.address)
        await it.send([record(1)])
        await eventually(lambda: len(found.messages) == 1)
        port = int(found.address.partition(":")[2])
    with pytest.raises(SinkError, match="localhost cannot be reached"):
        await it.send([record(2)])
    async with receiver(port=port) as again:
        await it.send([record(2)])
        await eventually(lambda: again.ids == [2])
        await it.close()


@pytest.mark.asyncio
async def test_what_the_receiver_s_machine_did_not_take_is_not_delivered() -> None:
    async with receiver() as found:
        found.reading.clear()
        it = sink(found.address, timeout=0.5, max_bytes=65000)
        with pytest.raises(SinkError, match="took nothing for"):
            while True:
                await it.send([record(number, text="x" * 60_000) for number in range(200)])
        await it.close()


@pytest.mark.asyncio
async def test_tls_is_verified(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with receiver(context) as found:
        stranger = sink(found.address, transport="tls")
        with pytest.raises(SinkError, match="certificate verify failed"):
            await stranger.send([record(1)])
        it = sink(found.address, transport="tls", ca_file=str(certificate[0]))
        await it.send([record(1), record(2)])
        await eventually(lambda: found.ids == [1, 2])
        await it.close()


@pytest.mark.asyncio
async def test_datagrams() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(60)
        it = sink(f"127.0.0.1:{receiver.getsockname()[1]}", transport="udp")
        await it.send([record(1), record(2)])
        for number in (1, 2):
            assert MESSAGE.fullmatch(found := receiver.recv(65535).decode()) is not None
            assert f' id="{number}"' in found
        await it.close()


@pytest.mark.asyncio
async def test_nobody_there() -> None:
    it = sink("127.0.0.1:1")
    with pytest.raises(SinkError, match=r"127\.0\.0\.1 cannot be reached"):
        await it.send([record(1)])
    it = sink("no-such-host.invalid")
    with pytest.raises(SinkError, match=r"no-such-host\.invalid cannot be reached"):
        await it.send([record(1)])
