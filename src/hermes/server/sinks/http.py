"""A web server, and a proxy, that has an answer to everything: nginx, by its words."""

import base64
import binascii
import re
from collections.abc import Callable
from email.utils import formatdate

from hermes.server.sinks.turns import MAX_SECRET, Credentials, Turn

MAX_HEAD = 32 * 1024
"""Bytes of a request line and its headers (nginx's large_client_header_buffers)."""
MAX_CHUNK_LINE = 256
"""Bytes of the line before a chunk, or of a trailer."""
MAX_REQUESTS = 1000
"""Requests in one connection (nginx's keepalive_requests)."""

REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|CONNECT|TRACE|PATCH|PROPFIND|PRI) ")
"""How a request begins."""

_REQUEST_LINE = re.compile(rb"([A-Z]+) +([^ ]+)(?: +HTTP/([0-9])\.([0-9]))?")
_SERVER = "nginx/1.22.1"
_PAGE = """<!DOCTYPE html>
<html>
<head>
<title>Welcome</title>
</head>
<body>
<h1>It works!</h1>
</body>
</html>
"""
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 405: "Not Allowed", 414: "Request-URI Too Large"}


class Http:
    """A connection of a web client: each request is answered, `CONNECT` is granted, and what goes through it begins anew."""

    protocol = "http"

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: seconds since the epoch."""
        self._now = now
        self._head = bytearray()
        self._requests = 0
        self._pending: tuple[bytes, bool] | None = None
        """The method of a request whose body is still to come, and whether the connection goes on after it."""
        self._body = 0
        """Bytes of the body, or of a chunk, that are still to come."""
        self._chunked = False
        self._trailer = False

    def feed(self, data: bytes) -> Turn:
        turn = Turn()
        at = 0
        while at < len(data) and not turn.over and turn.rest is None:
            if self._body:
                taken = min(self._body, len(data) - at)
                self._body -= taken
                at += taken
                self._answer_if_whole(turn)
            elif self._chunked:
                at = self._take_chunk_line(data, at, turn)
            else:
                at = self._take_head(data, at, turn)
        if turn.rest is not None:
            turn.rest = data[at:]
        return turn

    # Each of these takes what it can of `data` from `at` on, and returns where it came to.

    def _take_head(self, data: bytes, at: int, turn: Turn) -> int:
        end = data.find(b"\n", at)
        part = data[at : end + 1 if end >= 0 else len(data)]
        if len(self._head) + len(part) > MAX_HEAD:
            self._respond(turn, 414, closing=True)
            return len(data)
        self._head += part
        if not self._head.strip(b"\r\n"):  # before a request
            self._head = bytearray()
        elif self._head.endswith((b"\n\n", b"\n\r\n")):
            head, self._head = bytes(self._head), bytearray()
            self._take_request(head, turn)
        return at + len(part)

    def _take_request(self, head: bytes, turn: Turn) -> None:
        line, *lines = re.split(rb"\r?\n", head)
        request = _REQUEST_LINE.fullmatch(line.strip())
        if request is None:
            self._respond(turn, 400, closing=True)
            return
        headers = {name.strip().lower(): value.strip() for name, _, value in (it.partition(b":") for it in lines)}
        for name, method in ((b"authorization", "Basic"), (b"proxy-authorization", "Proxy-Basic")):
            if (given := _basic(headers.get(name, b""))) is not None:
                turn.facts.append(Credentials(method, *given))
        if request[1] == b"CONNECT":
            turn.answer += b"HTTP/1.1 200 Connection established\r\n\r\n"
            turn.rest = b""
            return
        self._requests += 1
        connection = headers.get(b"connection", headers.get(b"proxy-connection", b"")).lower()
        lasts = b"keep-alive" in connection if request[4] != b"1" else b"close" not in connection
        self._pending = (request[1], lasts and self._requests < MAX_REQUESTS)
        length = headers.get(b"content-length", b"0")
        self._chunked = b"chunked" in headers.get(b"transfer-encoding", b"").lower()
        self._trailer = False
        if not self._chunked and (not length.isdigit() or len(length) > 15):
            self._respond(turn, 400, closing=True)
            return
        self._body = 0 if self._chunked else int(length)
        if headers.get(b"expect", b"").lower() == b"100-continue" and (self._body or self._chunked):
            turn.answer += b"HTTP/1.1 100 Continue\r\n\r\n"
        self._answer_if_whole(turn)

    def _take_chunk_line(self, data: bytes, at: int, turn: Turn) -> int:
        end = data.find(b"\n", at)
        part = data[at : end if end >= 0 else len(data)]
        if len(self._head) + len(part) > MAX_CHUNK_LINE:
            self._respond(turn, 400, closing=True)
            return len(data)
        self._head += part
        if end < 0:
            return len(data)
        line, self._head = bytes(self._head).strip(), bytearray()
        if self._trailer:
            self._chunked = bool(line)
            self._answer_if_whole(turn)
        elif line:  # empty behind each chunk
            size = re.match(rb"[0-9A-Fa-f]{1,12}", line)
            if size is None:
                self._respond(turn, 400, closing=True)
                return len(data)
            self._body = int(size[0], 16)
            self._trailer = not self._body
        return end + 1

    def _answer_if_whole(self, turn: Turn) -> None:
        if self._body or self._chunked or self._pending is None:
            return
        (method, lasts), self._pending = self._pending, None
        if method in (b"GET", b"HEAD", b"POST"):
            self._respond(turn, 200, closing=not lasts, head_only=method == b"HEAD")
        elif method == b"OPTIONS":
            self._respond(turn, 204, closing=not lasts)
        elif method == b"PRI":
            self._respond(turn, 400, closing=True)
        else:
            self._respond(turn, 405, closing=not lasts)

    def _respond(self, turn: Turn, status: int, *, closing: bool, head_only: bool = False) -> None:
        reason = _REASONS[status]
        page = "" if status == 204 else _PAGE if status == 200 else _error_page(status, reason)
        lines = [f"HTTP/1.1 {status} {reason}", f"Server: {_SERVER}", f"Date: {formatdate(self._now(), usegmt=True)}"]
        if status == 204:
            lines.append("Allow: GET, HEAD, POST, OPTIONS")
        else:
            lines += ["Content-Type: text/html", f"Content-Length: {len(page)}"]
        lines.append("Connection: close" if closing else "Connection: keep-alive")
        turn.answer += "\r\n".join([*lines, "", "" if head_only else page]).encode()
        turn.over = closing


def _error_page(status: int, reason: str) -> str:
    title = f"{status} {reason}"
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        f"<hr><center>{_SERVER}</center>\r\n</body>\r\n</html>\r\n"
    )


def _basic(value: bytes) -> tuple[bytes, bytes] | None:
    """User name and password of an `Authorization` header of the `Basic` kind."""
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        username, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return username[:MAX_SECRET], password[:MAX_SECRET]
