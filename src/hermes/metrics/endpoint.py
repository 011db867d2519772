"""The metrics and the sensor's health over HTTP, for a scraper on this machine. It is not for attackers, and trusts nobody."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog

from hermes.errors import MachineError
from hermes.metrics.catalogue import Metrics
from hermes.metrics.state import STALE_SECONDS, State
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

MAX_CLIENTS = 8
"""Clients at once; one more is cut."""
MAX_REQUEST = 8192
"""Bytes of a request's head."""
PATIENCE = 5.0
"""Seconds a client has, from its connection to the last byte of its answer."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Endpoint:
    """Answers `GET /metrics` and `GET /healthz`, one request a connection."""

    def __init__(self, sock: socket.socket | None, metrics: Metrics, look: Callable[[], Awaitable[State]]) -> None:
        """`sock` is bound to where it is to listen; None: nowhere."""
        self._sock = sock
        self._metrics = metrics
        self._look = look
        self._tasks = TaskOwner("metrics")
        self._server: asyncio.Server | None = None
        self._rendered: dict[bool, tuple[float, bytes]] = {}

    async def start(self) -> None:
        """Listen, unless it has nowhere to. Raises MachineError when it cannot be."""
        if self._sock is None:
            return
        serve = asyncio.start_unix_server if self._sock.family == socket.AF_UNIX else asyncio.start_server
        try:
            self._server = await serve(self._accept, sock=self._sock, limit=MAX_REQUEST, backlog=MAX_CLIENTS)
        except OSError as error:  # another program has begun to listen since the launcher bound it
            raise MachineError(f"metrics.address: cannot listen there: {error.strerror or error}") from error

    async def close(self) -> None:
        """Stop listening, and cut whoever is being answered."""
        if self._server is not None:
            self._server.close()
        await self._tasks.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CLIENTS:
            writer.transport.abort()
        else:
            self._tasks.spawn(self._serve(reader, writer), name="client")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("a client of the metrics went away", reason=str(error))
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        line, *headers = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        path = target.partition("?")[0]
        if path not in ("/metrics", "/healthz"):
            return _response(HTTPStatus.NOT_FOUND)
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        if path == "/healthz":
            checks = (await self._look()).checks
            status = HTTPStatus.OK if all(checks.values()) else HTTPStatus.SERVICE_UNAVAILABLE
            answer = _response(status, "Content-Type: application/json", body=json.dumps(checks).encode() + b"\n")
        else:
            wants_openmetrics = any("application/openmetrics-text" in it.lower() for it in headers if it[:7].lower() == "accept:")
            kind = OPENMETRICS if wants_openmetrics else TEXT
            answer = _response(HTTPStatus.OK, f"Content-Type: {kind}", body=await self._render(wants_openmetrics))
        return answer if method == "GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    async def _render(self, openmetrics_format: bool) -> bytes:
        """Return the metrics; the same ones for a moment, so that whoever asks without end does not keep the event loop."""
        then, text = self._rendered.get(openmetrics_format, (0.0, b""))
        if not text or time.monotonic() - then >= STALE_SECONDS:
            text = self._metrics.text(await self._look(), openmetrics_format=openmetrics_format)
            self._rendered[openmetrics_format] = (time.monotonic(), text)
        return text


def _response(status: HTTPStatus, *headers: str, body: bytes | None = None) -> bytes:
    content = f"{status.phrase}\n".encode() if body is None else body
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Length: {len(content)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content
