"""HTTP POST of records to whoever listens, as JSON of our own or as a message of Slack or Discord.

A 2xx answer is the confirmation. Anything else, a redirect too, is tried again: an operator mends what is wrong.
"""

import asyncio
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx

import hermes
from hermes.config.outputs import WebhookOutput
from hermes.outputs.jsonl import line
from hermes.outputs.sink import ALERT, Record, SinkError, written

SHOWN = 5
"""Records in one message to people."""
LINE_CHARACTERS = 390
"""Characters that one of them takes at most: five fit into what Discord takes, 2000 characters."""
SHOWN_CHARACTERS = 100
"""Characters of one field."""
ANSWER_BYTES = 2048
"""Bytes of an answer that are read."""
_TOLD = ("source_ip", "username", "password", "command", "line", "path", "sha256", "argv", "reason", "version")
"""Fields that a message to people shows, where a record has them."""


class WebhookSink:
    """Sends records to one URL."""

    def __init__(self, config: WebhookOutput, *, url: str, key: str, trust: ssl.SSLContext) -> None:
        """`key`: of the signature; empty for none."""
        self.limit = config.batch if config.format == "generic" else min(config.batch, SHOWN)
        self._config = config
        self._url = url
        self._key = key.encode()
        self._client = httpx.AsyncClient(
            verify=trust, follow_redirects=False, trust_env=False, timeout=config.timeout,
            limits=httpx.Limits(max_connections=1), headers={"User-Agent": f"hermes/{hermes.__version__}"},
        )  # fmt: skip

    async def send(self, records: Sequence[Record]) -> None:
        """Return when all were answered with 2xx. SinkError else; it names the host, not the URL, which may be a secret."""
        for body in self._bodies(list(records)):
            try:
                async with asyncio.timeout(self._config.timeout):
                    await self._post(body)
            except TimeoutError:
                raise SinkError(f"{self._host} did not answer within {self._config.timeout:g} s") from None
            except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
                raise SinkError(f"{self._host} cannot be asked: {type(error).__name__}: {_safe(str(error), self._url)}") from None

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def _host(self) -> str:
        return urlsplit(self._url).hostname or "the receiver"

    def _bodies(self, records: list[Record]) -> Iterator[bytes]:
        """What is sent, in requests of no more than the bytes allowed."""
        if self._config.format != "generic":
            field = "text" if self._config.format == "slack" else "content"
            extra: dict[str, Any] = {} if field == "text" else {"allowed_mentions": {"parse": []}}
            yield json.dumps({field: "\n".join(map(self._told, records)), **extra}).encode()
            return
        lines = [line(it).rstrip(b"\n") for it in records]
        while lines:
            count, size = 1, len(lines[0])
            while count < len(lines) and size + len(lines[count]) + 64 < self._config.max_bytes:
                size += len(lines[count]) + 1
                count += 1
            yield b'{"events":[' + b",".join(lines[:count]) + b"]}"
            lines = lines[count:]

    def _told(self, record: Record) -> str:
        """One line for people, in which nothing an attacker sent is a link, a mention or markup."""
        about, what = record.body, record.event
        if what == ALERT:
            what = f"{record.body['severity'].upper()} alert {record.body['alert']}: {record.body['reason']}"
            about = {**record.body["cause"], "source_ip": record.body["source_ip"]}
            if record.body["suppressed"]:
                what += f" ({record.body['suppressed']} more since the last)"
        text = f"{written(record.time)} {record.sensor} {what}"[:LINE_CHARACTERS]
        for it in _TOLD:
            if about.get(it) not in (None, "", []) and len(more := f" {it}={_quoted(about[it])}") + len(text) <= LINE_CHARACTERS:
                text += more
        return text if self._config.format == "discord" else text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    async def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        if self._key:
            moment = str(int(time.time()))
            signed = hmac.new(self._key, f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
            headers |= {"X-Hermes-Timestamp": moment, "X-Hermes-Signature": f"sha256={signed}"}
        async with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
            if answer.is_success:
                return
            read = b""
            async for piece in answer.aiter_raw(ANSWER_BYTES):
                read += piece
                if len(read) >= ANSWER_BYTES:
                    break
        said = ascii(_safe(read[:200].decode(errors="replace"), self._url))
        phrase = f"{answer.status_code} {_phrase(answer.status_code)}".strip()
        where = "; redirects are not followed" if answer.is_redirect else f": {said}" if read else ""
        raise SinkError(f"{self._host} answered {phrase}{where}", after=_wish(answer.headers.get("Retry-After")))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _safe(text: str, url: str) -> str:
    """Text of a library or a receiver without the URL, or its path, which may be a secret."""
    path = urlsplit(url).path
    hidden = text.replace(url, "…")
    return hidden.replace(path, "…") if len(path) > 1 else hidden


def _quoted(value: Any) -> str:
    """A value as printable text between back quotes, where no markup begins."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    plain = "".join(it if it.isprintable() else f"\\x{ord(it):02x}" for it in text[:SHOWN_CHARACTERS]).replace("`", "'")
    return f"`{plain[:SHOWN_CHARACTERS]}{'…' if len(text) > SHOWN_CHARACTERS else ''}`"


def _wish(header: str | None) -> float | None:
    """Seconds that a `Retry-After` asks for: a number, or a date."""
    if header is None:
        return None
    try:
        return float(header)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
