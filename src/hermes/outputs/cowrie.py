"""Events as Cowrie writes them: the same names, fields and quirks, so that a program made for Cowrie's log reads Hermes'.

What Cowrie ties to a session (one connection) is known from the connection's earlier events. It is remembered for the latest
connections, and read again from the journal for any other, so that a restart in the middle makes no difference.
"""

import base64
import binascii
import hashlib
import json
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hermes.outputs import past
from hermes.outputs.sink import TEST, Record, written
from hermes.store import StoredEvent

CONNECTIONS = 500
"""Connections of which it is remembered what went before."""
STATEMENTS = 5000
"""Earlier events of one connection that are taken into account at most."""
HASHED_BYTES = 64 * 2**20
"""A recording up to this size is hashed for `log.closed`."""
WORD = 256
"""Characters of a command's first word that are looked at."""
ARCH = "linux-x64-lsb"
"""What Cowrie's default is called."""

_LEARNED = frozenset({
    "connection.opened", "connection.closed", "session.opened", "channel.started", "forward.requested", "artifact.stored",
})  # fmt: skip
"""What tells something of events that follow."""
_ESCAPED = re.compile(r"(?:[^\\]|\\\\|\\x[0-9a-f]{2})*", re.DOTALL)
_HIGH = re.compile(r"(?:^|[^\\])(?:\\\\)*\\x[89a-f][0-9a-f]")
_FETCHERS = frozenset({"wget", "curl", "fetch", "aria2c", "axel", "lwp-download", "GET"})
_SITE = re.compile(r"(?:https?|ftps?|tftp)://(\[[0-9a-f:.]+\]|[^/:?#]+)", re.IGNORECASE)
_BARE_SITE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){3}|[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,})(?::[0-9]+)?/", re.IGNORECASE)

Fields = dict[str, Any]
Lines = Iterator[tuple[str, str, Fields]]


class _Channel(NamedTuple):
    """How a channel was started: no more than is needed, for an attacker may start a thousand with long commands."""

    kind: str = ""
    program: str = ""
    """The first word of its command, without its directory."""
    recording: str = ""


@dataclass(slots=True)
class _Connection:
    """What is known of one connection so far."""

    about: Fields = field(default_factory=dict)
    """Its addresses, as Cowrie names them."""
    upto: int = 0
    """Id of the last event that was taken into account."""
    closed: bool = False
    channels: dict[int, _Channel] = field(default_factory=dict)
    forwards: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Where each accepted forward leads."""
    kept: set[str] = field(default_factory=set)
    """Contents it brought before."""

    def learn(self, event: Record | StoredEvent) -> None:
        self.upto, body = event.id, event.body
        match event.event:
            case "connection.opened":
                self.about = {
                    "src_ip": body["source_ip"], "src_port": body["source_port"],
                    "dst_ip": body["local_ip"], "dst_port": body["local_port"],
                }  # fmt: skip
            case "session.opened" if not self.about:
                self.about = {"src_ip": body["source_ip"], "src_port": body["source_port"]}
            case "connection.closed":
                self.closed = True
            case "artifact.stored":
                self.kept.add(body["sha256"])
            case "channel.started":
                first = next(iter((body.get("command") or "").split(maxsplit=1)), "")[:WORD]
                self.channels[body["channel"]] = _Channel(body["kind"], PurePosixPath(first).name, body.get("recording") or "")
            case "forward.requested" if body.get("forward") is not None:
                self.forwards[body["forward"]] = (body["host"], body["port"])


class Cowrie:
    """Renders records as lines of Cowrie's `jsonlog`."""

    def __init__(self, *, sensor: str, journal: Path, recordings: Path, artifact: Callable[[str], Path]) -> None:
        """`artifact`: where the content with that SHA-256 is kept."""
        self._uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, sensor))
        self._journal = journal
        self._recordings = recordings
        self._artifact = artifact
        self._connections: OrderedDict[str, _Connection] = OrderedDict()

    def lines(self, records: Sequence[Record]) -> bytes:
        """The records' lines. JournalError where what went before cannot be read."""
        return b"".join(line for record in records for line in self._of(record))

    def _of(self, record: Record) -> Iterator[bytes]:
        key = record.connection_id or record.session_id
        if record.event == TEST:
            yield _line(self._common(record, "") | {"eventid": f"hermes.{TEST}", "message": "a test of this output"})
            return
        if key is None or record.event not in _LINES.keys() | _LEARNED:
            return
        connection = self._known(key, record)
        if (make := _LINES.get(record.event)) is None:
            return
        late = {"late": True} if connection.closed and record.event != "connection.closed" else {}
        for number, (name, message, fields) in enumerate(make(self, connection, record.body)):
            unique = {"event_id": record.event_id if number == 0 else f"{record.event_id}:{number}"}
            known = {**self._common(record, key), **connection.about, "protocol": "ssh", **late, **fields, **unique}
            yield _line({"eventid": f"cowrie.{name}", **known, "message": message})

    def _known(self, key: str, record: Record) -> _Connection:
        """What is known of the record's connection, the record itself included."""
        connection = self._connections.get(key)
        if connection is None or record.id <= connection.upto:  # it comes again
            connection = self._connections[key] = _Connection()
            for earlier in past.before(self._journal, record, sorted(_LEARNED), STATEMENTS):
                connection.learn(earlier)
            if len(self._connections) > CONNECTIONS:
                self._connections.popitem(last=False)
        self._connections.move_to_end(key)
        connection.learn(record)
        return connection

    def _common(self, record: Record, key: str) -> Fields:
        return {
            "sensor": record.sensor,
            "uuid": self._uuid,
            "timestamp": written(record.time),
            "session": hashlib.sha256(key.encode()).hexdigest()[:12] if key else "",
        }

    # ---- one event each

    def _opened(self, connection: _Connection, body: Fields) -> Lines:
        at = "{src_ip}:{src_port} ({dst_ip}:{dst_port})".format_map(connection.about)
        yield "session.connect", f"New connection: {at}", {}

    def _version(self, connection: _Connection, body: Fields) -> Lines:
        version = plain(body["version"])
        yield "client.version", f"Remote SSH version: {version}", {"version": version}

    def _algorithms(self, connection: _Connection, body: Fields) -> Lines:
        lists = [body["kex"], body["encryption"], body["mac"], body["compression"]]
        yield "client.kex", f"SSH client hassh fingerprint: {body['hassh']}", {
            "hassh": body["hassh"], "hasshAlgorithms": ";".join(map(",".join, lists)), "kexAlgs": body["kex"],
            "keyAlgs": body["host_key"], "encCS": body["encryption"], "macCS": body["mac"], "compCS": body["compression"],
            "langCS": body["languages"],
        }  # fmt: skip

    def _attempt(self, connection: _Connection, body: Fields) -> Lines:
        user = {"username": plain(body["username"])}
        verdict, how = ("login.success", "succeeded") if body["accepted"] else ("login.failed", "failed")
        if body["method"] == "publickey":
            about = user | _key(body)
            said = (
                f"public key attempt for user {user['username']} of type {about['type']} with fingerprint {about['fingerprint']}"
            )
            yield "client.fingerprint", said, about
            if body.get("key_signed") or not body["accepted"]:
                yield verdict, f"public key login attempt for [{user['username']}] {how}", about
            return
        if body["method"] == "none":
            if body["accepted"]:
                yield verdict, f"login attempt [{user['username']}] {how}", user
            return
        secrets = [body["password"]] if body.get("password") is not None else body.get("responses") or [""]
        for secret in secrets[:1] if body["accepted"] else secrets:
            password = plain(secret)
            yield verdict, f"login attempt [{user['username']}/{password}] {how}", user | {"password": password}

    def _session(self, connection: _Connection, body: Fields) -> Lines:
        yield "session.params", "", {"arch": ARCH}

    def _env(self, connection: _Connection, body: Fields) -> Lines:
        name, value = body["variable"], body["value"]
        yield "client.var", f"request_env: {name}={value}", {"name": name, "value": value}

    def _size(self, connection: _Connection, body: Fields) -> Lines:
        yield (
            "client.size",
            f"Terminal Size: {body['width']} {body['height']}",
            {"width": body["width"], "height": body["height"]},
        )

    def _started(self, connection: _Connection, body: Fields) -> Lines:
        if recording := body.get("recording"):
            log = str(self._recordings / recording)
            yield "log.open", f"Opening TTY Log: {log}", {"ttylog": log}
        if body["kind"] == "exec":
            command = body.get("command") or ""
            yield "command.input", f"CMD: {command}", {"input": command}

    def _input(self, connection: _Connection, body: Fields) -> Lines:
        yield "command.input", f"CMD: {body['line']}", {"input": body["line"]}

    def _channel_closed(self, connection: _Connection, body: Fields) -> Lines:
        recording = connection.channels.get(body["channel"], _Channel()).recording
        if recording:
            log = self._recordings / recording
            size, digest = _measure(log)
            yield "log.closed", f"Closing TTY Log: {log} after {body['duration']:.1f} seconds", {
                "ttylog": str(log), "size": body["bytes_out"] if size is None else size, "shasum": digest, "duplicate": False,
                "duration": round(body["duration"], 1), "duration_ms": round(body["duration"] * 1000),
            }  # fmt: skip

    def _closed(self, connection: _Connection, body: Fields) -> Lines:
        yield "session.closed", f"Connection lost after {body['duration']:.1f} seconds", {
            "duration": round(body["duration"], 1), "duration_ms": round(body["duration"] * 1000),
        }  # fmt: skip

    def _written(self, connection: _Connection, body: Fields) -> Lines:
        if body.get("sha256") in connection.kept:  # else `artifact.stored` follows, which knows whether it was kept before
            yield from self._brought(connection, body, duplicate=True)

    def _stored(self, connection: _Connection, body: Fields) -> Lines:
        yield from self._brought(connection, body, duplicate=body["known"])

    def _brought(self, connection: _Connection, body: Fields, *, duplicate: bool) -> Lines:
        digest, path, name = body["sha256"], body["path"], PurePosixPath(body["path"]).name
        how = connection.channels.get(body.get("channel", -1), _Channel())
        place = str(self._artifact(digest) if path or not how.recording else self._recordings / how.recording)
        kept = {"outfile": place, "shasum": digest}
        if path and how.kind == "subsystem":
            yield "session.file_upload", f'SFTP Uploaded file "{name}" to {place}', {"filename": name, **kept}
        elif path and how.program == "scp":
            about = {"filename": name, **kept, "duplicate": duplicate, "url": path, "destfile": path}
            yield "session.file_upload", f'SCP Uploaded file "{name}" to {place}', about
        else:
            said = f"Saved {'redir' if path else 'stdin'} contents with SHA-256 {digest} to {place}"
            yield "session.file_download", said, {**kept, "duplicate": duplicate, "destfile": path}

    def _process(self, connection: _Connection, body: Fields) -> Lines:
        for url in [] if body.get("error") else fetched(body["program"], body["argv"]):
            yield "session.file_download.failed", f"Attempt to download file(s) from URL ({url}) failed", {
                "url": url, "error": "the network is unreachable",
            }  # fmt: skip

    def _forward(self, connection: _Connection, body: Fields) -> Lines:
        if body["kind"] == "direct-tcpip":
            about = {
                "dst_ip": body["host"], "dst_port": body["port"],
                "orig_ip": body["origin_host"], "orig_port": body["origin_port"],
            }  # fmt: skip
            said = "direct-tcp connection request to {dst_ip}:{dst_port} from {orig_ip}:{orig_port}".format_map(about)
            yield "direct-tcpip.request", said, about

    def _forward_data(self, connection: _Connection, body: Fields) -> Lines:
        if body["direction"] == "in":
            about = _leading(connection, body) | {"data": repr(raw(body["data"])), "id": body["forward"]}
            said = "discarded direct-tcp forward request {id} to {dst_ip}:{dst_port} with data {data}".format_map(about)
            yield "direct-tcpip.data", said, about

    def _forward_tls(self, connection: _Connection, body: Fields) -> Lines:
        about = _leading(connection, body) | {"ja4": body["ja4"]}
        yield "direct-tcpip.ja4", "JA4 fingerprint {ja4} to {dst_ip}:{dst_port}".format_map(about), about


_LINES: Mapping[str, Callable[[Cowrie, _Connection, Fields], Lines]] = {
    "connection.opened": Cowrie._opened,
    "connection.version": Cowrie._version,
    "connection.algorithms": Cowrie._algorithms,
    "connection.closed": Cowrie._closed,
    "auth.attempt": Cowrie._attempt,
    "session.opened": Cowrie._session,
    "channel.env": Cowrie._env,
    "channel.pty": Cowrie._size,
    "channel.resize": Cowrie._size,
    "channel.started": Cowrie._started,
    "channel.input": Cowrie._input,
    "channel.closed": Cowrie._channel_closed,
    "file.written": Cowrie._written,
    "artifact.stored": Cowrie._stored,
    "process.started": Cowrie._process,
    "forward.requested": Cowrie._forward,
    "forward.data": Cowrie._forward_data,
    "forward.tls": Cowrie._forward_tls,
}
"""What has a counterpart in Cowrie."""


def _line(fields: Fields) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode().replace(b"\x7f", rb"\u007f") + b"\n"


def _escaped(text: str) -> bool:
    """Whether the text is of bytes that were no UTF-8 (see `hermes.events.from_bytes`)."""
    return "\\" in text and _ESCAPED.fullmatch(text) is not None and _HIGH.search(text) is not None


def plain(text: str) -> str:
    """Text of an attacker as Cowrie writes names, passwords and versions: what is not printable as `\\xNN`, `\\` doubled."""
    doubled = text if _escaped(text) else text.replace("\\", "\\\\")
    return "".join(
        it if it.isprintable() else "".join(f"\\x{byte:02x}" for byte in it.encode(errors="backslashreplace")) for it in doubled
    )


def raw(text: str) -> bytes:
    """The bytes that an attacker sent."""
    if not _escaped(text):
        return text.encode()
    pieces = re.findall(r"\\\\|\\x[0-9a-f]{2}|[^\\]", text, re.DOTALL)
    return b"".join(b"\\" if it == "\\\\" else bytes.fromhex(it[2:]) if it[0] == "\\" else it.encode() for it in pieces)


def fetched(program: str, argv: Sequence[str]) -> list[str]:
    """The URLs that a process was started to fetch; none that are the box's own."""
    words = list(argv)
    name = PurePosixPath(words[0] if words else program).name
    if name == "busybox" and len(words) > 1:
        words = words[1:]
        name = words[0]
    if name not in _FETCHERS:
        return []
    urls = [it if _SITE.match(it) else f"http://{it}" for it in words[1:] if _SITE.match(it) or _BARE_SITE.match(it)]
    return [it for it in urls if (site := _SITE.match(it)) and site[1] not in ("localhost", "[::1]") and site[1][:4] != "127."]


def _key(body: Fields) -> Fields:
    """An offered key as Cowrie describes it."""
    kind, encoded = body.get("key_type") or "", body.get("key") or ""
    try:
        digest = hashlib.md5(base64.b64decode(encoded), usedforsecurity=False).hexdigest()
    except (binascii.Error, ValueError):
        digest = ""
    fingerprint = ":".join(digest[it : it + 2] for it in range(0, len(digest), 2))
    return {"fingerprint": fingerprint, "key": f"{kind} {encoded}", "type": kind}


def _leading(connection: _Connection, body: Fields) -> Fields:
    host, port = connection.forwards.get(body["forward"], ("", 0))
    return {"dst_ip": host, "dst_port": port}


def _measure(path: Path) -> tuple[int | None, str]:
    """A recording's size, and its SHA-256 unless it is large; nothing of one that is gone."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return size, hashlib.file_digest(file, "sha256").hexdigest() if size <= HASHED_BYTES else ""
    except OSError:
        return None, ""
