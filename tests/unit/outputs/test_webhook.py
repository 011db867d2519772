"""Records over HTTP to a real server, which also has bad days."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from hermes.config.outputs import WebhookOutput
from hermes.outputs import delivery
from hermes.outputs.making import trust
from hermes.outputs.sink import Record, SinkError
from hermes.outputs.webhook import WebhookSink
from hermes.store import cursors
from hermes.store.cursors import Cursor
from tests.unit.outputs.world import World, record
from tests.unit.store.facts import eventually

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver:
    """Answers each request with the next of `answers`, the last one for ever. None: never."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = answers
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.url = ""
        self.open: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(asyncio.current_task())
        try:
            await self.answer(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (it.partition(":") for it in head[1:] if it)}
                self.paths.append(head[0].split()[1])
                self.requests.append((headers, await reader.readexactly(int(headers["content-length"]))))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    await reader.read()
                    break
                writer.write(answer)
                await writer.drain()
                if b" 204 " not in answer:
                    break

    @property
    def ids(self) -> list[int]:
        """Of all requests, what came."""
        return [it["id"] for _, body in self.requests for it in json.loads(body)["events"]]


@contextlib.asynccontextmanager
async def receiver(*answers: bytes | None, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    found = Receiver(list(answers) or [OK])
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=tls)
    found.url = f"http{'s' if tls else ''}://localhost:{server.sockets[0].getsockname()[1]}/hook/geheim"
    try:
        yield found
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*(it for it in found.open if it is not None)), 60)


def sink(found: Receiver, *, key: str = "", ca_file: str = "", **more: Any) -> WebhookSink:
    config = WebhookOutput(**{"type": "webhook", "name": "w", "url": found.url, "timeout": 20, **more})
    return WebhookSink(config, url=config.url, key=key, trust=trust(ca_file, "w"))


async def sent(found: Receiver, *records: Record, **more: Any) -> None:
    it = sink(found, **more)
    try:
        await it.send(records)
    finally:
        await it.close()


@pytest.mark.asyncio
async def test_records_come_together_and_signed() -> None:
    async with receiver() as found:
        await sent(found, record(1, text="\x1b"), record(2), key="key")
    ((headers, body),) = found.requests
    assert json.loads(body) == {"events": [record(1, text="\x1b").flat(), record(2).flat()]}
    assert headers["content-type"] == "application/json"
    signed = hmac.new(b"key", f"{headers['x-hermes-timestamp']}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["x-hermes-signature"] == f"sha256={signed}"


@pytest.mark.asyncio
async def test_one_connection_serves_many_requests_and_requests_have_a_size() -> None:
    async with receiver() as found:
        await sent(found, *(record(it, text="x" * 5000) for it in range(10)), record(10, text="y" * 50_000), max_bytes=16384)
    assert found.ids == list(range(11))
    assert [len(body) < 16384 for _, body in found.requests] == [True, True, True, True, False]
    assert "x-hermes-signature" not in found.requests[0][0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nno\x1b!", r"localhost answered 500 Internal Server Error: 'no\\x1b!'"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\n\r\n/hook/geheim", "answered 404 Not Found: '"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n", "redirects are not followed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n", "cannot be asked"),
        (b"220 mail.example ESMTP\r\n", "cannot be asked: RemoteProtocolError"),
        (b"", "cannot be asked"),
        (b"HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n", "localhost answered 999"),
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_anything_but_a_success_is_none_and_no_secret_is_told(answer: bytes, says: str) -> None:
    async with receiver(answer) as found:
        with pytest.raises(SinkError, match=says) as failure:
            await sent(found, record(1), key="key")
    assert "geheim" not in str(failure.value)
    assert str(failure.value).isprintable()


@pytest.mark.asyncio
async def test_after_a_failure_the_same_come_again() -> None:
    async with receiver(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", OK) as found:
        it = sink(found)
        with pytest.raises(SinkError):
            await it.send([record(1)])
        await it.send([record(1)])
        await it.close()
    assert found.ids == [1, 1]


@pytest.mark.asyncio
async def test_one_that_never_answers_and_one_that_drips_are_given_up() -> None:
    async with receiver(None) as found:
        with pytest.raises(SinkError, match=r"did not answer within 0\.2 s"):
            await sent(found, record(1), timeout=0.2)
    async with receiver(b"HTTP/1.1 500 Oops\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 3000) as found:
        with pytest.raises(SinkError, match="answered 500"):
            await sent(found, record(1))


@pytest.mark.asyncio
async def test_nobody_there() -> None:
    found = Receiver([OK])
    found.url = "http://127.0.0.1:1/"
    with pytest.raises(SinkError, match=r"127\.0\.0\.1 cannot be asked: ConnectError"):
        await sent(found, record(1))


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 80000, 86401)],
    ids=["seconds", "parts", "date"],
)
@pytest.mark.asyncio
async def test_a_receiver_may_ask_to_be_left_alone(header: str, low: float, high: float) -> None:
    answer = f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    async with receiver(answer.encode()) as found:
        with pytest.raises(SinkError, match="429") as failure:
            await sent(found, record(1))
    assert failure.value.after is not None
    assert low <= failure.value.after <= high


@pytest.mark.parametrize("header", ["soon", "", "-", "nan seconds"])
@pytest.mark.asyncio
async def test_nonsense_asks_for_nothing(header: str) -> None:
    answer = f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    async with receiver(answer.encode()) as found:
        with pytest.raises(SinkError, match="429") as failure:
            await sent(found, record(1))
    assert failure.value.after is None


@pytest.mark.parametrize(("format_", "field"), [("slack", "text"), ("discord", "content")])
@pytest.mark.asyncio
async def test_messages_to_people(format_: str, field: str) -> None:
    cause = record(1, "auth.attempt", username="<!channel> @everyone `x`", password="\x1b" * 5000, source_ip="192.0.2.7")
    alert = record(
        2, "alert.raised", alert="r", severity="high", reason="why", suppressed=3, source_ip="192.0.2.7", cause=cause.flat()
    )  # fmt: skip
    async with receiver() as found:
        await sent(found, *([cause] * 4), alert, format=format_)
    ((_, body),) = found.requests
    said = json.loads(body)
    *_, last = said[field].splitlines()
    assert "HIGH alert r: why (3 more since the last) source_ip=`192.0.2.7`" in last
    assert len(said[field].splitlines()) == 5
    if format_ == "slack":
        assert "<" not in said["text"]
    else:
        assert said["allowed_mentions"] == {"parse": []}
    assert said[field].replace("\n", "").isprintable()
    assert "'x'" in said[field]


def test_five_of_the_longest_fit_into_one_message_of_discord() -> None:
    config = WebhookOutput(type="webhook", name="w", url="http://x.example/", format="discord")
    it = WebhookSink(config, url=config.url, key="", trust=ssl.create_default_context())
    long = "\x1b" * 5000
    one = record(1, "auth.attempt", username=long, password=long, line=long, path=long)
    body = json.loads(next(it._bodies([one] * it.limit)))
    assert len(body["content"]) <= 2000


@pytest.mark.asyncio
async def test_through_all_bad_days_nothing_is_lost_and_nothing_out_of_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.01, 0.02))
    world = World(tmp_path)
    world.count(0, 60)
    bad = [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", None, b"", b"\xff\xfe nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 429 Slow\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
    ]  # fmt: skip
    async with receiver(*(it for one in bad for it in (one, OK)), *bad, OK) as found:
        hook = sink(found, timeout=0.3)
        hook.limit = 5
        config = WebhookOutput(type="webhook", name="w", url=found.url, start="beginning")
        async with world.running(config, hook):
            await eventually(lambda: (cursors.load(world.cursors, "w") or Cursor()).id == 60)
    assert len(found.ids) > 60
    assert list(dict.fromkeys(found.ids)) == list(range(1, 61))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost that has signed itself, and its key."""
    place = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", place / "key.pem", "-out", place / "cert.pem"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return place / "cert.pem", place / "key.pem"


@pytest.mark.asyncio
async def test_tls_is_verified(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with receiver(tls=context) as found:
        with pytest.raises(SinkError, match="certificate verify failed"):
            await sent(found, record(1))
        found.requests.clear()
        await sent(found, record(1), ca_file=str(certificate[0]))
        assert found.ids == [1]
        found.url = found.url.replace("localhost", "127.0.0.1")
        with pytest.raises(SinkError, match="certificate verify failed"):
            await sent(found, record(1), ca_file=str(certificate[0]))
